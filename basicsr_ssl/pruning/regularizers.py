"""Growing L2 regularisation: the penalty that drives what belongs to the selected units to zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from basicsr_ssl.pruning.groups import Group


@dataclass(frozen=True)
class GrowingL2:
    """Schedule of the penalty's factor: it rises by ``delta`` every ``interval`` iterations until ``ceiling``.

    SSL: 1e-4 every 5 iterations until 0.1, that is for 5,000 iterations; then it stays.
    """

    interval: int = 5
    delta: float = 1e-4
    ceiling: float = 0.1

    def factor(self, step: int) -> float:
        """Factor at iteration ``step`` after the selection, counted from 1 (no penalty at step 0 and before)."""
        return min(self.ceiling, self.delta * (max(step, 0) // self.interval))


def selected_masks(groups: Iterable[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Gate name to a boolean mask ``(units,)``: true for the units that are to be removed."""
    masks = {}
    for group in groups:
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[torch.as_tensor(kept[group.name], dtype=torch.long)] = False
        masks.update(dict.fromkeys(group.gates, mask))
    return masks


def selected_weights(groups: Iterable[Group], kept: Mapping[str, Sequence[int]],
                     parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name to a boolean mask of its shape: true for the own weights and biases of the units to be removed.

    A weight that is two units' own, one's filter and the other's input channel, is there once.
    """
    masks: dict[str, Tensor] = {}
    for group in groups:
        removed = sorted(set(range(group.size)) - set(kept[group.name]))
        for s in group.own if removed else ():
            mask = masks.setdefault(s.param, torch.zeros(parameters[s.param].shape, dtype=torch.bool))
            mask.index_fill_(s.dim, s.indices(removed), True)
    return masks


@torch.no_grad()
def add_penalty_(parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], factor: float) -> None:
    """Add ``factor * p`` to the gradient of all p that a mask selects, in place: the gradient of ``factor / 2 * p^2``.

    Args:
        parameters: gates, weights and biases by name.
        masks: boolean, of their shapes, for some of them.
        factor: see ``GrowingL2``.
    """
    for name, mask in masks.items():
        parameter = parameters[name]
        penalty = factor * parameter * mask.to(parameter.device)
        parameter.grad = penalty if parameter.grad is None else parameter.grad.add_(penalty)
