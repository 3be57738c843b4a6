"""Sparsity learning: drive the gates of the least important units to zero while the network keeps learning."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from basicsr_ssl.api import choose_units, with_gates
from basicsr_ssl.models.reconstruction_model import ReconstructionModel, describe_method
from basicsr_ssl.pruning.regularizers import GrowingL2, add_penalty_, selected_masks

# A gate this small has been driven to zero: the unit's output is a hundredth of what it was.
ZERO = 1e-2


@MODEL_REGISTRY.register()
class SparsityLearningModel(ReconstructionModel):
    """SSL, section 3.3: gates with a growing L2 penalty on the units selected for removal.

    1. The dense network gets gates, all 1.
    2. After ``sparsity: select_iter`` iterations the units are ranked and the least important ones selected, as the
       section ``pruning`` says. 0 ranks at the start; then the gates say nothing yet and the score is one of weights.
    3. The penalty on the gates of the selected units grows (``GrowingL2``); the others train freely.

    The flow network is frozen throughout. The saved file says which units were selected; ``PruningModel`` removes them.
    """

    def prepare(self, net: nn.Module) -> nn.Module:
        return with_gates(net)

    def init_training_settings(self) -> None:
        sparsity = self.opt['sparsity']
        self.schedule = GrowingL2(sparsity['interval'], sparsity['delta'], sparsity['ceiling'])
        self.select_iter = sparsity['select_iter']
        self.kept: dict[str, list[int]] | None = None
        self.factor = 0.0
        super().init_training_settings()
        self.gates = {name: parameter for name, parameter in self.net_g.named_parameters()
                      if any(name in group.gates for group in self.net_g.groups)}

    def flow_is_frozen(self, current_iter: int) -> bool:
        return True

    def select(self, kept: dict[str, list[int]]) -> None:
        self.kept = kept
        self.method = describe_method('sparsity learning', self.opt['pruning'])
        self.masks = {name: mask.to(self.device) for name, mask in selected_masks(self.net_g.groups, kept).items()}

    def adjust_gradients(self, current_iter: int) -> None:
        if self.kept is None and current_iter > self.select_iter:
            # the same on all processes, since their weights are the same
            self.select(choose_units(self.net_g, **self.opt['pruning']))
            get_root_logger().info(f'Iteration {current_iter}: selected {self.count_selected():,} of '
                                   f'{sum(len(gate) for gate in self.gates.values()):,} gates for removal')
        if self.kept is not None:
            self.factor = self.schedule.factor(current_iter - self.select_iter)
            add_penalty_(self.gates, self.masks, self.factor)

    def count_selected(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values()) if self.kept is not None else 0

    @torch.no_grad()
    def zero_share(self) -> float:
        """Share of the selected gates that are (almost) zero, of the network that is saved."""
        if not self.count_selected():
            return 0.0
        gates = dict(self.evaluated_network().named_parameters())
        return sum(int((gates[name][mask].abs() < ZERO).sum()) for name, mask in self.masks.items()) / \
            self.count_selected()

    def get_current_log(self) -> dict[str, float]:
        return {**super().get_current_log(), 'penalty': self.factor, 'zero_gates': self.zero_share()}

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        every = torch.cat([gate.detach().flatten() for gate in self.gates.values()])
        tb_logger.add_histogram('gates/all', every.cpu(), current_iter)
        if self.kept is None:
            return
        masks = torch.cat([self.masks[name] for name in self.gates])
        tb_logger.add_histogram('gates/selected', every[masks].cpu(), current_iter)
        for group in self.net_g.groups:
            tb_logger.add_scalar(f'kept/{group.name}', len(self.kept[group.name]), current_iter)

    def stage_state(self) -> dict[str, Any]:
        return {'kept': self.kept}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        if state['kept'] is not None:
            self.select(state['kept'])

    def provenance(self) -> dict[str, Any]:
        if self.kept is None:
            return {}
        return {'selection': {'pruning': self.opt['pruning'], 'kept': self.kept, 'zero_gates': self.zero_share()}}
