"""The summary of a recipe, a row for each network, for programs and for people.

A row is a dict: ``network`` (its label), ``params``, ``params_with_flow``, ``macs``, ``macs_with_flow``,
``ms_per_frame``, ``psnr``, ``ssim``, and optionally ``metrics`` (``{test set: {metric: value}}``), ``measured``
(``{test set: how}``, in words), ``lr_size`` and ``device``. A figure that is unknown is None or absent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from basicsr_ssl.evaluation.protocol import in_words
from basicsr_ssl.evaluation.result import Result, to_json
from basicsr_ssl.files import write_text
from basicsr_ssl.report.tables import Column, format_table, human

Row = Mapping[str, Any]


def summary_row(results: Mapping[str, Result], ms_per_frame: float | None, device: str,
                file: str | None) -> dict[str, Any]:
    """The row of one network.

    Args:
        results: of all test sets, by their names; not empty.
        ms_per_frame: for frames of the results' ``lr_size``.
        device: where that was measured.
        file: the network's.
    """
    first = next(iter(results.values()))
    return {'network': first.network, **first.costs(), 'ms_per_frame': ms_per_frame,
            'psnr': first.metrics.get('psnr'), 'ssim': first.metrics.get('ssim'),
            'metrics': {name: result.metrics for name, result in results.items()},
            'measured': {name: in_words(result.protocol) for name, result in results.items()},
            'lr_size': first.lr_size, 'device': device, 'file': file}


def write_summary(folder: str | os.PathLike, rows: Sequence[Row]) -> str:
    """Write ``summary.json`` (the rows) and ``summary.md`` (the table).

    Args:
        folder: where to; made if needed.
        rows: see above. NaN and infinity, which JSON does not have, are written as null.

    Returns:
        The table's text.

    Raises:
        OSError: a file could not be written.
    """
    text = format_summary(rows)
    write_text(os.path.join(folder, 'summary.json'), to_json(rows))
    write_text(os.path.join(folder, 'summary.md'), text + '\n')
    return text


def figures(row: Row) -> dict[str, float | None]:
    """All figures of a row by name.

    A test set's metrics are named ``<test set>/<metric>``. A plain metric name is the row's own entry, or else the
    first test set's.
    """
    named: dict[str, float | None] = {}
    for i, (test_set, metrics) in enumerate((row.get('metrics') or {}).items()):
        plain = {name: value for name, value in metrics.items() if _is_figure(value)}
        named.update(plain if i == 0 else {})
        named.update({f'{test_set}/{name}': value for name, value in plain.items()})
    # an entry left None does not hide the test set's figure
    named.update({name: value for name, value in row.items()
                  if _is_figure(value) and (value is not None or name not in named)})
    return named


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def format_summary(rows: Sequence[Row], reference: str = 'dense') -> str:
    """The table that compares networks, with a note on how to read it.

    Beside MACs and milliseconds stands how many times fewer, and how many times faster, than in the row ``reference``
    they are: where both figures agree, the reduction shows on the clock. Metrics have a column for each test set.

    Args:
        rows: see above.
        reference: label of the row to compare with; without such a row there are no such columns.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    lines = [{'network': row['network'], **figures(row)} for row in rows]
    base = next((line for line in lines if line['network'] == reference), None)
    columns: list[Column] = [('network', 'network', 's'), ('params', 'params', human),
                             ('params_with_flow', 'params+flow', human)]
    for key, header, form, gain in (('macs', 'MACs', human, 'fewer'), ('macs_with_flow', 'MACs+flow', human, 'fewer'),
                                    ('ms_per_frame', 'ms/frame', '.2f', 'faster')):
        columns.append((key, header, form))
        if base is not None:
            columns.append((f'{key} gain', gain, _times))
            for line in lines:
                line[f'{key} gain'] = base[key] / line[key] if base.get(key) and line.get(key) else None
    table = format_table(lines, columns + _metric_columns(rows))
    return '\n'.join([table, '', *_notes(rows, reference if base is not None else None)])


def _metric_columns(rows: Sequence[Row]) -> list[Column]:
    """Plain names with one test set, or none named; names of test sets before them with more."""
    full = list(dict.fromkeys(name for row in rows for name in figures(row) if '/' in name))
    if len({name.rpartition('/')[0] for name in full}) < 2:
        full = [name.rpartition('/')[2] for name in full] or ['psnr', 'ssim']
    columns: list[Column] = []
    for name in full:
        test_set, _, metric = name.rpartition('/')
        columns.append((name, f'{test_set} {metric.upper()}'.strip(), '.2f' if metric.startswith('psnr') else '.4f'))
    return columns


def _notes(rows: Sequence[Row], reference: str | None) -> list[str]:
    sizes = {tuple(row['lr_size']) for row in rows if row.get('lr_size')}
    devices = {row['device'] for row in rows if row.get('device')}
    size = ' of {}x{} LR pixels'.format(*sizes.pop()) if len(sizes) == 1 else ''
    device = f', on {devices.pop()}' if len(devices) == 1 else ''
    notes = [f'MACs and ms per frame{size}{device}. "+flow" counts the flow network too; ms always includes it.']
    if reference is not None:
        notes.append(f'"fewer" and "faster": times, against {reference}.')
    measured = {name: text for row in rows for name, text in (row.get('measured') or {}).items()}
    return notes + [f'{name}: {text}.' for name, text in measured.items()]


def _times(gain: float) -> str:
    return f'{gain:.2f}x'
