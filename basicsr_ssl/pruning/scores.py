"""How important is a unit: one number per unit, larger is more important."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor

from basicsr_ssl.pruning.gates import fold_gates
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.options import Score

SCORES = get_args(Score)


def score_units(state: Mapping[str, Tensor], groups: Iterable[Group], method: str, seed: int = 0,
                relative: bool = False, gates: str = 'scale') -> dict[str, Tensor]:
    """Score every unit of every group.

    - ``gate``: magnitude of the unit's gate, |g| (SSL's released code); summed, if it has several. Groups without gates
      get no score: they stay whole.
    - ``l1``: mean |w| over the unit's own weights: its filter (or filters, before a pixel shuffle), for an input gate
      the kernels that read the channel. This is the filter's L1 norm (SSL, figure 3; Li et al. 2017) divided by the
      number of weights; the division is ours, and is what makes a 1x1 and a 3x3 layer comparable in a global ranking.
    - ``l2``: root mean square of the same weights.
    - ``random``: uniform, the baseline that any criterion must beat.

    ``l1`` and ``l2`` judge the weights with their gates multiplied in. Biases are not counted.

    Args:
        state: state dict of the network.
        groups: its groups.
        method: one of the above.
        seed: for ``random``.
        relative: divide ``l1`` and ``l2`` by their group's mean (ours). A layer's weights may be small as a whole, as
            those of residual blocks are, without the layer being less important; ranked globally by their plain norms,
            such layers lose nearly everything before others lose anything.
        gates: kind of the network's gates, if it has any.

    Returns:
        Group name to scores, float64 ``(size,)`` on the CPU.

    Raises:
        ValueError: unknown method; ``gate`` for a network without gates, or whose gates are all equal, so that there
            is nothing to rank by; a score that is not finite.
    """
    groups = list(groups)
    if method not in SCORES:
        raise ValueError(f'unknown score {method!r}; choose one of {", ".join(SCORES)}')
    if method == 'random':
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in groups}
    if method == 'gate':
        groups = [group for group in groups if group.gates]
        missing = [gate for group in groups for gate in group.gates if gate not in state]
        if missing:
            raise ValueError(f"score 'gate' needs a gated network, but {missing[0]} is missing: run sparsity learning "
                             "first, or score by 'l1'")
        scores = {group.name: torch.stack([state[gate].detach().double().cpu().abs() for gate in group.gates]).sum(0)
                  for group in groups}
        every = torch.cat(list(scores.values()))
        if len(every) > 1 and bool((every == every[0]).all()):
            raise ValueError("score 'gate' cannot rank units whose gates are all equal: let the gates learn first "
                             "(sparsity: select_iter), or score by 'l1'")
    else:
        state = fold_gates(state, groups, gates)
        scores = {group.name: _weight_score(state, group, method) for group in groups}
        if relative:
            scores = {name: values / values.mean().clamp_min(1e-300) for name, values in scores.items()}
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f'the weights of group {name} are not finite (nan or inf): the training that made this '
                             'network has diverged')
    return scores


def _weight_score(state: Mapping[str, Tensor], group: Group, method: str) -> Tensor:
    power = 1 if method == 'l1' else 2
    total, count = torch.zeros(group.size, dtype=torch.float64), 0
    for s in group.own:
        weight = state[s.param].detach().double().cpu()
        if weight.dim() < 2:
            continue
        own = weight.index_select(s.dim, s.indices(range(group.size))).movedim(s.dim, 0)
        own = own.reshape(group.size, -1)
        total, count = total + own.abs().pow(power).sum(1), count + own.shape[1]
    return (total / count).pow(1 / power)
