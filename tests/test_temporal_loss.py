"""The temporal loss on hidden states of a few numbers, against sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from basicsr.losses import build_loss
from nets import clip, random_gates_, tiny_net
from torch import Tensor

from basicsr_ssl import prune_network
from basicsr_ssl.losses import TemporalStateLoss

# three frames of one clip, one channel, 1 x 2 pixels
STUDENT = {'forward': [[1., 2], [3, 4], [5, 6]], 'backward': [[0., 0], [1, 1], [2, 2]]}
TEACHER = {'forward': [[1., 1], [1, 4], [8, 9]], 'backward': [[3., 3], [1, 1], [2, 4]]}


def states(values: dict[str, list[list[float]]], *directions: str) -> dict[str, Tensor]:
    return {d: torch.tensor(values[d]).view(1, 3, 1, 1, 2) for d in directions or values}


# mean |d| of the frames: forward 0.5, 1, 3; backward 3, 0, 1. Mean d^2: forward 0.5, 2, 9; backward 9, 0, 2.
# Teacher's mean |t|: forward 24/6, backward 14/6; mean t^2: forward 164/6, backward 40/6.
# Late states weigh more: frame 2 forward, frame 0 backward.
BY_HAND: dict[str, tuple[dict[str, Any], float]] = {
    'l1': ({'relative': False}, (4.5 / 3 + 4 / 3) / 2),
    'l1-relative': ({}, (4.5 / 3 / 4 + 4 / 3 / (14 / 6)) / 2),
    'l1-linear': ({'relative': False, 'step_weight': 'linear'},
                  ((0.5 * 1 + 1 * 2 + 3 * 3) / 6 + (3 * 3 + 0 * 2 + 1 * 1) / 6) / 2),
    'l2': ({'norm': 'l2', 'relative': False}, (11.5 / 3 + 11 / 3) / 2),
    'l2-relative': ({'norm': 'l2'}, (11.5 / 3 / (164 / 6) + 11 / 3 / (40 / 6)) / 2),
    'l2-linear-relative': ({'norm': 'l2', 'step_weight': 'linear'},
                           ((0.5 + 4 + 27) / 6 / (164 / 6) + (27 + 2) / 6 / (40 / 6)) / 2),
    'weight': ({'relative': False, 'loss_weight': 0.25}, 0.25 * (4.5 / 3 + 4 / 3) / 2),
    'charbonnier': ({'norm': 'charbonnier', 'relative': False, 'eps': 1.0},
                    ((1 + 2**0.5 + 5**0.5 + 1 + 10**0.5 + 10**0.5) / 6
                     + (10**0.5 + 10**0.5 + 1 + 1 + 1 + 5**0.5) / 6) / 2),
    'charbonnier-relative': ({'norm': 'charbonnier', 'eps': 1.0},
                             ((2 + 2**0.5 + 5**0.5 + 2 * 10**0.5) / 24 + (3 + 5**0.5 + 2 * 10**0.5) / 14) / 2),
}


@pytest.mark.parametrize(('options', 'expected'), BY_HAND.values(), ids=BY_HAND)
def test_by_hand(options: dict[str, Any], expected: float) -> None:
    assert float(TemporalStateLoss(**options)(states(STUDENT), states(TEACHER))) == pytest.approx(expected, rel=1e-6)


def test_a_unidirectional_network_has_one_direction() -> None:
    loss = TemporalStateLoss(relative=False)(states(STUDENT, 'forward'), states(TEACHER, 'forward'))
    assert float(loss) == pytest.approx(1.5)


def test_equal_states_cost_nothing() -> None:
    assert float(TemporalStateLoss()(states(TEACHER), states(TEACHER))) == 0
    silent = {'forward': torch.zeros(1, 2, 1, 3, 3)}  # nothing to be relative to
    assert float(TemporalStateLoss()(silent, silent)) == 0


def test_relative_does_not_depend_on_the_scale_of_the_features() -> None:
    for norm in ('l1', 'l2'):
        loss = TemporalStateLoss(norm=norm)
        plain, scaled = (loss({d: k * s for d, s in states(STUDENT).items()},
                              {d: k * s for d, s in states(TEACHER).items()}) for k in (1, 50))
        assert float(plain) == pytest.approx(float(scaled), rel=1e-6)


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    student, teacher = ({d: s.requires_grad_() for d, s in states(v).items()} for v in (STUDENT, TEACHER))
    TemporalStateLoss(relative=False, norm='l2')(student, teacher).backward()
    assert all(s.grad is None for s in teacher.values())
    for direction, s in student.items():  # 2 d / (2 directions * 6 numbers)
        torch.testing.assert_close(s.grad, (s - teacher[direction]).detach() / 6)


def test_half_precision_states_are_compared_in_float32() -> None:
    student, teacher = ({d: s.bfloat16() for d, s in states(v).items()} for v in (STUDENT, TEACHER))
    loss = TemporalStateLoss(relative=False)(student, teacher)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx((4.5 / 3 + 4 / 3) / 2, rel=1e-6)


def test_a_compact_network_and_its_dense_teacher_fit() -> None:
    gated = tiny_net(gated=True)
    random_gates_(gated)
    compact, x = prune_network(gated, 0.5), clip()
    with torch.no_grad():
        teacher = gated(x, return_states=True)[1]
    loss = TemporalStateLoss()(compact(x, return_states=True)[1], teacher)
    assert 0 < float(loss.detach()) < 10
    loss.backward()
    assert compact.get_parameter('backward_trunk.main.0.weight').grad is not None


@pytest.mark.parametrize(('student', 'teacher'), [
    (states(STUDENT), states(TEACHER, 'forward')),
    (states(STUDENT), {d: s[:, :2] for d, s in states(TEACHER).items()}),
    (states(STUDENT), {d: s.repeat(1, 1, 2, 1, 1) for d, s in states(TEACHER).items()}),
], ids=['directions', 'frames', 'channels'])
def test_states_that_do_not_match_are_refused(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
    message = r'do not match: forward \(1, 3, 1, 1, 2\), backward .* the dense network that the student was pruned from'
    with pytest.raises(ValueError, match=message):
        TemporalStateLoss()(student, teacher)


@pytest.mark.parametrize(('options', 'message'), [
    ({'norm': 'huber'}, "norm must be l1, l2 or charbonnier, got 'huber'"),
    ({'step_weight': 'late'}, "step_weight must be uniform or linear, got 'late'"),
], ids=['norm', 'step_weight'])
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemporalStateLoss(**options)


def test_the_loss_is_in_basicsrs_registry() -> None:
    loss = build_loss({'type': 'TemporalStateLoss', 'loss_weight': 0.5, 'norm': 'l2'})
    assert isinstance(loss, TemporalStateLoss) and (loss.loss_weight, loss.norm) == (0.5, 'l2')
