"""Expected figures: an option file can carry the results that its run must reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from basicsr_ssl.report.summary import Row, figures
from basicsr_ssl.terminal import suggest

# figures that are equal on paper may differ in the last bit: 30.4 - 30.1 > 0.3
SLACK = 1e-9


def check_expectations(rows: Sequence[Row], expect: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare figures with what is expected of them.

    Args:
        rows: see ``basicsr_ssl.report.summary``.
        expect: each entry has ``row`` and ``metric``; optionally ``over``, another row whose figure is subtracted, or
            ``ratio_of``, another row by whose figure is divided; and bounds for the result: ``at_least``, ``at_most``,
            ``value`` with ``tolerance``, bounds included. Entries that are None count as absent.

    Returns:
        One line for every entry that is missed, with the expected and the seen figure. A figure that is unknown or
        NaN is missed.

    Raises:
        ValueError: a row or metric that does not exist, or an entry that expects nothing.
    """
    known = {row['network']: figures(row) for row in rows}
    missed = []
    for entry in expect:
        metric, other = entry['metric'], entry.get('over') or entry.get('ratio_of')
        for label in filter(None, (entry['row'], other)):
            if label not in known:
                raise ValueError(f'expect: there is no row {label!r}' + suggest(label, known))
        metrics = {name for named in known.values() for name in named}
        if metric not in metrics:
            raise ValueError(f'expect: there is no metric {metric!r}' + suggest(metric, metrics))

        seen, wanted, what = known[entry['row']].get(metric), _wanted(entry), f'{entry["row"]}: {metric}'
        if other is not None:
            seen = _compare(seen, known[other].get(metric), divide=not entry.get('over'))
            what += f' {"over" if entry.get("over") else "as a ratio of"} {other}'
        # not `any(out of bounds)`: comparisons with NaN are all false
        if seen is None or not all(low - SLACK <= seen <= high + SLACK for _, low, high in wanted):
            missed.append(f'{what}: expected {" and ".join(text for text, _, _ in wanted)}, '
                          f'seen {"no figure" if seen is None else format(seen, ".6g")}')
    return missed


def _wanted(entry: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Bounds as text, lowest and highest figure."""
    low, high, value, tolerance = (entry.get(key) for key in ('at_least', 'at_most', 'value', 'tolerance'))
    wanted = []
    if low is not None:
        wanted.append((f'at least {low:g}', low, math.inf))
    if high is not None:
        wanted.append((f'at most {high:g}', -math.inf, high))
    if value is not None:
        tolerance = tolerance or 0
        wanted.append((f'{value:g} within {tolerance:g}', value - tolerance, value + tolerance))
    if not wanted:
        raise ValueError(f'expect: the entry for {entry["row"]!r}, {entry["metric"]!r} expects nothing; '
                         'give at_least, at_most, or value and tolerance')
    return wanted


def _compare(figure: float | None, other: float | None, divide: bool) -> float | None:
    if figure is None or other is None:
        return None
    if not divide:
        return figure - other
    return figure / other if other else math.nan
