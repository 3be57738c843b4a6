"""Temporal finetuning loss: keep the compact network's hidden states close to the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class TemporalStateLoss(nn.Module):
    """Distance between the hidden states of a compact network and of its dense teacher.

    SSL (section 3.4) trains with ``L_rec + L_tf``, where L_tf supervises the hidden states so that the error of
    pruning does not grow while they propagate. Neither the paper nor the released code gives its formula; this one is
    ours::

        L_tf = loss_weight * mean over directions of  sum_k w_k * mean |student_k - teacher_k|^p,   sum_k w_k = 1

    k counts the propagation steps: frame k forward, frame n-1-k backward. Since the Residual Sparsity Connection
    leaves all channels of the hidden states in place, the states are compared one to one.

    Args:
        loss_weight: factor of the whole term.
        norm: ``'l1'`` (p = 1), ``'l2'`` (p = 2) or ``'charbonnier'`` (sqrt(d^2 + eps^2), p = 1 without the kink).
        step_weight: ``'uniform'``: w_k equal; ``'linear'``: w_k proportional to k + 1, so that late states, in which
            error has accumulated, weigh more.
        relative: divide by the teacher's mean magnitude (mean square for ``'l2'``), so that the weight does not depend
            on the scale of the features.
        eps: of ``'charbonnier'``.

    Raises:
        ValueError: an argument is none of the above.
    """

    def __init__(self, loss_weight: float = 1.0, norm: Literal['l1', 'l2', 'charbonnier'] = 'l1',
                 step_weight: Literal['uniform', 'linear'] = 'uniform', relative: bool = True,
                 eps: float = 1e-3) -> None:
        super().__init__()
        if norm not in ('l1', 'l2', 'charbonnier'):
            raise ValueError(f'norm must be l1, l2 or charbonnier, got {norm!r}')
        if step_weight not in ('uniform', 'linear'):
            raise ValueError(f'step_weight must be uniform or linear, got {step_weight!r}')
        self.loss_weight, self.norm, self.step_weight, self.relative, self.eps = \
            loss_weight, norm, step_weight, relative, eps

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The loss, a scalar.

        Args:
            student: ``{'backward': (b, n, c, h, w), 'forward': ...}``, frames in their order in time; one direction for
                unidirectional networks.
            teacher: the same from the dense network; no gradient flows into it.

        Raises:
            ValueError: the two differ in directions or shapes.
        """
        if student.keys() != teacher.keys() or any(student[d].shape != teacher[d].shape for d in student):
            raise ValueError('the hidden states of student and teacher do not match: '
                             f'{_shapes(student)} against {_shapes(teacher)}; '
                             'the teacher must be the dense network that the student was pruned from')
        total = torch.stack([self._distance(student[d], teacher[d].detach(), d) for d in student])
        return self.loss_weight * total.mean()

    def _distance(self, student: Tensor, teacher: Tensor, direction: str) -> Tensor:
        student, teacher = student.float(), teacher.float()
        difference = student - teacher
        if self.norm == 'l2':
            distance, size = difference.square(), teacher.square()
        else:
            distance = difference.abs() if self.norm == 'l1' else (difference.square() + self.eps**2).sqrt()
            size = teacher.abs()
        per_step = distance.mean(dim=(0, 2, 3, 4))
        n = len(per_step)
        weight = torch.arange(1, n + 1, device=per_step.device) if self.step_weight == 'linear' else \
            torch.ones(n, device=per_step.device)
        if direction == 'backward':
            weight = weight.flip(0)
        value = (per_step * weight).sum() / weight.sum()
        return value / size.mean().clamp_min(1e-12) if self.relative else value


def _shapes(states: Mapping[str, Tensor]) -> str:
    return ', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in states.items())
