"""Cutting: a network with closed gates and the compact network cut from it are the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import VARIANTS, clip, random_gates_, tiny_net
from torch import Tensor

from basicsr_ssl import count_params, prune_network
from basicsr_ssl.api import choose_units, cut_network, with_gates, without_gates
from basicsr_ssl.nn.blocks import ResidualBlock
from basicsr_ssl.pruning.gates import close_gates, fold_gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.pruning.surgery import cut

RATIOS = (0.1, 0.3, 0.5, 0.9)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gated_net(**args: Any) -> Any:
    """Float64, gates of either sign; wide enough that nine tenths of the units can go."""
    net = tiny_net(**{'num_feat': 12, 'tail_feat': 10, 'gated': True, **args}).double()
    random_gates_(net)
    return net


# ---- the guarantee

@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('scope', ['global', 'local'])
@pytest.mark.parametrize('score', ['gate', 'l1', 'l2', 'random'])
def test_closed_gates_equal_the_compact_network(args: dict[str, Any], ratio: float, scope: str, score: str) -> None:
    gated, x = gated_net(**args), clip(2, 6, 7, dtype=torch.float64)
    kept = choose_units(gated, PruningOptions.of(ratio=ratio, scope=scope, score=score, flow='flow' in args))
    removed = sum(group.size - len(kept[group.name]) for group in gated.groups)
    assert abs(removed - ratio * sum(group.size for group in gated.groups)) <= len(gated.groups) / 2
    compact = cut_network(gated, kept)
    gated.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
    with torch.no_grad():
        torch.testing.assert_close(compact(x), gated(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('budget', ['params', 'macs'])
def test_the_guarantee_holds_with_flow_budgets_and_rounding(budget: str) -> None:
    gated, x = gated_net(flow='spynet'), clip(3, dtype=torch.float64)
    kept = choose_units(gated, PruningOptions.of(ratio=0.6, budget=budget, score='l1', round_to=4))
    compact = cut_network(gated, kept)
    gated.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
    with torch.no_grad():
        out, states = compact(x, return_states=True)
        expected, expected_states = gated(x, return_states=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for direction in ('backward', 'forward'):
        torch.testing.assert_close(states[direction], expected_states[direction], rtol=0, atol=1e-10)


def test_a_compact_network_is_plain() -> None:
    compact = prune_network(gated_net(), 0.5)
    assert compact.spec.form == 'compact'  # type: ignore[union-attr]
    assert {type(module) for module in compact.modules() if isinstance(module, torch.nn.Conv2d)} == {torch.nn.Conv2d}
    assert not any('gate' in name for name in compact.state_dict())
    assert sum(p.numel() for p in compact.parameters()) == count_params(compact)


# ---- cutting by hand

def test_cut_removes_rows_bias_entries_and_the_columns_that_read_them() -> None:
    state = {'one.weight': numbers(4, 2, 3, 3), 'one.bias': numbers(4), 'two.weight': numbers(5, 4, 1, 1, seed=1),
             'two.bias': numbers(5, seed=2)}
    group = Group('one', 4, (Slice('one.weight', 0), Slice('one.bias', 0), Slice('two.weight', 1)))
    new, spec = cut(state, Spec('Any'), [group], {'one': [3, 1]})
    assert torch.equal(new['one.weight'], torch.stack((state['one.weight'][1], state['one.weight'][3])))
    assert torch.equal(new['one.bias'], torch.stack((state['one.bias'][1], state['one.bias'][3])))
    assert torch.equal(new['two.weight'], torch.cat((state['two.weight'][:, 1:2], state['two.weight'][:, 3:]), 1))
    assert torch.equal(new['two.bias'], state['two.bias'])
    assert new['two.bias'].data_ptr() != state['two.bias'].data_ptr()  # what is kept whole is a copy too
    assert spec == Spec('Any', widths={'one': 2})


def test_pixel_shuffle_groups_lose_four_filters_and_keep_whole_channels() -> None:
    state = {'up.weight': numbers(12, 2, 3, 3), 'up.bias': numbers(12), 'next.weight': numbers(5, 3, 1, 1)}
    group = Group('up', 3, (Slice('up.weight', 0, 4), Slice('up.bias', 0, 4), Slice('next.weight', 1)))
    new, _ = cut(state, Spec('Any'), [group], {'up': [0, 2]})
    assert torch.equal(new['up.weight'], state['up.weight'][[0, 1, 2, 3, 8, 9, 10, 11]])
    assert torch.equal(new['up.bias'], state['up.bias'][[0, 1, 2, 3, 8, 9, 10, 11]])
    assert torch.equal(new['next.weight'], state['next.weight'][:, [0, 2]])
    x = numbers(1, 2, 4, 4)
    full, narrow = (torch.pixel_shuffle(torch.conv2d(x, s['up.weight'], s['up.bias'], padding=1), 2)
                    for s in (state, new))
    torch.testing.assert_close(narrow, full[:, [0, 2]], rtol=0, atol=1e-12)


def test_packed_heads_are_three_slices_of_one_parameter() -> None:
    # four heads of two channels: q in rows 0..7, k in 8..15, v in 16..23
    state = {'qkv.weight': torch.arange(24.)[:, None] * torch.ones(1, 3), 'qkv.bias': torch.arange(24.),
             'proj.weight': torch.ones(3, 1) * torch.arange(8.)}
    heads = Group('heads', 4, (*(Slice(f'qkv.{part}', 0, 2, offset) for part in ('weight', 'bias')
                                 for offset in (0, 8, 16)), Slice('proj.weight', 1, 2)))
    new, spec = cut(state, Spec('Any'), [heads], {'heads': [0, 3]})
    rows = torch.tensor([0., 1, 6, 7, 8, 9, 14, 15, 16, 17, 22, 23])
    assert torch.equal(new['qkv.bias'], rows)
    assert torch.equal(new['qkv.weight'], rows[:, None].expand(12, 3))
    assert torch.equal(new['proj.weight'], torch.tensor([0., 1, 6, 7]).expand(3, 4))
    assert spec.widths == {'heads': 2}


def test_the_halves_of_a_concatenation_are_cut_together() -> None:
    state = {'a.weight': torch.arange(4.)[:, None], 'b.weight': 10 + torch.arange(4.)[:, None],
             'fuse.weight': torch.arange(8.)[None].repeat(2, 1)}
    a = Group('a', 4, (Slice('a.weight', 0), Slice('fuse.weight', 1)))
    b = Group('b', 4, (Slice('b.weight', 0), Slice('fuse.weight', 1, offset=4)))
    for groups in ([a, b], [b, a]):  # whichever comes first, offsets refer to the uncut parameter
        new, _ = cut(state, Spec('Any'), groups, {'a': [0, 3], 'b': [1]})
        assert torch.equal(new['a.weight'], torch.tensor([[0.], [3.]]))
        assert torch.equal(new['b.weight'], torch.tensor([[11.]]))
        assert torch.equal(new['fuse.weight'], torch.tensor([[0., 3., 5.]] * 2))


def test_one_group_over_an_aligned_stream_cuts_every_layer_alike() -> None:
    state = {f'{name}.weight': numbers(4, 4, seed=i) for i, name in enumerate(('head', 'body', 'tail'))}
    stream = Group('stream', 4, (Slice('head.weight', 0), Slice('body.weight', 0), Slice('body.weight', 1),
                                 Slice('tail.weight', 1)))
    new, _ = cut(state, Spec('Any'), [stream], {'stream': [0, 2]})
    assert torch.equal(new['body.weight'], state['body.weight'][[0, 2]][:, [0, 2]])
    assert torch.equal(new['head.weight'], state['head.weight'][[0, 2]])
    assert torch.equal(new['tail.weight'], state['tail.weight'][:, [0, 2]])


def test_index_keeps_the_channels_of_the_full_layer() -> None:
    state = {'one.weight': numbers(3, 4)}
    group = Group('one', 4, (Slice('one.weight', 1),), stream='features')
    state, spec = cut(state, Spec('Any'), [group], {'one': [0, 1, 3]})
    assert spec.index == {'one': [0, 1, 3]}
    smaller = Group('one', 3, group.slices, stream='features')
    again, spec = cut(state, spec, [smaller], {'one': [1, 2]})
    assert spec.index == {'one': [1, 3]} and spec.widths == {'one': 2}
    assert torch.equal(again['one.weight'], state['one.weight'][:, 1:])


@pytest.mark.parametrize(('kept', 'message'), [
    ({'two': [0]}, 'kept names groups that the network does not have: two'),
    ({'one': []}, 'group one would be left without units'),
    ({'one': [0, 4]}, r'group one: kept units must be distinct and within 0\.\.3, got \[0, 4\]'),
    ({'one': [-1]}, r'within 0\.\.3'),
    ({'one': [1, 1]}, 'distinct'),
], ids=['unknown', 'empty', 'too-large', 'negative', 'twice'])
def test_impossible_selections_are_refused(kept: dict[str, list[int]], message: str) -> None:
    group = Group('one', 4, (Slice('one.weight', 0),))
    with pytest.raises(ValueError, match=message):
        cut({'one.weight': numbers(4, 2)}, Spec('Any'), [group], kept)


@pytest.mark.parametrize('gated', [True, False], ids=['gated', 'dense'])
@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_cutting_twice_equals_cutting_once(args: dict[str, Any], gated: bool) -> None:
    net = gated_net(**{**args, 'gated': gated})
    first = choose_units(net, PruningOptions.of(ratio=0.3, score='l1'))
    generator = torch.Generator().manual_seed(0)
    second = {name: torch.randperm(len(units), generator=generator)[:1 + len(units) // 2].sort().values.tolist()
              for name, units in first.items()}
    twice = cut_network(cut_network(net, first), second)
    once = cut_network(net, {name: [units[u] for u in second[name]] for name, units in first.items()})
    assert twice.spec == once.spec
    assert twice.state_dict().keys() == once.state_dict().keys()
    for name, tensor in once.state_dict().items():
        # gates multiplied in before or after the first cut: the same products
        assert torch.equal(twice.state_dict()[name], tensor), name


def test_cutting_nothing_gives_the_dense_network() -> None:
    dense = gated_net(gated=False)
    same = cut_network(dense, {})
    assert same.spec == dense.spec
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in dense.state_dict().items())


# ---- the Residual Sparsity Connection

@pytest.mark.parametrize(('inputs', 'outputs'), [
    ([0, 2, 5], [1, 4]), ([2, 3, 4], [0, 1]), ([5], [5]), (None, [0, 3]), ([1, 3], None), (None, None),
], ids=['scattered', 'consecutive', 'single', 'all-read', 'all-written', 'dense'])
@pytest.mark.parametrize('grad', [True, False], ids=['with-gradients', 'without'])
@pytest.mark.parametrize('in_place', [False, True], ids=['pure', 'in-place'])
def test_block_gathers_convolves_and_scatters(inputs: list[int] | None, outputs: list[int] | None, in_place: bool,
                                              grad: bool) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(6, 4, inputs, outputs).double()
    x = numbers(2, 6, 5, 5)

    gathered = torch.stack([x[:, channel] for channel in (inputs or range(6))], 1)
    inner = torch.conv2d(gathered, block.conv1.weight, block.conv1.bias, padding=1).clamp_min(0)
    change = torch.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
    expected = x.clone()
    for position, channel in enumerate(outputs or range(6)):
        expected[:, channel] += change[:, position].detach()

    with torch.set_grad_enabled(grad):
        given = x.clone()
        result = block.update_(given) if in_place else block(given)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert (result is given) == in_place and torch.equal(given, x) != in_place


# ---- gates

def test_fold_gates_by_hand() -> None:
    state = {'one.weight': torch.ones(4, 2), 'one.bias': torch.ones(4), 'one.gate': torch.tensor([2., -3.]),
             'one.gate_in': torch.tensor([10., 100.]), 'other': torch.ones(2)}
    groups = [Group('out', 2, (Slice('one.weight', 0, 2, gate='one.gate'), Slice('one.bias', 0, 2, gate='one.gate'))),
              Group('in', 2, (Slice('one.weight', 1, gate='one.gate_in'),))]
    folded = fold_gates(state, groups)
    assert folded.keys() == {'one.weight', 'one.bias', 'other'}
    assert torch.equal(folded['one.weight'], torch.tensor([[20., 200], [20, 200], [-30, -300], [-30, -300]]))
    assert torch.equal(folded['one.bias'], torch.tensor([2., 2, -3, -3]))
    assert torch.equal(state['one.weight'], torch.ones(4, 2))
    assert fold_gates(folded, groups).keys() == folded.keys()


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_folding_keeps_the_function(args: dict[str, Any]) -> None:
    gated, x = gated_net(**args), clip(2, 6, 7, dtype=torch.float64)
    plain = without_gates(gated)
    assert plain.spec.form == 'dense'  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(plain(x), gated(x), rtol=0, atol=1e-10)


def test_closing_a_gate_silences_infinite_and_undefined_ones_too() -> None:
    group = Group('one', 4, (Slice('one.weight', 0, gate='one.gate'),))
    state = {'one.weight': torch.ones(4, 1), 'one.gate': torch.tensor([float('inf'), 2., float('nan'), 3.])}
    closed = close_gates(state, [group], {'one': [1]})
    assert closed['one.gate'].tolist() == [0, 2, 0, 0]
    assert state['one.gate'][3] == 3


def test_gates_cannot_be_added_to_a_compact_network() -> None:
    with pytest.raises(ValueError, match='already compact'):
        with_gates(prune_network(gated_net(), 0.3))


# ---- the Python interface

@pytest.mark.parametrize('gated', [True, False], ids=['gated', 'dense'])
def test_prune_network_leaves_its_input_unchanged(gated: bool) -> None:
    net = gated_net(gated=gated, flow='spynet').train()
    before, described = {name: tensor.clone() for name, tensor in net.state_dict().items()}, net.spec.to_json()
    small = prune_network(net, 0.5, score='l1')
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert net.spec.to_json() == described
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert small.training and not prune_network(net.eval(), 0.5, score='l1').training


def test_prune_network_keeps_the_type_of_the_weights() -> None:
    for convert in (prune_network, lambda net, _: without_gates(net), lambda net, _: with_gates(net)):
        assert {p.dtype for p in convert(gated_net(), 0.5).parameters()} == {torch.float64}


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'ratio': 1.0}, r'ratio: .*at least 0 and below 1; got 1'),
    ({'ratio': -0.1}, r'ratio: .*at least 0 and below 1; got -0\.1'),
    ({'ratio': 0.5, 'budget': 'time'}, "budget: .* should be 'units', 'params', 'macs' or 'latency', got 'time'"),
    ({'ratio': 0.5, 'score': 'magic'}, "score: .* 'gate', 'l1', 'l2' or 'random', got 'magic'"),
    ({'ratio': 0.5, 'scope': 'layer'}, "scope: .* 'global' or 'local', got 'layer'"),
    ({'ratio': 0.5, 'round_to': 0}, 'round_to: .* greater than or equal to 1, got 0'),
    ({'ratio': 0.5, 'scop': 'local'}, "scop: Extra inputs are not permitted"),
    ({'ratio': 0.999, 'budget': 'macs'}, r'ratio 0\.999 cannot be reached'),
], ids=['whole', 'negative', 'budget', 'score', 'scope', 'round_to', 'misspelt', 'unreachable'])
def test_prune_network_names_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_network(gated_net(), **arguments)


def test_a_network_of_another_package_is_refused() -> None:
    with pytest.raises(TypeError, match=r'Conv2d .*use a network of basicsr_ssl'):
        prune_network(torch.nn.Conv2d(3, 3, 3), 0.5)


def test_a_network_without_groups_has_nothing_to_prune() -> None:
    from basicsr_ssl import load_network
    with pytest.raises(ValueError, match='BicubicUpsampler has nothing to prune'):
        prune_network(load_network('bicubic'), 0.5)
