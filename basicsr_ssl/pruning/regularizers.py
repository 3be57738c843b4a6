"""Growing L2 regularisation: the penalty that drives the gates of the selected units to zero."""

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


@torch.no_grad()
def add_penalty_(parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], factor: float) -> None:
    """Add ``factor * g`` to the gradient of every selected gate g, in place: the gradient of ``factor / 2 * g^2``.

    Each gate, input gates too, is penalised with its own value and its own mask.
    """
    for name, mask in masks.items():
        gate = parameters[name]
        penalty = factor * gate * mask.to(gate.device)
        gate.grad = penalty if gate.grad is None else gate.grad.add_(penalty)
