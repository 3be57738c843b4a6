"""Figures as text: aligned tables that are Markdown as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from basicsr_ssl.report.rows import Row, figures

# key in the row, header, and how a value is written: a format specification or a function
Column = tuple[str, str, str | Callable[[Any], str]]


def human(number: float) -> str:
    """Three digits and a unit: 4851011 is ``4.85M``, 337.8e9 is ``338G``. Numbers below 1000 are rounded to whole."""
    units = ['', 'K', 'M', 'G', 'T']
    while abs(number) >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    decimals = 0 if units[0] == '' or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f'{number:.{decimals}f}{units[0]}'


def format_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """An aligned table in Markdown.

    Args:
        rows: one mapping per line.
        columns: key, header and format of each column. Columns with numbers are aligned right.

    Returns:
        Lines joined by newlines, without one at the end. What is None, NaN or absent is written ``-``.
    """
    cells = [[_text(row.get(key), form) for row in rows] for key, _, form in columns]
    right = [any(isinstance(row.get(key), Real) for row in rows) for key, _, _ in columns]
    widths = [max(3, *map(len, (header, *texts))) for (_, header, _), texts in zip(columns, cells)]

    def line(texts: Sequence[str]) -> str:
        aligned = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(texts, widths, right))
        return f'| {" | ".join(aligned)} |'

    rule = ['-' * (w - 1) + (':' if r else '-') for w, r in zip(widths, right)]
    return '\n'.join(line(texts) for texts in ([header for _, header, _ in columns], rule, *zip(*cells)))


def format_summary(rows: Sequence[Row], reference: str = 'dense') -> str:
    """The table that compares networks, with a note on how to read it.

    Beside MACs and milliseconds stands how many times fewer, and how many times faster, than in the row ``reference``
    they are: where both figures agree, the reduction shows on the clock. Metrics have a column for each test set.

    Args:
        rows: see ``basicsr_ssl.report.rows``.
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


def _text(value: Any, form: str | Callable[[Any], str]) -> str:
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return '-'
    return form(value) if callable(form) else format(value, form)
