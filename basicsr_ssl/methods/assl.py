"""ASSL: normalised weights, layers that learn to lose the same filters, and a growing L2 penalty on those."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from basicsr_ssl.methods.growing_l2 import GrowingL2Method, GrowingL2Options
from basicsr_ssl.methods.method import METHOD_REGISTRY, Kept
from basicsr_ssl.pruning.regularizers import selected_masks, selected_weights


class ASSLOptions(GrowingL2Options):
    """ASSL: a loss that aligns the layers of a group, then an L2 penalty on the selected filters' norms."""

    type: str = Field('ASSL', description='the method')
    select_iter: int = Field(17260, ge=0, description='iterations of alignment, after which the units to be removed '
                                                      'are selected')
    align_weight: float = Field(1.0, ge=0, description='weight of the alignment loss')
    interval: int = Field(20, ge=1, description='iterations between two rises of the penalty')
    ceiling: float = Field(0.5, gt=0, description='greatest penalty')


@METHOD_REGISTRY.register()
class ASSL(GrowingL2Method):
    """Aligned Structured Sparsity Learning (Zhang et al., NeurIPS 2021).

    1. Weights are normalised, ``w = s * v / |v|``; s starts as the norm and is a filter's importance (score ``gate``).
       Every layer loses the same share (scope ``local``).
    2. For ``select_iter`` iterations the layers of an aligned group, which must lose the same units, are made to agree:
       ``alignment_loss``. Then the units are chosen; of an aligned group those whose s, summed over its layers, are the
       least. That they are summed is ours: our sources do not say how the common ones are picked.
    3. An L2 penalty on s and the biases of the chosen units grows by 1e-4 every 20 iterations until 0.5, which takes
       100,000, and stays for 43,150 more.

    A network whose groups have one layer each, as with the Residual Sparsity Connection, has nothing to align.
    """

    Options = ASSLOptions
    kind = 'weight_norm'

    def __init__(self, net: Any, options: dict[str, Any], pruning: dict[str, Any]) -> None:
        super().__init__(net, options, pruning)
        self.aligned = [group for group in net.groups if len(group.gates) > 1]
        # how many will go is known before which: exactly with scope local
        self.widths = {name: len(units) for name, units in self.choose().items()}

    def losses(self, iteration: int) -> dict[str, Tensor]:
        if iteration > self.options['select_iter'] or not self.aligned:
            return {}
        terms = [alignment_loss(torch.stack([self.gates[gate] for gate in group.gates]),
                                group.size - self.widths[group.name]) for group in self.aligned]
        return {'l_align': self.options['align_weight'] * torch.stack(terms).sum()}

    def pulled(self, kept: Kept) -> dict[str, Tensor]:
        weights = selected_weights(self.net.groups, kept, self.parameters)
        return {**selected_masks(self.net.groups, kept),
                **{name: mask for name, mask in weights.items() if mask.dim() == 1}}


def alignment_loss(gates: Tensor, removed: int) -> Tensor:
    """``-mean(M M^T)`` of the soft masks ``M = sigmoid(|s| - threshold)``: least when all layers keep the same units.

    ASSL's sparsity structure alignment. The threshold is a layer's weakest |s| that stays if it loses its ``removed``
    weakest; the gradient passes through it too, so that the loss asks for an order, not for larger s.

    Args:
        gates: s (layers, units).
        removed: units that each layer is to lose, below their number.
    """
    size = gates.abs()
    masks = torch.sigmoid(size - size.sort(1).values[:, removed:removed + 1])
    # entry (i, j) of M M^T is the product of two rows: the mean over all i and j is the square of the mean row
    return -masks.mean(0).square().sum()
