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

from basicsr_ssl.pruning.spec import Spec


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
            slices are a unit's own weights, by which it is judged; the others only follow. In a group without gates a
            unit is judged by all of them.
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
        stream: the tensor that keeps all its channels, as a residual stream does, while this group's layer gathers its
            units from it or scatters them into it; empty: there is none.
        normalised: whether the units pass, side by side, through a norm over channels. What the norm makes of one
            then depends on how many others there are: a closed unit still counts in the mean and the variance, a
            removed one does not. Such a group has no gates, and is cut only for good (see ``surgery``).
        flow: whether it belongs to the flow network, which loses units only when that is asked for.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    stream: str = ''
    normalised: bool = False
    flow: bool = False

    def __post_init__(self) -> None:
        if self.normalised and self.gates:
            raise ValueError(f'group {self.name} passes through a norm over channels and cannot have gates: closing '
                             'one would not be the same as removing its unit')

    @property
    def indexed(self) -> bool:
        """Whether the compact network must know *which* units are left."""
        return bool(self.stream)

    @property
    def own(self) -> tuple[Slice, ...]:
        """The slices that hold a unit's own weights."""
        return tuple(s for s in self.slices if s.gate) or self.slices

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


def check_form(spec: Spec, dense: Iterable[Group]) -> None:
    """Check that widths, index and gates of a spec are possible.

    Args:
        spec: of a dense, gated or compact network.
        dense: the groups of its dense form.

    Raises:
        ValueError: a group that does not exist, a width or an index that does not fit, or gates of narrow groups.
    """
    groups = {group.name: group for group in dense}
    unknown = [name for name in (*spec.widths, *spec.index) if name not in groups]
    if unknown:
        raise ValueError(f'no such group in this network: {", ".join(unknown[:5])} '
                         f'(it has {len(groups)}, for example {next(iter(groups), None)})')
    if spec.gates not in ('', 'mask') and spec.widths:
        raise ValueError('a gated network has full widths: prune first or train the gates first, not both at once')
    for name, width in spec.widths.items():
        if not 1 <= width <= groups[name].size:
            raise ValueError(f'widths: {name} must be within 1..{groups[name].size}, got {width}')
    for name, group in groups.items():
        units, size = spec.index.get(name), group.size
        width = spec.widths.get(name, size)
        if not group.indexed:
            if units is not None:
                raise ValueError(f'index: {name} takes no index, its units are read by one layer only')
        elif (units is None) != (width == size):
            raise ValueError(f'index: {name} keeps {width} of {size} channels, and '
                             f'{"needs an index of them" if units is None else "takes no index when it is full"}')
        elif units is not None and (len(units) != width or list(units) != sorted(set(units))
                                    or units[0] < 0 or units[-1] >= size):
            raise ValueError(f'index: {name} must name {width} distinct channels within 0..{size - 1}, ascending')
