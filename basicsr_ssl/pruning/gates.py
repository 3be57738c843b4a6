"""Gates: parameterisations of a network's weights in which what a method pulls at is a tensor of its own.

Each kind has an ``init``, which leaves the function of the network as it is, and folds into plain weights exactly:

=============== ============================ ================================== ==================================
kind            per                          the gated form computes with       starts as
=============== ============================ ================================== ==================================
``scale``       unit, its gate g             ``g * w``, ``g * b``               1 (SSL)
``weight_norm`` unit, its gate s             ``s * w / |w|``, ``s * b / |w|``   |w|, the norm of the unit's weights
``mask``        weight, ``<weight>_mask``    ``mask * w``                       1; it is 0 or 1, and not trained
=============== ============================ ================================== ==================================

Gates are on the layers whose units can be removed, masks on all but those of the flow network. Weight
normalisation is ASSL's (Zhang et al., NeurIPS 2021); that the bias is scaled too is ours, so that a unit whose gate is
0 is one that is not there, as for ``scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from basicsr_ssl.pruning.groups import Group, check_kept

Gates = Literal['', 'scale', 'weight_norm', 'mask']
GATES = ('scale', 'weight_norm', 'mask')
TINY = 1e-12  # least norm, for units without weights other than 0


def strength(gates: str, gate: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What multiplies the weights and biases of each unit, (units,), from its gate (units,).

    Args:
        gates: ``'scale'`` or ``'weight_norm'``.
        gate: the gate vector.
        weights: all the weights that it scales, each (units, n).
    """
    return gate / unit_norms(weights) if gates == 'weight_norm' else gate


def unit_norms(weights: Sequence[Tensor]) -> Tensor:
    """L2 norms (units,) of the units' weights, each (units, n)."""
    squares = sum((weight.square().sum(1) for weight in weights), start=weights[0].new_zeros(len(weights[0])))
    return squares.clamp_min(TINY**2).sqrt()


def mask_name(param: str) -> str:
    return f'{param}_mask'


def init_gates(state: Mapping[str, Tensor], groups: Iterable[Group], gates: str) -> dict[str, Tensor]:
    """The gates of units, ``scale`` or ``weight_norm``, with which ``state``, a network without, stays the same.

    Masks start as ``masks.open_masks``.
    """
    return {gate: unit_norms(_scaled_by(gate, state, group)) if gates == 'weight_norm' else torch.ones(group.size)
            for group in groups for gate in group.gates}


def fold_gates(state: Mapping[str, Tensor], groups: Iterable[Group], gates: str = 'scale') -> dict[str, Tensor]:
    """Multiply gates and masks into the weights, and drop them. The function computed stays the same.

    Args:
        state: state dict of a gated network; one without gates is returned as it is (a shallow copy).
        groups: its groups.
        gates: their kind.
    """
    groups, state = list(groups), dict(state)
    # of the weights as they are, before one of their gates is folded
    factors = {gate: strength(gates, state[gate].detach(), _scaled_by(gate, state, group))
               for group in groups for gate in group.gates if gate in state}
    for group in groups:
        for s in group.slices:
            if s.gate in factors:
                param = state[s.param]
                scale = torch.ones(param.shape[s.dim], dtype=param.dtype, device=param.device)
                scale[s.indices(range(group.size)).to(param.device)] = \
                    factors[s.gate].to(param.dtype).repeat_interleave(s.repeat)
                state[s.param] = param * scale.view([-1 if dim == s.dim else 1 for dim in range(param.dim())])
    for param in [name for name in state if mask_name(name) in state]:
        state[param] = torch.where(state.pop(mask_name(param)), state[param], 0)
    return {name: tensor for name, tensor in state.items() if name not in factors}


def close_gates(state: Mapping[str, Tensor], groups: Iterable[Group],
                kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A gated state dict in which the gates of all units that are not kept are exactly 0.

    Raises:
        ValueError: see ``check_kept``; or units of a group without gates are to be closed.
    """
    state, groups = dict(state), list(groups)
    kept = check_kept(groups, kept)
    for group in groups:
        present = [gate for gate in group.gates if gate in state]
        if not present and len(kept[group.name]) < group.size:
            raise ValueError(f'group {group.name} has no gates to close; keep all of its units, or cut them')
        for gate in present:
            mask = torch.zeros_like(state[gate])
            mask[kept[group.name]] = 1
            # where, not a product: 0 * inf and 0 * nan would not close
            state[gate] = torch.where(mask.bool(), state[gate], torch.zeros_like(mask))
    return state


def _scaled_by(gate: str, state: Mapping[str, Tensor], group: Group) -> list[Tensor]:
    """The weights, not the biases, that a gate of the group scales, each (units, n)."""
    return [state[s.param].detach().index_select(s.dim, s.indices(range(group.size)).to(state[s.param].device))
            .movedim(s.dim, 0).reshape(group.size, -1)
            for s in group.slices if s.gate == gate and state[s.param].dim() > 1]
