"""SRP: a growing L2 penalty on the weights and biases of the selected units themselves."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from basicsr_ssl.methods.growing_l2 import GrowingL2Method, GrowingL2Options
from basicsr_ssl.methods.method import METHOD_REGISTRY, Kept
from basicsr_ssl.pruning.regularizers import selected_weights


class SRPOptions(GrowingL2Options):
    """SRP: an L2 penalty on the weights of the selected units, which grows."""

    type: str = Field('SRP', description='the method')
    aligned: Literal['random', 'score'] = Field('random', description=(
        'how units are chosen where several layers must lose the same: by chance, or by the score of pruning'))
    interval: int = Field(20, ge=1, description='iterations between two rises of the penalty')
    ceiling: float = Field(0.5, gt=0, description='greatest penalty')


@METHOD_REGISTRY.register()
class SRP(GrowingL2Method):
    """Structure-Regularized Pruning (Zhang et al., ICLR 2022).

    1. Every layer loses the same share of its filters (scope ``local``): the least by L1 norm (score ``l1``). Layers
       that must lose the same, an aligned group, share one set of indices, drawn by chance.
    2. An L2 penalty on the weights and biases of these filters grows by 1e-4 every 20 iterations until 0.5, and stays.
       What is penalised is a unit's own (``Group.own``): what a gate would scale.
    """

    Options = SRPOptions

    def choose(self) -> Kept:
        kept = super().choose()
        if self.options['aligned'] == 'random':
            generator = torch.Generator().manual_seed(self.pruning['seed'])
            for group in self.net.groups:
                if len(group.gates) > 1:
                    drawn = torch.randperm(group.size, generator=generator)[:len(kept[group.name])]
                    kept[group.name] = sorted(drawn.tolist())
        return kept

    def pulled(self, kept: Kept) -> dict[str, Tensor]:
        return selected_weights(self.net.groups, kept, self.parameters)
