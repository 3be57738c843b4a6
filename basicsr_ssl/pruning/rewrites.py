"""Other networks that compute the same: pure functions from state dict and spec to state dict and spec.

How fast a compact network runs depends on where its kept channels stand and on whether its widths suit the machine's
kernels. Neither changes what it computes: the channels of a residual stream can stand in any order, and units of zeros
add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.pruning.surgery import StateDict


def reorder(state: StateDict, spec: Spec, groups: Iterable[Group], streams: Mapping[str, Sequence[Slice]],
            orders: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], Spec]:
    """Let the channels of residual streams stand in another order. Hidden states have theirs in that order too.

    Args:
        state: state dict of a network without gates.
        spec: its spec.
        groups: its groups.
        streams: where the channels of its streams stand in parameters of layers that use all of them and belong to no
            group (``PrunableNetwork.stream_table``); the first of them holds nothing else.
        orders: stream name to its channels in the new order; streams that are not named stay as they are.

    Returns:
        State dict (new tensors) and spec.

    Raises:
        ValueError: an unknown stream, an order that is none of all its channels, or a gated network.
    """
    _check_plain(spec)
    result, index = {name: tensor.detach().clone() for name, tensor in state.items()}, dict(spec.index)
    for stream, order in orders.items():
        if stream not in streams:
            raise ValueError(f'there is no stream {stream!r}; known are {", ".join(streams)}')
        place = {channel: position for position, channel in enumerate(order)}
        first = streams[stream][0]
        size = state[first.param].shape[first.dim]
        if len(order) != size or set(place) != set(range(size)):
            raise ValueError(f'the order of {stream} must name each of its {size} channels once')
        for s in streams[stream]:
            _take(result, s, order)
        for group in groups:
            if group.stream == stream:
                channels = index.get(group.name, range(group.size))
                units = sorted(range(len(channels)), key=lambda unit: place[channels[unit]])
                for s in group.slices:
                    _take(result, s, units)
                if group.name in index:
                    index[group.name] = [place[channels[unit]] for unit in units]
    return result, Spec(spec.arch, spec.args, spec.widths, index)


def widen(state: StateDict, spec: Spec, groups: Iterable[Group],
          full: Mapping[str, int], units: Mapping[str, int | Sequence[int]]) -> tuple[dict[str, Tensor], Spec]:
    """Add units of zeros, which change nothing.

    It is the inverse of ``cut``, and holds for the same reason: behind a unit whose weights and bias are zero, every
    activation is zero.

    Args:
        state: state dict of a compact network without gates.
        spec: its spec.
        groups: its groups.
        full: widths of the dense network, by group name: none becomes wider.
        units: group name to the number of its units then; of a group that reads from or writes to a stream
            (``Group.indexed``), the channels, ascending, those it has among them.

    Returns:
        State dict (new tensors) and spec.

    Raises:
        ValueError: a group that does not exist or passes through a norm, not the units that it has and at most those
            of the dense network, or a gated network.
    """
    _check_plain(spec)
    result = {name: tensor.detach().clone() for name, tensor in state.items()}
    widths, index = dict(spec.widths), dict(spec.index)
    known = {group.name: group for group in groups}
    # of a parameter's dimension: from where to where it is replaced, by which of its entries; -1 stands for zeros
    parts: dict[tuple[str, int], list[tuple[int, int, list[int]]]] = {}
    for name, wanted in units.items():
        if name not in known:
            raise ValueError(f'there is no group {name!r}')
        group = known[name]
        if group.normalised:
            raise ValueError(f'{name} passes through a norm over channels, in which a unit of zeros would count')
        if isinstance(wanted, int):
            new: list[int | None] = [unit if unit < group.size else None for unit in range(wanted)]
        else:
            own = {channel: unit for unit, channel in enumerate(index.get(name, range(group.size)))}
            new = [own.get(channel) for channel in wanted]
        if (group.indexed == isinstance(wanted, int) or len(new) > full[name]
                or len([unit for unit in new if unit is not None]) != group.size):
            raise ValueError(f'{name} keeps its {group.size} units and gets others, at most {full[name]} in all, '
                             + ('named by channel' if group.indexed else 'given by their number'))
        for s in group.slices:
            entries = [s.offset + unit * s.repeat + i if unit is not None else -1
                       for unit in new for i in range(s.repeat)]
            parts.setdefault((s.param, s.dim), []).append((s.offset, s.offset + group.size * s.repeat, entries))
        widths[name] = len(new)
        if not isinstance(wanted, int):
            index[name] = list(wanted)
        if len(new) == full[name]:
            del widths[name]
            index.pop(name, None)
    for (param, dim), replaced in parts.items():
        tensor, entries, end = result[param], [], 0
        for start, stop, new_entries in sorted(replaced):
            entries += [*range(end, start), *new_entries]
            end = stop
        entries += range(end, tensor.shape[dim])
        source = torch.tensor(entries, device=tensor.device)
        there = (source >= 0).view(-1, *[1] * (tensor.dim() - 1 - dim))
        result[param] = tensor.index_select(dim, source.clamp(min=0)) * there
    return result, Spec(spec.arch, spec.args, widths, index)


def _check_plain(spec: Spec) -> None:
    if spec.gates:
        raise ValueError('fold the gates into the weights first: without_gates')


def _take(state: dict[str, Tensor], s: Slice, units: Sequence[int]) -> None:
    """Let the units of a slice stand in another order."""
    tensor = state[s.param]
    source = torch.arange(tensor.shape[s.dim])
    source[s.indices(range(len(units)))] = s.indices(units)
    state[s.param] = tensor.index_select(s.dim, source.to(tensor.device))
