"""Cutting units out of a network: pure functions from state dict and spec to state dict and spec.

The gated network whose removed units have gates of exactly 0 and the network cut here compute the same function. It
holds because a gate multiplies a layer's output *including its bias*, and because every activation between two pruned
layers maps 0 to 0 (ReLU, LeakyReLU, GELU): a closed unit contributes nothing downstream. A norm over channels would
break it, since closed units count in its statistics: groups that pass through one (``Group.normalised``) have no gates
and cannot be closed; cutting them is possible, and changes what the norm makes of the units that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from basicsr_ssl.pruning.groups import Group, check_kept
from basicsr_ssl.pruning.spec import Spec

StateDict = Mapping[str, Tensor]


def fold_gates(state: StateDict, groups: Iterable[Group]) -> dict[str, Tensor]:
    """Multiply every gate into the weights it scales, and drop the gates. The function computed stays the same.

    Args:
        state: state dict of a gated network; one without gates is returned as it is (a shallow copy).
    """
    state = dict(state)
    gates = {}
    for group in groups:
        for s in group.slices:
            if s.gate is None or s.gate not in state:
                continue
            gates[s.gate] = None
            param = state[s.param]
            index = s.indices(range(group.size)).to(param.device)
            shape = [-1 if dim == s.dim else 1 for dim in range(param.dim())]
            scale = torch.ones(param.shape[s.dim], dtype=param.dtype, device=param.device)
            scale[index] = state[s.gate].detach().to(param.dtype).repeat_interleave(s.repeat)
            state[s.param] = param * scale.view(shape)
    for name in gates:
        del state[name]
    return state


def close_gates(state: StateDict, groups: Iterable[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A gated state dict in which the gates of all units that are not kept are exactly 0.

    Raises:
        ValueError: see ``check_kept``; or units of a group without gates are to be closed.
    """
    state, groups = dict(state), list(groups)
    kept = check_kept(groups, kept)
    for group in groups:
        if not group.gates and len(kept[group.name]) < group.size:
            raise ValueError(f'group {group.name} has no gates to close; keep all of its units, or cut them')
        for gate in group.gates:
            mask = torch.zeros_like(state[gate])
            mask[kept[group.name]] = 1
            # where, not a product: 0 * inf and 0 * nan would not close
            state[gate] = torch.where(mask.bool(), state[gate], torch.zeros_like(mask))
    return state


def cut(state: StateDict, spec: Spec, groups: Iterable[Group],
        kept: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], Spec]:
    """Remove all units that are not kept.

    Args:
        state: state dict of a dense, gated or compact network.
        spec: its spec.
        groups: its groups, as its arch declares them for this spec.
        kept: units to keep, by group name, as positions among the units that the network has now. Groups that are not
            named keep all.

    Returns:
        The compact network's state dict (new tensors, gates folded) and its spec; ``index`` refers to the channels of
        the full layer, also when an already compact network is cut again.

    Raises:
        ValueError: see ``check_kept``.
    """
    groups = list(groups)
    kept = check_kept(groups, kept)
    state = fold_gates(state, groups)
    widths, index = dict(spec.widths), {name: list(units) for name, units in spec.index.items()}
    # Masks first, cutting last: slices of one or of several groups may share a parameter's dimension (packed qkv, the
    # halves of a concatenation), and their offsets refer to the uncut parameter.
    keep: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        units = kept[group.name]
        if len(units) == group.size:
            continue
        removed = sorted(set(range(group.size)) - set(units))
        for s in group.slices:
            mask = keep.setdefault((s.param, s.dim), torch.ones(state[s.param].shape[s.dim], dtype=torch.bool))
            mask[s.indices(removed)] = False
        widths[group.name] = len(units)
        if group.indexed:
            full = index.get(group.name, range(group.size))
            index[group.name] = [full[u] for u in units]
    for (param, dim), mask in keep.items():
        state[param] = state[param].index_select(dim, mask.nonzero().flatten().to(state[param].device))
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    return state, Spec(spec.arch, spec.args, widths, index, gated=False)
