"""The command ``basicsr-ssl convert``: other projects' networks into ours, and dense ones back into BasicSR's."""

from __future__ import annotations

import os
from typing import Any

import torch
from basicsr.archs.spynet_arch import SpyNet

from basicsr_ssl.checkpoints.files import write_atomically
from basicsr_ssl.checkpoints.formats import plain
from basicsr_ssl.checkpoints.store import import_network, save_network

SUFFIXES = {'safetensors': '.safetensors', 'basicsr': '.pth'}


def convert(source: str, output: str, to: str = 'safetensors') -> str:
    """Read a network of any known format and write it in another.

    Args:
        source: a file that ``import_network`` reads.
        output: the file to write. If it is there already it must hold the same network; it is then left alone.
        to: ``'safetensors'``, or ``'basicsr'`` for a ``.pth`` that BasicSR's own class loads strictly.

    Returns:
        What was found and what was written, for people.

    Raises:
        OSError: the source cannot be read or the output not written.
        ValueError: the source is no network; BasicSR's class could not hold it; the output has the wrong suffix, is the
            source, or is there and holds something else.
    """
    if to not in SUFFIXES:
        raise ValueError(f'cannot convert to {to!r}; choose one of {", ".join(SUFFIXES)}')
    if not output.endswith(SUFFIXES[to]):
        raise ValueError(f'{output}: with --to {to} the output is named *{SUFFIXES[to]}')
    if os.path.realpath(source) == os.path.realpath(output):
        raise ValueError(f'{output} is the source itself; choose another name')
    net: Any = import_network(source)
    refused = _not_in_basicsr(net) if to == 'basicsr' else []
    if refused:
        raise ValueError(f'{source} cannot become a .pth of BasicSR, whose class knows no {", no ".join(refused)}')
    found = _found(source, net)
    if os.path.exists(output):
        if not _same(net, output):
            raise ValueError(f'{output} exists, and is not this network; remove it or choose another name')
        return f'{found}\n{output} holds it already; nothing was written.'
    if to == 'safetensors':
        save_network(net, output, **{'stage': 'convert', **net.provenance})
    else:
        # BasicSR's SpyNet reads its file before it has mean and std, and would refuse them
        state = {name: tensor for name, tensor in net.state_dict().items()
                 if not isinstance(net, SpyNet) or name not in ('mean', 'std')}
        write_atomically(output, lambda temporary: _save_torch({'params': state}, temporary))
    return f'{found}\nWrote {output}.'


def _save_torch(content: dict[str, Any], path: str) -> None:
    with open(path, 'wb') as stream:  # given a name, torch writes it into the file
        torch.save(content, stream)


def _found(source: str, net: Any) -> str:
    origin, key = net.provenance.get('source_format', 'basicsr_ssl'), net.provenance.get('param_key')
    average = ', the moving average' if key in ('params_ema', 'generator_ema') else ''
    weights = f', weights {key}{average}' if key else ''
    count = sum(parameter.numel() for parameter in net.parameters())
    return plain(f'{source}: {net.spec.form} {type(net).__name__} of {origin}{weights}; {count:,} parameters.')


def _not_in_basicsr(net: Any) -> list[str]:
    """What BasicSR's ``BasicVSR(num_feat, num_block)`` or ``SpyNet`` has no place for."""
    if isinstance(net, SpyNet):
        own, plain = net.state_dict(), SpyNet().state_dict()
        return [] if all(own[name].equal(plain[name]) for name in ('mean', 'std')) else ['other mean and std']
    args = net.spec.args
    return [what for what, there in {
        'gates (prune first, or train on without them)': net.spec.form == 'gated',
        'pruned widths (keep it as safetensors)': net.spec.form == 'compact',
        'act: relu (the SSL networks)': args['act'] != 'lrelu',
        f'scale {args["scale"]}, only 4': args['scale'] != 4,
        'network that is not bidirectional': not args['bidirectional'],
        'network without a flow network': args['flow'] != 'spynet',
        f'tail_feat {args["tail_feat"]}, only 64': args['tail_feat'] != 64,
    }.items() if there]


def _same(net: Any, output: str) -> bool:
    try:
        other: Any = import_network(output)
    except (OSError, ValueError):
        return False
    own, there = net.state_dict(), other.state_dict()
    return other.spec == net.spec and own.keys() == there.keys() and all(own[name].equal(there[name]) for name in own)
