"""Scores of layers with four units, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from nets import random_gates_, tiny_net
from torch import Tensor

from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.scores import score_units

OUT = Group('out', 4, (Slice('one.weight', 0, gate='one.gate'), Slice('one.bias', 0, gate='one.gate'),
                       Slice('next.weight', 1)))
IN = Group('in', 2, (Slice('one.weight', 1, gate='one.gate_in'),))
STATE = {'one.weight': torch.tensor([[1., -3], [0, 4], [-2, 2], [5, 5]]), 'one.bias': torch.full((4,), 100.),
         'next.weight': torch.full((3, 4), 1000.)}
GATES = {'one.gate': torch.tensor([1., -0.5, 2, 0]), 'one.gate_in': torch.tensor([3., -1])}


def values(scores: dict[str, Tensor], name: str) -> list[float]:
    return scores[name].tolist()


def test_l1_is_the_mean_magnitude_of_a_units_own_weights() -> None:
    scores = score_units(STATE, [OUT, IN], 'l1')
    assert values(scores, 'out') == [2, 2, 2, 5]  # neither the bias nor the layer that reads them
    assert values(scores, 'in') == [2, 3.5]
    assert scores['out'].dtype == torch.float64


def test_l2_is_the_root_mean_square() -> None:
    scores = score_units(STATE, [OUT, IN], 'l2')
    assert values(scores, 'out') == pytest.approx([5**0.5, 8**0.5, 2, 5])
    assert values(scores, 'in') == pytest.approx([7.5**0.5, 13.5**0.5])


def test_relative_scores_average_to_one_in_every_group() -> None:
    state = {**STATE, 'small.weight': STATE['one.weight'] / 1000, 'zero.weight': torch.zeros(4, 2)}
    groups = [OUT, *(Group(name, 4, (Slice(f'{name}.weight', 0, gate=f'{name}.gate'),)) for name in ('small', 'zero'))]
    for method in ('l1', 'l2'):
        plain, relative = (score_units(state, groups, method, relative=on) for on in (False, True))
        mean = sum(values(plain, 'out')) / 4
        assert values(relative, 'out') == pytest.approx([score / mean for score in values(plain, 'out')])
        assert values(relative, 'small') == pytest.approx(values(relative, 'out'), rel=1e-6)
        assert values(relative, 'zero') == [0] * 4


def test_gates_and_chance_are_not_made_relative() -> None:
    for method in ('gate', 'random'):
        plain, relative = (score_units({**STATE, **GATES}, [OUT, IN], method, relative=on) for on in (False, True))
        assert all(torch.equal(plain[name], relative[name]) for name in ('out', 'in'))


def test_weights_are_judged_with_their_gates() -> None:
    scores = score_units({**STATE, **GATES}, [OUT, IN], 'l1')
    # [[3, 3], [0, -4], [-6, -2], [15, -5]] times the output gates: [[3, 3], [0, 2], [-12, -4], [0, 0]]
    assert values(scores, 'out') == [3, 1, 8, 0]
    assert values(scores, 'in') == [3.75, 2.25]


def test_gate_is_the_gates_magnitude() -> None:
    scores = score_units({**STATE, **GATES}, [OUT, IN], 'gate')
    assert values(scores, 'out') == [1, 0.5, 2, 0]
    assert values(scores, 'in') == [3, 1]


def test_layers_of_other_kernel_sizes_are_comparable() -> None:
    state = {'wide.weight': torch.full((4, 8, 3, 3), -0.5), 'narrow.weight': torch.full((4, 2, 1, 1), 0.5)}
    groups = [Group(name, 4, (Slice(f'{name}.weight', 0, gate=f'{name}.gate'),)) for name in ('wide', 'narrow')]
    for method in ('l1', 'l2'):
        scores = score_units(state, groups, method)
        assert values(scores, 'wide') == values(scores, 'narrow') == [0.5] * 4


def test_pixel_shuffle_units_are_judged_by_their_four_filters() -> None:
    state = {'up.weight': torch.arange(8.)[:, None], 'up.bias': torch.zeros(8)}
    group = Group('up', 2, (Slice('up.weight', 0, 4, gate='up.gate'), Slice('up.bias', 0, 4, gate='up.gate')))
    assert values(score_units(state, [group], 'l1'), 'up') == [1.5, 5.5]


def test_random_depends_on_the_seed_alone() -> None:
    first, again, other = (score_units(STATE, [OUT, IN], 'random', seed) for seed in (1, 1, 2))
    torch.rand(5)
    assert values(first, 'out') == values(again, 'out') != values(other, 'out')
    assert len(set(values(first, 'out') + values(first, 'in'))) == 6


def test_every_group_of_a_network_is_scored() -> None:
    net = tiny_net(gated=True)
    random_gates_(net)
    for method in ('gate', 'l1', 'l2', 'random'):
        scores = score_units(net.state_dict(), net.groups, method)
        assert {name: len(s) for name, s in scores.items()} == {group.name: group.size for group in net.groups}
        assert all(bool((s > 0).all()) for s in scores.values())
    expected = net.get_parameter('forward_trunk.main.2.1.conv1.gate_in').abs()
    assert torch.equal(score_units(net.state_dict(), net.groups, 'gate')['forward_trunk.main.2.1.in'].float(), expected)


def test_unknown_score() -> None:
    with pytest.raises(ValueError, match="unknown score 'taylor'; choose one of gate, l1, l2, random"):
        score_units(STATE, [OUT], 'taylor')


def test_gate_needs_gates() -> None:
    with pytest.raises(ValueError, match=r"needs a gated network, but one\.gate is missing: run sparsity learning"):
        score_units(STATE, [OUT], 'gate')


def test_gate_needs_gates_that_differ() -> None:
    net = tiny_net(gated=True)
    with pytest.raises(ValueError, match=r"cannot rank units whose gates are all equal.*or score by 'l1'"):
        score_units(net.state_dict(), net.groups, 'gate')


@pytest.mark.parametrize('relative', [False, True], ids=['plain', 'relative'])
@pytest.mark.parametrize('method', ['gate', 'l1', 'l2'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_diverged_network_is_refused(method: str, value: float, relative: bool) -> None:
    state = {**STATE, **GATES, 'one.gate': torch.tensor([1., value, 2, 3])}
    with pytest.raises(ValueError, match=r'group out are not finite .* has diverged'):
        score_units(state, [OUT], method, relative=relative)
