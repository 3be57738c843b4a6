"""Sparsity learning: concentrate the network's function in the units that will stay while it keeps learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.api import open_flow
from basicsr_ssl.methods import METHOD_REGISTRY, Method
from basicsr_ssl.models.pruning_model import describe_choice
from basicsr_ssl.models.reconstruction_model import ReconstructionModel

GATE_BINS = 40  # of a histogram


@MODEL_REGISTRY.register()
class SparsityLearningModel(ReconstructionModel):
    """Trains with a method of ``methods``, which the section ``sparsity`` names.

    The flow network is frozen throughout (SSL), unless it is pruned too (``pruning: {flow: true}``). The saved file
    says which units were selected; ``PruningModel``, with the same section ``pruning``, removes the others.
    """

    sections = ('train', 'sparsity', 'pruning')

    def prepare(self, net: Any) -> nn.Module:
        net = open_flow(net) if self.opt['pruning']['flow'] else net
        return METHOD_REGISTRY.get(self.opt['sparsity']['type']).prepare(net)

    def init_training(self, train: Mapping[str, Any]) -> None:
        super().init_training(train)
        kind = METHOD_REGISTRY.get(self.opt['sparsity']['type'])
        self.sparsity: Method = kind(self.net_g, self.opt['sparsity'], self.opt['pruning'])

    def flow_is_frozen(self, current_iter: int) -> bool:
        return super().flow_is_frozen(current_iter) if self.opt['pruning']['flow'] else True

    def compute_losses(self, inputs: tuple[Tensor, ...], target: Tensor, current_iter: int) -> dict[str, Tensor]:
        return {**super().compute_losses(inputs, target, current_iter), **self.sparsity.losses(current_iter)}

    def adjust_gradients(self, current_iter: int) -> None:
        self.sparsity.adjust_gradients(current_iter)
        if self.sparsity.kept is not None:
            self.method = describe_choice('sparsity learning', self.opt['pruning'])

    def current_log(self) -> dict[str, float]:
        return {**super().current_log(), **self.sparsity.figures(self.evaluated_network())}

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        for name, values in self.sparsity.gate_values().items():
            tb_logger.add_histogram(f'gates/{name}', values.cpu(), current_iter)
        for name, units in (self.sparsity.kept or {}).items():
            tb_logger.add_scalar(f'kept/{name}', len(units), current_iter)

    def remembered(self) -> dict[str, Any]:
        values = {name: gates.abs().float() for name, gates in self.sparsity.gate_values().items()}
        if not values:
            return {}
        top = float(values['all'].max())
        return {'gates': {'top': top, **{name: torch.histc(gates, GATE_BINS, 0, top or 1).int().tolist()
                                         for name, gates in values.items()}}}

    def stage_state(self) -> dict[str, Any]:
        return self.sparsity.state()

    def load_stage_state(self, state: dict[str, Any]) -> None:
        self.sparsity.load_state(state)

    def provenance(self) -> dict[str, Any]:
        if self.sparsity.kept is None:
            return {}
        figures = self.sparsity.figures(self.evaluated_network())
        return {'selection': {'pruning': self.opt['pruning'], 'kept': self.sparsity.kept, **figures}}
