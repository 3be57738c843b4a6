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

from basicsr_ssl.pruning.gates import fold_gates, mask_name
from basicsr_ssl.pruning.groups import Group, check_kept
from basicsr_ssl.pruning.spec import Spec

StateDict = Mapping[str, Tensor]


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
        The compact network's state dict (new tensors, gates of units folded, masks cut with their weights) and its
        spec; ``index`` refers to the channels of the full layer, also when an already compact network is cut again.

    Raises:
        ValueError: see ``check_kept``.
    """
    groups = list(groups)
    kept = check_kept(groups, kept)
    masked = spec.gates == 'mask'
    state = dict(state) if masked else fold_gates(state, groups, spec.gates)
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
        for name in {param, mask_name(param)} & state.keys():
            state[name] = state[name].index_select(dim, mask.nonzero().flatten().to(state[name].device))
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    return state, Spec(spec.arch, spec.args, widths, index, 'mask' if masked else '')
