"""The loss that flow networks are trained with."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class MultiScaleEndPointLoss(nn.Module):
    """Mean distance between estimated and true motion, over all levels of a coarse-to-fine estimate::

        L = loss_weight * sum_l w_l * mean_p (|f_l(p) - f(p)|^2 + eps^2)^(q/2) / sum_l w_l,    w_l = decay^(L-1-l)

    where p runs over the pixels whose true motion is known. All levels are compared at full size, as RAFT (Teed and
    Deng, ECCV 2020) weighs its iterations. With q below 1, large errors, such as at the borders of objects, weigh less
    (PWC-Net, Sun et al., CVPR 2018, finetunes with q = 0.4).

    Args:
        loss_weight: factor of the whole term.
        decay: weight of a level relative to the next finer one.
        exponent: q, above 0.
        eps: smooths the kink at zero error, in pixels.

    Raises:
        ValueError: ``exponent`` or ``decay`` is not above 0.
    """

    def __init__(self, loss_weight: float = 1.0, decay: float = 0.8, exponent: float = 1.0, eps: float = 0.01) -> None:
        super().__init__()
        if exponent <= 0 or decay <= 0:
            raise ValueError(f'exponent and decay must be above 0, got {exponent} and {decay}')
        self.loss_weight, self.decay, self.exponent, self.eps = loss_weight, decay, exponent, eps

    def forward(self, flows: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar; 0 if no motion is known.

        Args:
            flows: (b, l, 2, h, w) from coarse to fine, in pixels of full size; or (b, 2, h, w).
            target: (b, 2, h, w); NaN where the motion is not known.
        """
        flows = flows if flows.dim() == 5 else flows[:, None]
        known = target.isfinite().all(dim=1)
        # before the difference: a NaN behind a mask still makes the gradient NaN
        difference = flows - torch.where(known[:, None], target, 0.0)[:, None]
        distance = (difference.square().sum(dim=2) + self.eps**2).pow(self.exponent / 2)
        per_level = (distance * known[:, None]).sum(dim=(0, 2, 3)) / known.sum().clamp_min(1)
        weight = self.decay ** torch.arange(len(per_level) - 1, -1, -1, dtype=flows.dtype, device=flows.device)
        return self.loss_weight * (per_level * weight).sum() / weight.sum()
