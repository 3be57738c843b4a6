"""Which units to keep: exact, deterministic, and within a stated budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import get_args

from torch import Tensor

from basicsr_ssl.pruning.options import Scope

Widths = dict[str, int]
SCOPES = get_args(Scope)


def select_units(scores: Mapping[str, Tensor], ratio: float, *, scope: str = 'global',
                 cost: Callable[[Widths], float] | None = None, monotone: bool = True, round_to: int = 1,
                 min_keep: int | Mapping[str, int] = 1) -> dict[str, list[int]]:
    """Choose the units to keep.

    ``global``: all units of the network stand in one line, ordered by ``(score, group name, unit)``; the first ones of
    the line go. ``local``: every group loses the same share of its own units. In both cases units go one step after
    another until the network costs at most ``(1 - ratio)`` of what it costs whole: the largest network of the line
    that meets the budget. The order is total, so equal scores and the order of the input make no difference.

    Args:
        scores: group name to scores ``(size,)``, larger is more important.
        ratio: share of the cost to remove, in [0, 1).
        scope: ``'global'`` or ``'local'``.
        cost: cost of a network with these widths (parameters, multiply-accumulates). None counts units: then exactly
            ``round(ratio * N)`` of N units go (``local``: ``round(ratio * size)`` of each group), up to ``round_to``.
        monotone: whether a narrower network never costs more, as with parameters and multiply-accumulates. A latency
            may, where a width does not fit the machine: then every network of the line is priced, the whole one first,
            until one meets the budget, instead of some dozen of them; and what wider groups would not make dearer stays
            wider.
        round_to: widths become multiples of this (the nearest; a group that loses nothing keeps its width).
        min_keep: no group falls below this many units; or a number for each group.

    Returns:
        Group name to kept units, ascending.

    Raises:
        ValueError: ratio, scope, round_to or min_keep out of range, or the budget cannot be met.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f'ratio must be at least 0 and below 1 (the share to remove), got {ratio}')
    if scope not in SCOPES:
        raise ValueError(f'unknown scope {scope!r}; choose one of {", ".join(SCOPES)}')
    sizes = {name: len(values) for name, values in scores.items()}
    least_widths = dict(min_keep) if isinstance(min_keep, Mapping) else dict.fromkeys(sizes, min_keep)
    if round_to < 1 or min(least_widths.values(), default=1) < 1:
        raise ValueError(f'round_to and min_keep must be at least 1, got {round_to} and {_said(least_widths)}')
    ranked = {name: _ascending(values) for name, values in scores.items()}

    line = _GlobalLine(scores, ranked, least_widths) if scope == 'global' else _LocalLine(sizes, least_widths)

    def widths(step: int) -> Widths:
        left = {name: size - removed for (name, size), removed in zip(sizes.items(), line(step))}
        return {name: _round_width(left[name], size, round_to, least_widths[name]) for name, size in sizes.items()}

    if cost is None:
        def price(widths: Widths, /) -> float:
            return sum(widths.values())
        removable = sum(half_up(ratio, size) for size in sizes.values()) if scope == 'local' else \
            half_up(ratio, sum(sizes.values()))
        target = sum(sizes.values()) - removable
    else:
        price, target = cost, (1 - ratio) * cost(dict(sizes)) * (1 + 1e-12)

    if monotone:  # the budget is met from some step on, which bisection finds
        chosen = widths(bisect_left(range(line.steps), True, key=lambda step: price(widths(step)) <= target))
        least = price(chosen)
    else:
        chosen, least = dict(sizes), price(dict(sizes))
        for step in range(1, line.steps + 1):
            if least <= target:
                break
            if (narrower := widths(step)) != chosen:
                chosen, least = narrower, min(least, price(narrower))
        if least <= target:
            chosen = _widened(chosen, sizes, round_to, price)
    if least > target:
        raise ValueError(f'ratio {ratio} cannot be reached: with min_keep {_said(least_widths)} and round_to '
                         f'{round_to} at most {1 - least / price(dict(sizes)):.4f} can be removed; choose a smaller '
                         'ratio or min_keep')
    return {name: sorted(ranked[name][sizes[name] - width:]) for name, width in chosen.items()}


def _widened(chosen: Widths, sizes: Widths, multiple: int, price: Callable[[Widths], float]) -> Widths:
    """Group after group as wide as it can be at no higher price."""
    result = dict(chosen)
    for name, size in sizes.items():
        now = price(result)
        wider = (*range(result[name] // multiple * multiple + multiple, size, multiple), size)
        result[name] = max((width for width in wider if price({**result, name: width}) <= now),
                           default=result[name])
    return result


class _GlobalLine:
    """Units removed from each group after k steps, one unit a step, weakest of the whole network first."""

    def __init__(self, scores: Mapping[str, Tensor], ranked: Mapping[str, list[int]], min_keep: Widths) -> None:
        removable = [(float(scores[name][unit]), name, unit)
                     for name, units in ranked.items() for unit in units[:max(0, len(units) - min_keep[name])]]
        self.turns: dict[str, list[int]] = {name: [] for name in ranked}  # steps before which each group loses a unit
        for turn, (_, name, _) in enumerate(sorted(removable)):
            self.turns[name].append(turn)
        self.steps = len(removable)

    def __call__(self, step: int) -> list[int]:
        return [bisect_left(turns, step) for turns in self.turns.values()]


class _LocalLine:
    """Units removed from each group after k steps; each step is the next share at which some group loses a unit."""

    def __init__(self, sizes: Widths, min_keep: Widths) -> None:
        self.limits = [(size, max(0, size - min_keep[name])) for name, size in sizes.items()]
        # a group of n units loses its i-th unit as soon as share * n rounds to i
        self.shares = [Fraction(0), *sorted({Fraction(2 * i - 1, 2 * n) for n, most in self.limits
                                             for i in range(1, most + 1)})]
        self.steps = len(self.shares) - 1

    def __call__(self, step: int) -> list[int]:
        return [min(most, half_up(self.shares[step], size)) for size, most in self.limits]


def _said(least_widths: Widths) -> str:
    return ' or '.join(map(str, sorted(set(least_widths.values()))))


def _ascending(values: Tensor) -> list[int]:
    numbers = values.tolist()
    return sorted(range(len(numbers)), key=lambda unit: (numbers[unit], unit))


def half_up(share: float | Fraction, size: int) -> int:
    # exact for decimal ratios: 0.35 of 10 is 3.5 and rounds to 4, which 0.35 as a binary float would not
    return int(Fraction(str(share)) * size + Fraction(1, 2))


def _round_width(width: int, size: int, multiple: int, min_keep: int) -> int:
    if width == size or multiple == 1:
        return width
    rounded = (2 * width + multiple) // (2 * multiple) * multiple
    least = -(-min_keep // multiple) * multiple
    return min(size, max(rounded, least, min(multiple, size)))
