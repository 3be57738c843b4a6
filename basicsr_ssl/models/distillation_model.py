"""Distillation: train a network with its output held to a larger network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from basicsr_ssl.models.networks import read_teacher
from basicsr_ssl.models.reconstruction_model import ReconstructionModel


@MODEL_REGISTRY.register()
class DistillationModel(ReconstructionModel):
    """Reconstruction loss plus a loss between the outputs of student and teacher, of images, clips or flow.

    CDISM (arXiv 2401.00523) takes ``1.0 * MultiLap(student, teacher) + 0.1 * L1(student, GT)``. The teacher
    (``path: pretrain_network_teacher``), any network of the student's task and scale, runs in eval mode, without
    gradients and outside DDP.
    """

    losses = ('pixel_opt', 'distill_opt')

    def init_training(self, train: Mapping[str, Any]) -> None:
        super().init_training(train)
        self.cri_distill = build_loss(train['distill_opt']).to(self.device)
        self.teacher = read_teacher(self.opt, self.net_g).to(self.device)

    def compute_losses(self, inputs: tuple[Tensor, ...], target: Tensor, current_iter: int) -> dict[str, Tensor]:
        output = self.net(*inputs).float()
        with torch.no_grad():
            expected = self.teacher(*inputs).float()
        return {'l_pix': self.cri_pix(output, target), 'l_distill': self.cri_distill(output, expected)}
