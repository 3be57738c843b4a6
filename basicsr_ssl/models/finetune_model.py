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
        if temporal:
            self.teacher = read_teacher(self.opt, self.net_g).to(self.device)
            check_states(self.net_g, self.teacher)

    def compute_losses(self, inputs: tuple[Tensor, ...], target: Tensor, current_iter: int) -> dict[str, Tensor]:
        if self.cri_temporal is None:
            return super().compute_losses(inputs, target, current_iter)
        output, states = self.net(*inputs, return_states=True)
        with torch.no_grad():
            expected = self.teacher.hidden_states(*inputs)
        return {'l_pix': self.cri_pix(output.float(), target), 'l_temporal': self.cri_temporal(states, expected)}


def check_states(student: Any, teacher: Any) -> None:
    """Raises ValueError if a network has no hidden states, or theirs cannot be compared."""
    if not hasattr(student, 'hidden_states'):
        raise ValueError(f'train: temporal_opt is of hidden states, and a {type(student).__name__} has none: leave it '
                         'out')
    own, other = student.spec.args, teacher.spec.args
    different = [f'{key}: {own[key]} and {other.get(key)}' for key in student.state_args if own[key] != other.get(key)]
    if different:
        raise ValueError('path: pretrain_network_teacher must be the dense network that the compact one was cut '
                         f'from; they differ in {", ".join(different)}')
