"""SSL: gates, and an L2 penalty that grows on those of the selected units."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.utils import get_root_logger
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from basicsr_ssl.api import choose_units, with_gates
from basicsr_ssl.methods.method import METHOD_REGISTRY, Kept, Method
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.regularizers import GrowingL2, add_penalty_, selected_masks

# A gate this small has been driven to zero: the unit's output is a hundredth of what it was.
ZERO = 1e-2


class SSLOptions(BaseModel):
    """SSL: an L2 penalty on the gates of the selected units, which grows."""

    model_config = ConfigDict(extra='forbid')

    type: str = Field('SSL', description='the method')
    select_iter: int = Field(0, ge=0, description='iteration after which the units to be removed are selected; until '
                                                  'then the gates train freely')
    interval: int = Field(5, ge=1, description='iterations between two rises of the penalty')
    delta: float = Field(1e-4, gt=0, description='rise of the penalty')
    ceiling: float = Field(0.1, gt=0, description='greatest penalty')


@METHOD_REGISTRY.register()
class SSL(Method):
    """Structured Sparsity Learning (Xia et al., CVPR 2023), section 3.3.

    1. The dense network gets gates, all 1.
    2. After ``select_iter`` iterations the units are ranked and the least important ones selected, as the section
       ``pruning`` says. 0 ranks at the start; then the gates say nothing yet and the score is one of weights.
    3. The penalty on the gates of the selected units grows (``GrowingL2``); the others train freely.
    """

    Options = SSLOptions

    def __init__(self, net: Any, options: dict[str, Any], pruning: dict[str, Any]) -> None:
        super().__init__(net, options, pruning)
        self.schedule = GrowingL2(options['interval'], options['delta'], options['ceiling'])
        names = {gate for group in net.groups for gate in group.gates}
        self.gates = {name: parameter for name, parameter in net.named_parameters() if name in names}
        self.masks: dict[str, Tensor] = {}
        self.factor = 0.0

    @staticmethod
    def prepare(net: nn.Module) -> nn.Module:
        return with_gates(net)

    def select(self, kept: Kept) -> None:
        self.kept = kept
        self.masks = {name: mask.to(self.gates[name].device)
                      for name, mask in selected_masks(self.net.groups, kept).items()}

    def adjust_gradients(self, iteration: int) -> None:
        if self.kept is None and iteration > self.options['select_iter']:
            # the same on all processes, since their weights are the same
            self.select(choose_units(self.net, PruningOptions.of(**self.pruning)))
            get_root_logger().info(f'Iteration {iteration}: selected {self.count_selected():,} of '
                                   f'{sum(len(gate) for gate in self.gates.values()):,} gates for removal')
        if self.kept is not None:
            self.factor = self.schedule.factor(iteration - self.options['select_iter'])
            add_penalty_(self.gates, self.masks, self.factor)

    def count_selected(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @torch.no_grad()
    def figures(self, net: nn.Module) -> dict[str, float]:
        """The penalty's factor, and the share of the selected gates that are (almost) zero."""
        gates, count = dict(net.named_parameters()), self.count_selected()
        zero = sum(int((gates[name][mask].abs() < ZERO).sum()) for name, mask in self.masks.items())
        return {'penalty': self.factor, 'zero_gates': zero / count if count else 0.0}

    def write_summaries(self, tb_logger: Any, iteration: int) -> None:
        every = torch.cat([gate.detach().flatten() for gate in self.gates.values()])
        tb_logger.add_histogram('gates/all', every.cpu(), iteration)
        if self.kept is not None:
            masks = torch.cat([self.masks[name] for name in self.gates])
            tb_logger.add_histogram('gates/selected', every[masks].cpu(), iteration)

    def load_state(self, state: dict[str, Any]) -> None:
        if state['kept'] is not None:
            self.select(state['kept'])
