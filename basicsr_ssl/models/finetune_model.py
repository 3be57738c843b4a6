"""Temporal finetuning: train the compact network with its hidden states held to the dense network's."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.api import without_gates
from basicsr_ssl.models.reconstruction_model import ReconstructionModel, read_network


@MODEL_REGISTRY.register()
class TemporalFinetuneModel(ReconstructionModel):
    """SSL, section 3.4: reconstruction loss plus temporal finetuning loss.

    The teacher (``path: pretrain_network_teacher``, the dense network) runs in eval mode, without gradients and outside
    DDP; only its hidden states are computed. Gates, if the network still has any, are folded first.
    """

    def prepare(self, net: nn.Module) -> nn.Module:
        return without_gates(net)

    def init_training_settings(self) -> None:
        super().init_training_settings()
        temporal = self.opt['train'].get('temporal_opt')
        self.cri_temporal = build_loss(temporal).to(self.device) if temporal else None
        if self.cri_temporal is not None:
            self.teacher: Any = read_network(self.opt, 'pretrain_network_teacher').to(self.device)
            self.teacher.requires_grad_(False)
            self._check_teacher()

    def compute_losses(self, lq: Tensor, gt: Tensor) -> dict[str, Tensor]:
        if self.cri_temporal is None:
            return super().compute_losses(lq, gt)
        output, states = self.net(lq, return_states=True)
        with torch.no_grad():
            target = self.teacher.hidden_states(lq)
        return {'l_pix': self.cri_pix(output.float(), gt), 'l_temporal': self.cri_temporal(states, target)}

    def _check_teacher(self) -> None:
        keys = ('num_feat', 'bidirectional', 'scale')
        own, other = self.net_g.spec.args, self.teacher.spec.args
        different: list[Any] = [f'{key}: {own[key]} and {other.get(key)}' for key in keys if own[key] != other.get(key)]
        if different:
            raise ValueError('path: pretrain_network_teacher must be the dense network that the compact one was cut '
                             f'from; they differ in {", ".join(different)}')
