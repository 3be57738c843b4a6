"""What a network file is: of this project or of another one, for programs and for people."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl.api import network_cost
from basicsr_ssl.checkpoints.store import build_network, read_metadata, read_network
from basicsr_ssl.files import file_sha256
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.pruning.masks import weights_left
from basicsr_ssl.report.tables import human
from basicsr_ssl.terminal import shortened

OURS = 'basicsr_ssl'
Kept = Mapping[str, Sequence[int]]  # group name to units kept, and units of the dense network

SHORTEST_BAR, LONGEST_BAR = 16, 32  # columns
BLOCKS = '▁▂▃▄▅▆▇█'
EIGHTHS = '▏▎▍▌▋▊▉'
TOGETHER = '\xa0'  # a space at which no line breaks; printed as any other


def describe(path: str | os.PathLike, param_key: str | None = None,
             assume: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a network file is, as JSON values.

    Args:
        path: any file that ``load_network`` reads.
        param_key: ``params`` or ``params_ema`` of a file that has both; None prefers the latter.
        assume: arguments of the network that the file cannot tell, see ``load_network``.

    Returns:
        ``file``, ``size`` (bytes), ``sha256``, ``checksum`` (of a file of this project: whether it has one, which was
        then verified; else None), ``param_keys`` (which sets of weights a file of another project has, by the names
        that ``param_key`` takes), ``format`` (``basicsr_ssl``, or whose it is), ``arch``, ``form``,
        ``args``, ``kept`` (``{group: [units kept, units of the dense network]}``), ``selected`` (the same, of a gated
        network for which it is decided what will be kept; else None), ``left`` (``{layer: [weights that a mask leaves,
        all]}``; None without a mask), ``params``, ``params_with_flow``, ``macs``, ``macs_with_flow``
        (per frame of ``lr_size``, (h, w)), ``dtype``, ``not_finite`` (names of tensors with infinity or NaN), and what
        a file of this project says of itself: ``stage``, ``method``, ``parents``, ``figures``, ``versions``,
        ``provenance`` (the rest). What the file does not say is None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no network that can be read; the message says what it is.
    """
    found = read_network(path, param_key, assume)
    net: Any = build_network(found.spec, found.state, os.fspath(path))
    provenance, spec, tensors, ours = dict(found.provenance), net.spec, found.state, found.checksum is not None
    with torch.device('meta'):
        full: Any = build_network(replace(spec, widths={}, index={}))
    sizes = {group.name: group.size for group in full.groups}
    selected = _mapping(_mapping(provenance.get('selection') or provenance).get('kept')) if spec.gates else {}
    return {
        'file': os.fspath(path), 'size': os.path.getsize(path), 'sha256': file_sha256(path),
        'checksum': found.checksum, 'param_keys': list(found.choices),
        'format': OURS if ours else provenance.get('source_format'),
        'arch': spec.arch, 'form': spec.form, 'args': dict(spec.args),
        'kept': {group.name: [group.size, sizes[group.name]] for group in net.groups},
        'selected': {name: [len(selected[name]), size] for name, size in sizes.items()
                     if isinstance(selected.get(name), list)} or None,
        'left': {name: list(counts) for name, counts in weights_left(found.state).items()} or None,
        **network_cost(net, LR_SIZE), 'lr_size': list(LR_SIZE),
        'dtype': ', '.join(sorted({str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values()
                                   if tensor.is_floating_point()})),
        'not_finite': [name for name, tensor in tensors.items() if not _is_finite(tensor)],
        'method': provenance.pop('method', None) or _method(_mapping(provenance.get('options')).get('pruning')),
        **{key: provenance.pop(name, None) for key, name in (
            ('stage', 'stage'), ('parents', 'parents'), ('figures', 'metrics'))},
        'versions': read_metadata(path).get('versions') if ours else None,
        'provenance': provenance,
    }


def _method(pruning: Any) -> str | None:
    """How units were chosen, from the section ``pruning`` of the options."""
    try:
        share = (f'{pruning["target_ms"]:g} ms' if pruning.get('target_ms') else
                 f'{pruning["ratio"]:.2%} of {pruning["budget"]}')
        return f'{pruning["score"]}, {pruning["scope"]}, {share}'
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None  # nothing was pruned, or options of another version


def _is_finite(tensor: Tensor) -> bool:
    # torch cannot tell of 8-bit floats
    return bool((tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all())


def _mapping(value: Any) -> Mapping[str, Any]:
    """Provenance is whatever was given to ``save_network``."""
    return value if isinstance(value, Mapping) else {}


def format_info(described: Mapping[str, Any], width: int | None = None, blocks: bool | None = None) -> str:
    """What ``describe`` gives, as text for a terminal.

    Args:
        described: see ``describe``.
        width: columns of the terminal; None asks it.
        blocks: whether it can show Unicode's block characters; None asks it.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    blocks = _shows_blocks() if blocks is None else blocks
    head = _plain(f'{os.path.basename(described["file"])}: {described["arch"]}, {described["form"]}')
    facts = list(_facts(described))
    indent = max(len(label) for label, _ in facts) + 2
    lines = [head, '', *(line for label, text in facts for line in _wrapped(label, text, indent, width))]
    for title, kept, shown in (('Units kept', described['kept'], described['form'] == 'compact'),
                               ('Units to be kept', described['selected'], True),
                               ('Weights left by the mask', described.get('left'), True)):
        if kept and shown:
            units, size = map(sum, zip(*kept.values()))
            full = _columns([1], blocks)
            lines += ['', f'{title}: {units:,} of {size:,} ({units / size:.0%}); {full} is all of a layer',
                      *_chart(kept, width, blocks)]
    text = '\n'.join(lines)
    return text if blocks else text.encode('ascii', 'replace').decode()


def _facts(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text, line by line."""
    flow = described['params_with_flow'] > described['params']
    yield 'file', f'{described["file"]}, {human(described["size"])}B'
    yield 'sha256', described['sha256']
    if described['checksum'] is not None:
        yield 'checksum', 'verified' if described['checksum'] else 'absent: a file of an older version'
    yield 'format', described['format']
    if described['args']:
        yield 'arguments', ', '.join(f'{key}{TOGETHER}{value}' for key, value in described['args'].items())
    for label, key in (('params', 'params'), ('MACs', 'macs')):
        with_flow = f', {human(described[f"{key}_with_flow"])} with the flow network' if flow else ''
        size = ' per LR frame of {}x{}'.format(*described['lr_size']) if key == 'macs' else ''
        yield label, f'{human(described[key])}{with_flow}{size}'
    wrong = described['not_finite']
    yield 'numbers', described['dtype'] + (', all finite' if not wrong else (
        f'; NOT FINITE: {", ".join(wrong[:3])}' + (f' and {len(wrong) - 3} more' if len(wrong) > 3 else '')))
    if described['form'] != 'compact' and described['kept']:
        yield 'units', f'{sum(size for _, size in described["kept"].values()):,} that can be pruned, none removed'
    if key := described['provenance'].get('param_key'):
        choices = ', '.join(described['param_keys'])
        yield 'weights', f'{key}; there are {choices}' if choices else str(key)
    for key in ('stage', 'method'):
        if described[key]:
            yield key, shortened(described[key])
    for name, sha256 in _mapping(described['parents']).items():
        yield 'made from', shortened(f'{name} with sha256 {sha256}')
    for name, figures in _mapping(described['figures']).items():
        yield 'measured', f'{name}: ' + ', '.join(
            f'{key} {value:.{2 if key.startswith("psnr") else 4}f}'
            for key, value in _mapping(figures).items() if isinstance(value, float))
    if described['versions']:
        yield 'made with', ', '.join(f'{name} {version}' for name, version in _mapping(described['versions']).items())
    said = (described['format'], described['sha256'], -1)  # -1: the iteration at the end
    for key, value in described['provenance'].items():
        if isinstance(value, (str, int, float)) and value not in said and key not in ('fingerprint', 'param_key'):
            yield shortened(key, 30), shortened(value)


def _wrapped(label: str, text: str, indent: int, width: int) -> list[str]:
    lines = textwrap.wrap(_plain(text), max(width, indent + 20), initial_indent=label.ljust(indent),
                          subsequent_indent=' ' * indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(TOGETHER, ' ') for line in lines]


def _plain(text: str) -> str:
    """Without control characters: what a file says of itself must not steer the terminal."""
    return ''.join(char if char.isprintable() or char == TOGETHER else '?' for char in text)


def _chart(kept: Kept, width: int, blocks: bool) -> list[str]:
    """A bar for each layer; of layers that follow each other in number, such as residual blocks, a column for each."""
    rows: list[tuple[str, str, str, list[float]]] = []  # label, kept, range, shares
    for series, parts in _series(kept).items():
        if series:
            rows.append((series, '', '', []))
        for label, members in parts.items():
            units = [kept[name][0] for name in members]
            sizes = [kept[name][1] for name in members]
            least = f'{min(units)} to ' if min(units) < max(units) else ''
            each = f'{least}{max(units)} of {max(sizes)} each' if len(members) > 1 else ''
            rows.append((f'  {label}' if series else label, f'{sum(units)} of {sum(sizes)}', each,
                         [unit / size for unit, size in zip(units, sizes)]))
    bars = [row for row in rows if row[3]]
    columns = [max(len(row[i]) for row in bars) for i in range(3)]  # a series' name may reach over the columns
    if width - sum(columns) - 6 < SHORTEST_BAR:
        columns[2] = 0  # a narrow terminal does without the ranges
    indent = sum(columns) + 2 * sum(map(bool, columns))
    room = max(SHORTEST_BAR // 2, width - indent)
    lines = []
    for label, total, each, shares in rows:
        texts = [text.ljust(size) for text, size in zip((label, total, each), columns) if size]
        bar = _bar(shares[0], min(room, LONGEST_BAR), blocks) if len(shares) == 1 else _columns(shares, blocks)
        lines.append('  '.join([*texts, bar[:room]]).rstrip())
        lines += [' ' * indent + bar[start:start + room] for start in range(room, len(bar), room)]
    return lines


def _series(kept: Kept) -> dict[str, dict[str, list[str]]]:
    """Groups whose names differ in their last number only: name of the series, what follows the number, group names.

    Single groups stand under the empty name.
    """
    numbered: dict[str, list[str]] = {}
    for name in kept:
        match = re.fullmatch(r'(.*\.|)\d+(\..+)', name)
        numbered.setdefault(f'{match[1]}*{match[2]}' if match else name, []).append(name)
    result: dict[str, dict[str, list[str]]] = {}
    for pattern, names in numbered.items():
        before, _, after = pattern.partition('*.')
        if len(names) > 1:
            last = names[-1][len(before):].split('.')[0]
            first = names[0][len(before):].split('.')[0]
            result.setdefault(f'{before}{first} to {last}', {})[after] = names
        else:
            result.setdefault('', {})[names[0]] = names
    return result


def _columns(shares: Sequence[float], blocks: bool) -> str:
    """A character per share: a full block (#) is all, the lowest is the least; digits are tenths."""
    return ''.join((BLOCKS[-1] if blocks else '#') if share == 1 else
                   BLOCKS[int(share * 7)] if blocks else str(int(share * 10)) for share in shares)


def _bar(share: float, length: int, blocks: bool) -> str:
    eighths = max(1, round(share * length * 8))
    if not blocks:
        return '#' * max(1, round(share * length))
    return BLOCKS[-1] * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else '')


def _shows_blocks() -> bool:
    try:
        (BLOCKS + EIGHTHS).encode(getattr(sys.stdout, 'encoding', None) or 'ascii')
    except (UnicodeEncodeError, LookupError):
        return False
    return True
