"""Figures as text: aligned tables that are Markdown as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

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


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
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


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Texts as a table in HTML; the first ``left`` columns are aligned left, the others right."""
    def line(texts: Sequence[str], kind: str) -> str:
        return '<tr>' + ''.join(f'<{kind}{"" if i < left else " class=number"}>{escape(text)}</{kind}>'
                                for i, text in enumerate(texts)) + '</tr>\n'
    return f'<table>\n{line(headers, "th")}{"".join(line(row, "td") for row in rows)}</table>\n'


def _text(value: Any, form: str | Callable[[Any], str]) -> str:
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return '-'
    return form(value) if callable(form) else format(value, form)
