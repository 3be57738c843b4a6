"""Where the kept channels of a residual stream stand: side by side they are read without being gathered.

The Residual Sparsity Connection lets every block read and write channels of its own choice. Chosen freely they lie
scattered, and gathering and scattering them costs more time than the narrow convolutions save (docs/method.md). There
are two cures. ``runs`` chooses channels so that they can stand side by side: for each stream one order of its channels
and for each layer a window of that order. ``seriate`` finds, for any choice, the order in which they do, or nearly do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from basicsr_ssl.pruning.groups import Group

Kept = dict[str, list[int]]


def runs(groups: Iterable[Group], scores: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]],
         index: Mapping[str, Sequence[int]]) -> Kept:
    """As many units as are kept, but channels of a stream that can stand side by side: with the greatest scores.

    Of the permutations the best is out of reach. This one starts with the greatest channels in the middle, and pairs
    are exchanged until no exchange is a gain.

    Args:
        groups: of a network.
        scores: of its units.
        kept: units chosen freely.
        index: the channels that the units of a group are, as in ``Spec.index``.

    Returns:
        Kept units of all groups in ``kept``, ascending.
    """
    result = {name: list(units) for name, units in kept.items()}
    streams: dict[str, list[Group]] = {}
    for group in groups:
        if group.stream and group.name in kept:
            streams.setdefault(group.stream, []).append(group)
    for members in streams.values():
        channels = [list(index.get(group.name, range(group.size))) for group in members]
        size = 1 + max(map(max, channels))
        values = torch.zeros(len(members), size, dtype=torch.float64)
        for row, group, own in zip(values, members, channels):
            row[own] = scores[group.name].double().cpu()
        widths = [len(kept[group.name]) for group in members]
        order = _best_order(values, torch.tensor(widths))
        place = {int(channel): position for position, channel in enumerate(order)}
        for row, group, own, width in zip(values, members, channels, widths):
            units = sorted(range(group.size), key=lambda unit: place[own[unit]])  # of a compact network: some channels
            sums = row[[own[unit] for unit in units]].unfold(0, width, 1).sum(1)
            start = int(sums.argmax())
            result[group.name] = sorted(units[start:start + width])
    return result


def _best_order(values: Tensor, widths: Tensor) -> Tensor:
    """The order of channels (c,) whose windows hold most of ``values`` (g, c)."""
    falling = values.sum(0).argsort(descending=True, stable=True)
    best = torch.cat((falling[1::2].flip(0), falling[::2]))
    held = float(_held(values, widths, best[None]))
    first, second = torch.triu_indices(len(best), len(best), 1)
    while len(best) > 1:
        # all exchanges at once, in parts of bounded memory
        gains = []
        for a, b in zip(first.split(512), second.split(512)):
            orders = best.repeat(len(a), 1)
            rows = torch.arange(len(a))
            orders[rows, a], orders[rows, b] = best[b], best[a]
            gains.append(_held(values, widths, orders))
        found = torch.cat(gains)
        place = int(found.argmax())
        if float(found[place]) <= held * (1 + 1e-9):
            break
        held = float(found[place])
        a, b = first[place], second[place]
        best = best.clone()
        best[a], best[b] = best[b].clone(), best[a].clone()
    return best


def _held(values: Tensor, widths: Tensor, orders: Tensor) -> Tensor:
    """What the best windows of each order (n, c) hold of ``values`` (g, c), summed over the groups: (n,)."""
    sums = torch.nn.functional.pad(values[:, orders].cumsum(-1), (1, 0))  # (g, n, c + 1)
    return torch.stack([(row[:, width:] - row[:, :-width]).amax(1)
                        for row, width in zip(sums, widths.tolist())]).sum(0)


def seriate(sets: Iterable[Sequence[int]], size: int) -> list[int]:
    """An order of channels in which each set stands side by side, if there is one; else one in which they nearly do.

    Atkins, Boman, Hendrickson (SIAM J. Comput. 1998). Channels are as similar as the number of sets that they share. If
    there is such an order, the second eigenvector of the similarity's Laplacian has it; parts that share nothing are
    ordered apart, and channels that are equal in it by themselves.

    Args:
        sets: channels in 0..size - 1.
        size: number of channels.
    """
    member = torch.zeros(size, 1, dtype=torch.float64)
    columns = [member[:, 0].index_fill(0, torch.tensor(list(units)), 1) for units in sets]
    member = torch.stack(columns, 1) if columns else member
    return _seriated(member @ member.T, list(range(size)))


def _seriated(similarity: Tensor, channels: list[int]) -> list[int]:
    if len(channels) <= 2:
        return channels
    own = similarity[channels][:, channels]
    parts = _parts(own > 0)
    if len(parts) == 1:
        vector = torch.linalg.eigh(own.sum(1).diag() - own).eigenvectors[:, 1]
        parts = []
        for i in vector.argsort(stable=True).tolist():
            if parts and vector[i] - vector[parts[-1][0]] < 1e-9:
                parts[-1].append(i)
            else:
                parts.append([i])
    return [channel for part in parts
            for channel in _seriated(similarity, [channels[i] for i in sorted(part)])]


def _parts(linked: Tensor) -> list[list[int]]:
    """Connected parts of a graph (n, n), each ascending."""
    left, parts = set(range(len(linked))), []
    while left:
        part: set[int] = set()
        new = {min(left)}
        while new:
            part |= new
            new = set(linked[sorted(new)].any(0).nonzero().flatten().tolist()) - part
        parts.append(sorted(part))
        left -= part
    return parts


def is_run(units: Sequence[int]) -> bool:
    """Whether ascending units stand side by side."""
    return units[-1] - units[0] == len(units) - 1
