"""What SSL, ASSL and SRP share: units are selected once, and an L2 penalty that grows pulls them to zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from basicsr.utils import get_root_logger
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from basicsr_ssl.api import choose_units
from basicsr_ssl.methods.method import Kept, Method
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.regularizers import GrowingL2, add_penalty_


class GrowingL2Options(BaseModel):
    """An L2 penalty on what belongs to the selected units, which grows."""

    model_config = ConfigDict(extra='forbid')

    type: str = Field(description='the method')
    select_iter: int = Field(0, ge=0, description='iteration after which the units to be removed are selected; until '
                                                  'then none is penalised')
    interval: int = Field(ge=1, description='iterations between two rises of the penalty')
    delta: float = Field(1e-4, gt=0, description='rise of the penalty')
    ceiling: float = Field(gt=0, description='greatest penalty')


class GrowingL2Method(Method, ABC):
    """Growing regularisation (Wang et al., ICLR 2021) of the units that are to be removed.

    1. The network gets the gates of ``kind``.
    2. After ``select_iter`` iterations ``choose`` ranks the units and selects the least important ones.
    3. The penalty on what ``pulled`` says of the selected units grows (``GrowingL2``); all else trains freely.
    """

    def __init__(self, net: Any, options: dict[str, Any], pruning: dict[str, Any]) -> None:
        super().__init__(net, options, pruning)
        self.schedule = GrowingL2(options['interval'], options['delta'], options['ceiling'])
        self.parameters = dict(net.named_parameters())
        self.gates = {gate: self.parameters[gate] for group in net.groups for gate in group.gates if self.kind}
        self.masks: dict[str, Tensor] = {}
        self.factor = 0.0

    def choose(self) -> Kept:
        """The units that stay, as the section ``pruning`` says; the same on all processes, as their weights are."""
        return choose_units(self.net, PruningOptions.of(**self.pruning))

    @abstractmethod
    def pulled(self, kept: Kept) -> dict[str, Tensor]:
        """Parameter name to a boolean mask of its shape: what is penalised if these units stay."""

    def select(self, kept: Kept) -> None:
        self.kept = kept
        self.masks = {name: mask.to(self.parameters[name].device) for name, mask in self.pulled(kept).items()}

    def adjust_gradients(self, iteration: int) -> None:
        if self.kept is None and iteration > self.options['select_iter']:
            self.select(self.choose())
            get_root_logger().info(f'Iteration {iteration}: selected {self.describe_selection()} for removal')
        if self.kept is not None:
            self.factor = self.schedule.factor(iteration - self.options['select_iter'])
            add_penalty_(self.parameters, self.masks, self.factor)

    def describe_selection(self) -> str:
        """How many units, in words."""
        assert self.kept is not None
        sizes = {group.name: group.size for group in self.net.groups}
        gone = sum(sizes[name] - len(units) for name, units in self.kept.items())
        return f'{gone:,} of {sum(sizes.values()):,} units'

    @torch.no_grad()
    def figures(self, net: nn.Module) -> dict[str, float]:
        """The penalty's factor, and how small the selected has become: its root mean square over that of the rest."""
        parameters, sums = dict(net.named_parameters()), torch.zeros(2, 2, dtype=torch.float64)
        for name, mask in self.masks.items():
            for row, part in zip(sums, (parameters[name][mask], parameters[name][~mask])):
                row += torch.tensor([float(part.double().square().sum()), part.numel()])
        (gone, stays) = (sums[:, 0] / sums[:, 1].clamp_min(1)).sqrt().tolist()
        return {'penalty': self.factor, 'selected': gone / stays if stays else 0.0}

    def gate_values(self) -> dict[str, Tensor]:
        if not self.gates:
            return {}
        every = torch.cat([gate.detach().flatten() for gate in self.gates.values()])
        if self.kept is None:
            return {'all': every}
        return {'all': every, 'selected': every[torch.cat([self.masks[name] for name in self.gates])]}

    def load_state(self, state: dict[str, Any]) -> None:
        if state['kept'] is not None:
            self.select(state['kept'])
