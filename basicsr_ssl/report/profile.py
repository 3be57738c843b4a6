"""Where the time of a network goes, as text and as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from basicsr_ssl.checkpoints.store import load_network
from basicsr_ssl.plans.profile import profile_network
from basicsr_ssl.report.tables import format_table, human


def describe(file: str, lr_size: tuple[int, int], threads: int | None = None, device: str = 'cpu') -> dict[str, Any]:
    """Profile the network in a file.

    Returns:
        ``file``, ``lr_size``, ``threads``, ``device``; ``layers``: by name ``macs``, ``ms`` and ``share`` of the whole;
        ``rest`` (ms), ``ms`` and ``macs`` of the whole; ``plan``, with what was tried in its ``figures``.

    Raises:
        OSError, ValueError: the file is not a network of this package that has layers, or a size is not positive.
    """
    net: Any = load_network(file, dtype=torch.float32)
    if not net.cost_table:
        raise ValueError(f'{file} holds a {type(net).__name__}, which has no layers to measure')
    found = profile_network(net.to(device).eval(), lr_size, threads)
    return {'file': file, 'lr_size': list(lr_size), 'threads': found.threads, 'device': found.device,
            'layers': {layer.name: {'macs': layer.macs, 'ms': layer.ms, 'share': layer.ms / found.ms}
                       for layer in found.layers},
            'rest': found.rest, 'ms': found.ms, 'macs': sum(layer.macs for layer in found.layers),
            'plan': found.plan.model_dump()}


def format_profile(described: Mapping[str, Any]) -> str:
    """What ``describe`` gives, as text."""
    rows = [{'layer': name, **layer, 'speed': layer['macs'] / layer['ms'] / 1e6 if layer['ms'] else None}
            for name, layer in described['layers'].items()]
    rows += [{'layer': 'between the layers', 'ms': described['rest'], 'share': described['rest'] / described['ms']},
             {'layer': 'the whole', 'macs': described['macs'], 'ms': described['ms'], 'share': 1,
              'speed': described['macs'] / described['ms'] / 1e6}]
    table = format_table(rows, [('layer', 'layer', 's'), ('macs', 'MACs', human), ('ms', 'ms', '.2f'),
                                ('share', 'share', '.1%'), ('speed', 'GMAC/s', '.1f')])
    figures, plan = described['plan']['figures'], described['plan']
    tried = format_table([{'form': form, 'ms': ms, 'chosen': 'x' if form == figures['chosen'] else ''}
                          for form, ms in figures['ms'].items()],
                         [('form', 'form', 's'), ('ms', 'ms per frame', '.2f'), ('chosen', 'chosen', 's')])
    blocks = [f'{name}: ' + '; '.join(f'{form}: {ms:.2f} ms' for form, ms in forms.items())
              for name, forms in figures['blocks'].items() if forms]
    h, w = described['lr_size']
    return '\n'.join([
        f'{described["file"]}: milliseconds per LR frame of {h}x{w}, {described["threads"]} thread'
        + ('s' if described['threads'] > 1 else '') + f', on {described["device"]}', '', table, '',
        'Between the layers: gathering and scattering of channels, activations, shuffles, warps and sums; found as the '
        'whole less the layers, which are measured in a run of their own.', '',
        'Forms of the whole that were tried, at {}x{}:'.format(*figures['lr_size']), '', tried,
        *(['', 'Forms of blocks that were tried:', *blocks] if blocks and plan['channels_last'] else [])])
