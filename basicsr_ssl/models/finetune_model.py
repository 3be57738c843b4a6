"""Temporal finetuning: train the compact network with its hidden states held to the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.api import without_gates
from basicsr_ssl.models.networks import read_teacher
from basicsr_ssl.models.reconstruction_model import ReconstructionModel


@MODEL_REGISTRY.register()
class TemporalFinetuneModel(ReconstructionModel):
    """SSL, section 3.4: reconstruction loss plus temporal finetuning loss.

    The teacher (``path: pretrain_network_teacher``, the dense network) runs in eval mode, without gradients and outside
    DDP; only its hidden states are computed. Gates of units, if the network still has any, are folded first; a mask
    stays.
    """

    losses = ('pixel_opt', 'temporal_opt')

    def prepare(self, net: Any) -> nn.Module:
        return net if net.spec.gates == 'mask' else without_gates(net)

    def init_training(self, train: Mapping[str, Any]) -> None:
        super().init_training(train)
        temporal = train.get('temporal_opt')
        self.cri_temporal = build_loss(temporal).to(self.device) if temporal else None
        self.teacher: Any = read_teacher(self.opt, self.net_g).to(self.device) if temporal else None

    def compute_losses(self, inputs: tuple[Tensor, ...], target: Tensor, current_iter: int) -> dict[str, Tensor]:
        if self.cri_temporal is None:
            return super().compute_losses(inputs, target, current_iter)
        output, states = self.net(*inputs, return_states=True)
        with torch.no_grad():
            expected = self.teacher.hidden_states(*inputs)
        return {'l_pix': self.cri_pix(output.float(), target), 'l_temporal': self.cri_temporal(states, expected)}
