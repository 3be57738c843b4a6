"""SSL: gates, and an L2 penalty that grows on those of the selected units."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from basicsr_ssl.methods.growing_l2 import GrowingL2Method, GrowingL2Options
from basicsr_ssl.methods.method import METHOD_REGISTRY, Kept
from basicsr_ssl.pruning.regularizers import selected_masks

# A gate this small has been driven to zero: the unit's output is a hundredth of what it was.
ZERO = 1e-2


class SSLOptions(GrowingL2Options):
    """SSL: an L2 penalty on the gates of the selected units, which grows."""

    type: str = Field('SSL', description='the method')
    interval: int = Field(5, ge=1, description='iterations between two rises of the penalty')
    ceiling: float = Field(0.1, gt=0, description='greatest penalty')


@METHOD_REGISTRY.register()
class SSL(GrowingL2Method):
    """Structured Sparsity Learning (Xia et al., CVPR 2023), section 3.3.

    1. The dense network gets gates, all 1.
    2. After ``select_iter`` iterations, in which the gates train freely, the units are ranked and the least important
       ones selected, as the section ``pruning`` says. 0 ranks at the start; then the gates say nothing yet and the
       score is one of weights.
    3. The penalty on the gates of the selected units grows; the others train freely.
    """

    Options = SSLOptions
    kind = 'scale'

    def pulled(self, kept: Kept) -> dict[str, Tensor]:
        return selected_masks(self.net.groups, kept)

    @torch.no_grad()
    def figures(self, net: nn.Module) -> dict[str, float]:
        """The penalty's factor, and the share of the selected gates that are (almost) zero."""
        gates, count = dict(net.named_parameters()), sum(int(mask.sum()) for mask in self.masks.values())
        zero = sum(int((gates[name][mask].abs() < ZERO).sum()) for name, mask in self.masks.items())
        return {'penalty': self.factor, 'zero_gates': zero / count if count else 0.0}
