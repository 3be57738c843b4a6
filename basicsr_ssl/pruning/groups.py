"""Groups: sets of units that live and die together.

Example: ``conv1`` (8 filters) feeds ``conv2``. Removing filter 3 of ``conv1`` removes row 3 of its weight, entry 3 of
its bias, and column 3 of ``conv2``'s weight::

    Group('block', 8, (Slice('conv1.weight', 0, gate='conv1.gate'),
                       Slice('conv1.bias', 0, gate='conv1.gate'),
                       Slice('conv2.weight', 1)))

Scores, selection, regularisers, surgery and reports all read the same groups; an arch declares them beside its forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """Where a group's units sit in one parameter.

    Unit u owns the indices ``offset + u * repeat + [0, repeat)`` along ``dim``.

    Attributes:
        param: name of the parameter in the network's state dict.
        dim: dimension along which the units lie (of a conv's weight: 0 filters, 1 input channels).
        repeat: consecutive indices per unit, e.g. r^2 filters before a pixel shuffle by r.
        offset: first index, e.g. of the second half of a concatenation.
        gate: name of the gate vector (one entry per unit) that multiplies this slice in the gated form. The gated
            slices are a unit's own weights, by which it is judged; the others only follow.
    """

    param: str
    dim: int
    repeat: int = 1
    offset: int = 0
    gate: str | None = None

    def indices(self, units: Iterable[int]) -> Tensor:
        """Indices along ``dim`` that belong to the given units, int64."""
        start = torch.as_tensor(list(units), dtype=torch.long) * self.repeat + self.offset
        return (start[:, None] + torch.arange(self.repeat)).flatten()


@dataclass(frozen=True)
class Group:
    """Units that must be removed together.

    Attributes:
        name: unique within the network.
        size: number of units.
        slices: where they sit.
        indexed: whether the compact network must know *which* units are left, because it gathers them from, or
            scatters them into, a tensor that keeps all its channels.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    indexed: bool = False

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the group's gate vectors, without repetition, in the order of the slices."""
        return tuple(dict.fromkeys(s.gate for s in self.slices if s.gate))


def check_kept(groups: Iterable[Group], kept: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """The kept units of every group, ascending; groups that ``kept`` does not name keep all.

    Raises:
        ValueError: a name that is no group, a unit out of range or named twice, or a group left empty.
    """
    result = {group.name: list(range(group.size)) for group in groups}
    unknown = sorted(set(kept) - set(result))
    if unknown:
        raise ValueError(f'kept names groups that the network does not have: {", ".join(unknown[:5])}')
    for name, units in kept.items():
        units = sorted(units)
        size = len(result[name])
        if not units:
            raise ValueError(f'group {name} would be left without units; keep at least one')
        if units[0] < 0 or units[-1] >= size or len(set(units)) != len(units):
            raise ValueError(f'group {name}: kept units must be distinct and within 0..{size - 1}, got {units}')
        result[name] = units
    return result
