"""Growing L2: its factor by a table, its gradient by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import clip, random_gates_, tiny_net
from torch.nn import Parameter

from basicsr_ssl.methods import SSL
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.regularizers import GrowingL2, add_penalty_, selected_masks


@pytest.mark.parametrize(('step', 'factor'), [
    (-3, 0), (0, 0), (1, 0), (4, 0), (5, 1e-4), (9, 1e-4), (10, 2e-4), (2500, 0.05), (4994, 0.0998), (4999, 0.0999),
    (5000, 0.1), (5004, 0.1), (19000, 0.1),
])
def test_the_factor_of_the_paper(step: int, factor: float) -> None:
    assert GrowingL2().factor(step) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(('step', 'factor'), [(0, 0), (1, 0.25), (2, 0.5), (3, 0.6), (4, 0.6)])
def test_the_ceiling_is_not_exceeded(step: int, factor: float) -> None:
    assert GrowingL2(interval=1, delta=0.25, ceiling=0.6).factor(step) == factor


GROUPS = [Group('in', 3, (Slice('w', 1, gate='gate_in'),)),
          Group('out', 4, (Slice('w', 0, gate='gate'), Slice('b', 0, gate='gate')))]
KEPT = {'in': [0, 1], 'out': [1, 3]}


def test_masks_are_true_for_what_is_to_be_removed() -> None:
    masks = selected_masks(GROUPS, KEPT)
    assert {name: mask.tolist() for name, mask in masks.items()} == \
        {'gate_in': [False, False, True], 'gate': [True, False, True, False]}
    aligned = Group('stream', 2, tuple(Slice(f'{layer}.weight', 0, gate=f'{layer}.gate') for layer in 'abc'))
    masks = selected_masks([aligned], {'stream': [1]})
    assert {name: mask.tolist() for name, mask in masks.items()} == {f'{layer}.gate': [True, False] for layer in 'abc'}


def test_five_steps_of_sgd_on_two_gate_vectors_by_hand() -> None:
    gates = {'gate': Parameter(torch.tensor([1., 2, -3, 4], dtype=torch.float64)),
             'gate_in': Parameter(torch.tensor([5., 6, 7], dtype=torch.float64))}
    by_hand = {'gate': [1., 2, -3, 4], 'gate_in': [5., 6, 7]}
    schedule, masks, lr = GrowingL2(interval=2, delta=0.1, ceiling=0.15), selected_masks(GROUPS, KEPT), 0.5
    optimizer = torch.optim.SGD(gates.values(), lr=lr)
    for step, factor in zip(range(1, 6), (0, 0.1, 0.1, 0.15, 0.15)):
        optimizer.zero_grad()
        (gates['gate'].sum() - 2 * gates['gate_in'].sum()).backward()
        add_penalty_(gates, masks, schedule.factor(step))
        optimizer.step()
        for name, slope, chosen in (('gate', 1, (0, 2)), ('gate_in', -2, (2,))):
            by_hand[name] = [g - lr * (slope + (factor * g if unit in chosen else 0))
                             for unit, g in enumerate(by_hand[name])]
    for name, expected in by_hand.items():
        assert gates[name].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_gate_without_gradient_gets_the_penalty_alone() -> None:
    gate = Parameter(torch.tensor([2., -4]))
    add_penalty_({'g': gate}, {'g': torch.tensor([False, True])}, 0.25)
    assert gate.grad is not None and gate.grad.tolist() == [0, -1]
    add_penalty_({'g': gate}, {'g': torch.tensor([True, False])}, 0.5)
    assert gate.grad.tolist() == [1, -1]
    assert not gate.grad.requires_grad and gate.tolist() == [2, -4]


def test_in_a_network_only_selected_gates_feel_it_each_with_its_own_value() -> None:
    net = tiny_net(gated=True)
    random_gates_(net)
    net(clip(2)).square().mean().backward()
    parameters = dict(net.named_parameters())
    before = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    kept = {group.name: list(range(group.size)) for group in net.groups}
    block = 'backward_trunk.main.2.1'
    kept[f'{block}.in'], kept['upconv1'] = [0, 1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 5, 6, 7]
    add_penalty_(parameters, selected_masks(net.groups, kept), 0.1)
    for name, p in parameters.items():
        change = torch.zeros_like(p)
        if name == f'{block}.conv1.gate_in':
            change[7] = 0.1 * p[7]
        elif name == 'upconv1.gate':
            change[1] = 0.1 * p[1]
        assert p.grad is not None
        torch.testing.assert_close(p.grad, before[name] + change.detach(), rtol=0, atol=1e-7)


def test_the_share_of_gates_at_zero_is_of_those_selected() -> None:
    net: Any = tiny_net(gated=True)
    method = SSL(net, SSL.Options(delta=1.0, interval=1).model_dump(), {})
    net.upconv1.gate.data = torch.tensor([-1.0, 1e-3, -1e-3, *[1.0] * (len(net.upconv1.gate) - 3)])
    assert method.figures(net) == {'penalty': 0.0, 'zero_gates': 0.0}
    method.select({**{group.name: list(range(group.size)) for group in net.groups},
                   'upconv1': list(range(3, len(net.upconv1.gate)))})
    assert method.figures(net)['zero_gates'] == pytest.approx(2 / 3)
