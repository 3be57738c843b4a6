"""Plans: networks that run otherwise and compute the same; windows of channels that can stand side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from clips import write_noise
from nets import clip, tiny_net
from torch import Tensor

import basicsr_ssl
from basicsr_ssl import count_macs, prune_network
from basicsr_ssl.api import choose_units, cut_network, with_gates
from basicsr_ssl.archs import BicubicUpsampler, PrunableEDSR
from basicsr_ssl.cli import main
from basicsr_ssl.config import load_options
from basicsr_ssl.plans import planner, profile
from basicsr_ssl.plans.plan import Plan, apply_plan
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.layout import is_run, runs, seriate
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.rewrites import reorder, widen
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.report import recipe
from basicsr_ssl.runtime import Processes, Run
from basicsr_ssl.test import test as run_test

NETS: dict[str, Callable[[], Any]] = {
    'bi, x4': lambda: tiny_net(num_feat=9, tail_feat=6),
    'uni, x2': lambda: tiny_net(num_feat=9, scale=2, bidirectional=False),
    'flow': lambda: tiny_net(num_feat=9, flow='spynet_small'),
    'EDSR': lambda: PrunableEDSR(num_feat=9, num_block=2, scale=2),
    'EDSR, long skips': lambda: PrunableEDSR(num_feat=8, num_block=1, num_group=2, scale=3, res_scale=0.5),
    'EDSR, aligned': lambda: PrunableEDSR(num_feat=9, num_block=2, scale=2, residual='aligned'),
}
ANY_NET = pytest.mark.parametrize('make', NETS.values(), ids=NETS)
PROPERTY = hypothesis.settings(deadline=None, derandomize=True, max_examples=12,
                               suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])


def compact(make: Callable[[], Any], ratio: float = 0.5, seed: int = 0, **settings: Any) -> Any:
    """Random widths, float64, weights with which every unit counts."""
    torch.manual_seed(seed)
    net = make().double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return prune_network(net, ratio, score='random', seed=seed, **settings)


def same(one: Any, other: Any) -> None:
    """In everything by which a network is run."""
    video = one.task == 'clip'
    x = clip(3, 7, 6, dtype=torch.float64) if video else clip(1, 7, 6, dtype=torch.float64)[0]
    with torch.no_grad():
        expected = one(x)
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-10)
        frames = x.unbind(1) if video else [x]
        streamed = torch.stack(list(other.stream(iter(frames))), 1) if video else next(iter(other.stream(frames)))
        torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-10)


def full(net: Any) -> dict[str, int]:
    return net.full_widths(net.spec.args)


# ---- rewrites

@ANY_NET
@PROPERTY
@hypothesis.given(seed=st.integers(0, 999), ratio=st.sampled_from([0.0, 0.3, 0.6]),
                  draw=st.randoms(use_true_random=False))
def test_streams_in_another_order(make: Callable[[], Any], seed: int, ratio: float, draw: Any) -> None:
    net = compact(make, ratio, seed)
    streams = net.stream_table(net.spec.args)
    orders = {name: draw.sample(range(net.spec.args['num_feat']), net.spec.args['num_feat']) for name in streams}
    state, spec = reorder(net.state_dict(), net.spec, net.groups, streams, orders)
    other = type(net)(**spec.build_arguments()).double().eval()
    other.load_state_dict(state)
    same(net, other)
    if hasattr(net, 'hidden_states'):  # these are in that order too
        x = clip(3, 7, 6, dtype=torch.float64)
        for direction, states in other.hidden_states(x).items():
            expected = net.hidden_states(x)[direction][:, :, orders[f'{direction}_trunk']]
            torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)
    for name, channels in net.spec.index.items():
        order = orders[next(group.stream for group in net.groups if group.name == name)]
        assert {order[place] for place in spec.index[name]} == set(channels)


@ANY_NET
@PROPERTY
@hypothesis.given(seed=st.integers(0, 999), draw=st.randoms(use_true_random=False))
def test_units_of_zeros(make: Callable[[], Any], seed: int, draw: Any) -> None:
    net = compact(make, 0.6, seed)
    units: dict[str, Any] = {}
    for group in net.groups:
        size = full(net)[group.name]
        wanted = draw.randint(group.size, size)
        if group.stream and group.size < size:
            own = set(net.spec.index[group.name])
            units[group.name] = sorted({*own, *draw.sample(sorted(set(range(size)) - own), wanted - group.size)})
        elif not group.stream:
            units[group.name] = wanted
    hypothesis.assume(units)
    state, spec = widen(net.state_dict(), net.spec, net.groups, full(net), units)
    other = type(net)(**spec.build_arguments()).double().eval()
    other.load_state_dict(state)
    assert other.spec == spec
    sizes = {name: wanted if isinstance(wanted, int) else len(wanted) for name, wanted in units.items()}
    assert all(group.size == sizes.get(group.name, group.size) for group in other.groups)
    same(net, other)
    # cutting the units of zeros leads back
    kept = {group.name: list(range(group.size)) if isinstance(units.get(group.name, 0), int) else
            [units[group.name].index(channel) for channel in net.spec.index[group.name]] for group in net.groups}
    again = cut_network(other, kept)
    assert again.spec == net.spec  # type: ignore[comparison-overlap]
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_widening_parameters_that_several_groups_share() -> None:
    state = {'qkv.weight': torch.arange(12.).view(6, 2)}
    one = Group('one', 2, (Slice('qkv.weight', 0), Slice('qkv.weight', 0, offset=4)))
    two = Group('two', 1, (Slice('qkv.weight', 0, repeat=2, offset=2), Slice('qkv.weight', 1, repeat=2)))
    new, spec = widen(state, Spec('Any', widths={'one': 2, 'two': 1}), [one, two], {'one': 3, 'two': 9},
                      {'one': 3, 'two': 2})
    zero = [0., 0., 0., 0.]
    assert new['qkv.weight'].tolist() == [[0., 1., 0., 0.], [2., 3., 0., 0.], zero, [4., 5., 0., 0.], [6., 7., 0., 0.],
                                          zero, zero, [8., 9., 0., 0.], [10., 11., 0., 0.], zero]
    assert spec.widths == {'two': 2}  # the other is full


def test_rewrites_refuse_what_does_not_fit() -> None:
    net = compact(NETS['bi, x4'])
    state, spec, groups, streams = net.state_dict(), net.spec, net.groups, net.stream_table(net.spec.args)
    with pytest.raises(ValueError, match="there is no stream 'body'; known are backward_trunk, forward_trunk"):
        reorder(state, spec, groups, streams, {'body': [0]})
    for order in ([0, 1], [0] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        with pytest.raises(ValueError, match='the order of forward_trunk must name each of its 9 channels once'):
            reorder(state, spec, groups, streams, {'forward_trunk': order})
    name = next(iter(spec.index))
    own = next(group for group in groups if not group.stream and 1 < group.size < full(net)[group.name])
    for units in ({name: full(net)[name]}, {name: spec.index[name][1:]}, {own.name: own.size - 1},
                  {own.name: full(net)[own.name] + 1}, {own.name: list(range(own.size))}):
        with pytest.raises(ValueError, match=r'keeps its \d units and gets others, at most \d in all, '):
            widen(state, spec, groups, full(net), units)
    with pytest.raises(ValueError, match="there is no group 'body'"):
        widen(state, spec, groups, full(net), {'body': 3})
    norm = Group('norm', 2, (Slice('norm.weight', 0),), normalised=True)
    with pytest.raises(ValueError, match='norm passes through a norm over channels'):
        widen({'norm.weight': torch.ones(2)}, Spec('Any'), [norm], {'norm': 4}, {'norm': 3})
    gated: Any = with_gates(tiny_net())
    for rewrite in (lambda: reorder(gated.state_dict(), gated.spec, gated.groups, {}, {}),
                    lambda: widen(gated.state_dict(), gated.spec, gated.groups, {}, {})):
        with pytest.raises(ValueError, match='fold the gates into the weights first'):
            rewrite()


# ---- channels side by side

@hypothesis.settings(PROPERTY, max_examples=100)
@hypothesis.given(st.integers(1, 20), st.integers(1, 25), st.randoms(use_true_random=False))
def test_an_order_in_which_sets_stand_side_by_side_is_found(size: int, number: int, draw: Any) -> None:
    hidden = draw.sample(range(size), size)
    sets = []
    for _ in range(number):
        start = draw.randint(0, size - 1)
        sets.append(sorted(hidden[start:draw.randint(start + 1, size)]))
    order = seriate(sets, size)
    assert sorted(order) == list(range(size))
    assert all(is_run(sorted(order.index(channel) for channel in channels)) for channels in sets)


def test_sets_for_which_there_is_no_such_order_stand_as_near_as_can_be() -> None:
    assert seriate([], 3) == [0, 1, 2]
    order = seriate([[0, 4], [4, 2], [2, 1], [1, 3], [1, 3, 0]], 6)  # a ring, but for 5
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    spans = [max(map(order.index, channels)) - min(map(order.index, channels))
             for channels in ([0, 4], [4, 2], [2, 1], [1, 3])]
    assert sum(spans) <= 7


def exhaustive(values: Tensor, widths: list[int]) -> float:
    """What the windows of the best of all orders hold."""
    return max(sum(max(sum(float(row[c]) for c in order[start:start + width])
                       for start in range(len(order) - width + 1)) for row, width in zip(values, widths))
               for order in itertools.permutations(range(values.shape[1])))


@pytest.mark.parametrize('seed', range(6))
def test_windows_hold_the_greatest_scores(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(4, 6, dtype=torch.float64, generator=generator)
    widths = torch.randint(1, 7, (4,), generator=generator).tolist()
    groups = [Group(f'{i}', 6, (Slice(f'{i}', 0),), 'features') for i in range(4)]
    groups.append(Group('own', 3, (Slice('own', 0),)))
    scores = {f'{i}': row for i, row in enumerate(values)} | {'own': torch.rand(3)}
    kept = {f'{i}': list(range(width)) for i, width in enumerate(widths)} | {'own': [0, 2]}
    chosen = runs(groups, scores, kept, {})
    assert {name: len(units) for name, units in chosen.items()} == {name: len(units) for name, units in kept.items()}
    assert chosen['own'] == [0, 2] and all(units == sorted(set(units)) for units in chosen.values())
    order = seriate([chosen[f'{i}'] for i in range(4)], 6)
    assert all(is_run(sorted(order.index(unit) for unit in chosen[f'{i}'])) for i in range(4))
    held = sum(float(values[i, chosen[f'{i}']].sum()) for i in range(4))
    best = exhaustive(values, widths)
    assert 0.95 * best <= held <= best + 1e-9


def test_streams_are_ordered_apart_and_compact_groups_by_their_channels() -> None:
    groups = [Group('a', 3, (Slice('a', 0),), 'one'), Group('b', 2, (Slice('b', 0),), 'two')]
    scores = {'a': torch.tensor([3., 1., 2.]), 'b': torch.tensor([1., 2.])}
    assert runs(groups, scores, {'a': [0, 1], 'b': [0]}, {'a': [1, 4, 7], 'b': [0, 9]}) == {'a': [0, 2], 'b': [1]}


@pytest.mark.parametrize('make', [NETS['bi, x4'], NETS['EDSR'], NETS['EDSR, long skips']])
def test_pruning_in_runs(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net = make()
    settings = {'ratio': 0.5, 'budget': 'macs', 'score': 'l1', 'lr_size': [8, 8]}
    free, side = (prune_network(net, **settings, layout=layout) for layout in ('free', 'runs'))
    assert free.spec.widths == side.spec.widths and count_macs(free) == count_macs(side)  # type: ignore[union-attr]
    assert free.spec.index != side.spec.index  # type: ignore[union-attr]
    scores = score_units(net.state_dict(), net.groups, 'l1')
    chosen = choose_units(net, PruningOptions.of(**settings, layout='runs'))
    assert all(chosen[name] == list(units) for name, units in side.spec.index.items())  # type: ignore[union-attr]
    for group in net.groups:
        if not group.stream:
            best = scores[group.name].topk(len(chosen[group.name])).indices
            assert set(chosen[group.name]) == set(best.tolist())
    for stream, order in planner._orders(side).items():
        assert all(is_run(sorted(order.index(c) for c in side.spec.index[group.name]))  # type: ignore[union-attr]
                   for group in net.groups if group.stream == stream and group.name in side.spec.index)


# ---- plans

@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Instead of the clock: by the beginning of a form's or a plan's label, its milliseconds; 5 for others."""
    told: dict[str, float] = {}

    def least(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
        for run in runs.values():
            run()
        return {label: min((ms for start, ms in told.items() if label.startswith(start)), default=5.0)
                for label in runs}

    monkeypatch.setattr(planner, 'least_ms', least)
    return told


@ANY_NET
@pytest.mark.parametrize('fastest', ['as it is', 'channels_last', 'ordered', 'channels_last, ordered, blocks, widths'])
def test_what_measures_fastest_is_planned_and_computes_the_same(make: Callable[[], Any], fastest: str,
                                                                clock: dict[str, float]) -> None:
    net = compact(make, 0.5, round_to=1)
    clock |= {fastest: 1.0, 'span': 2.0, 'filled': 2.0}
    plan = planner.make_plan(net, (12, 10))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    planned: Any = apply_plan(net, plan)
    if fastest in plan.figures['ms']:
        assert plan.figures['chosen'].startswith(fastest)
    same(net, planned)
    assert not planned.training
    assert planned.conv_last.weight.is_contiguous(memory_format=torch.channels_last) or not plan.channels_last


def test_blocks_read_and_write_what_measured_fastest(clock: dict[str, float]) -> None:
    net = compact(lambda: tiny_net(num_feat=9, num_block=6, scale=2, bidirectional=False), 0.5)
    clock |= {'span': 1.0, 'channels_last, ordered, blocks': 1.0}
    plan = planner.make_plan(net, (12, 10))
    assert plan.channels_last and plan.figures['chosen'].startswith('channels_last, ordered, blocks')
    planned: Any = apply_plan(net, plan)
    scattered = {name for name, channels in net.spec.index.items() if not is_run(
        sorted(plan.orders['forward_trunk'].index(c) for c in channels))}
    assert scattered
    for name in scattered:
        assert is_run(planned.spec.index.get(name, range(9))) and name in plan.units
    assert {name.split(',')[0] for block in plan.figures['blocks'].values() for name in block}
    same(net, planned)
    clock.clear()
    clock['channels_last, ordered'] = 1.0  # and not if they did not
    assert not [name for name in planner.make_plan(net, (12, 10)).units if name in net.spec.index]


def test_a_plan_that_gains_next_to_nothing_is_none(clock: dict[str, float]) -> None:
    clock |= {'channels_last': 4.95, 'ordered': 4.95}
    assert planner.make_plan(compact(NETS['bi, x4']), (8, 8)).figures['chosen'] == 'as it is'


def test_gates_are_folded(clock: dict[str, float]) -> None:
    net: Any = with_gates(tiny_net().double()).eval()
    for name, parameter in net.named_parameters():
        if 'gate' in name:
            torch.nn.init.normal_(parameter)
    clock['channels_last'] = 1.0
    planned: Any = apply_plan(net, planner.make_plan(net, (8, 8)))
    assert planned.spec.form == 'dense'
    same(net, planned)


def test_a_network_without_weights_has_nothing_to_plan() -> None:
    net = BicubicUpsampler(scale=2)
    x = clip(2, 5, 4)
    assert torch.equal(basicsr_ssl.optimize_network(net, (8, 8))(x), net(x))


# ---- kept plans

def test_a_plan_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, measured = compact(NETS['uni, x2']), []
    make = planner.make_plan

    def counted(*args: Any) -> Plan:
        measured.append((torch.get_num_threads(), *args[1:]))
        return make(*args)

    monkeypatch.setattr(planner, 'make_plan', counted)
    first = basicsr_ssl.optimize_network(net, (8, 8), cache=tmp_path)
    again = basicsr_ssl.optimize_network(net, (8, 8), cache=tmp_path)
    assert measured == [(1, (8, 8))]
    same(net, first)
    same(net, again)
    file, = tmp_path.glob('plan_*.json')
    assert set(json.loads(file.read_text())) == {'channels_last', 'orders', 'units', 'figures'}
    # whatever stands in the file: it is measured again, and mended
    good = file.read_bytes()
    for damage in (b'', b'{', b'[]', b'{"a": 1}', b'\xff\xfe', b'{"units": {"nowhere": 3}}', good[:-20],
                   b'{"orders": {"forward_trunk": [0]}}', b'{"orders": {"forward_trunk": [8,7,6,5,4,3,2,1,1]}}',
                   b'{"units": {"conv_hr": 99}}', b'{"units": 3}', b'{"units": {"conv_hr": "wide"}}'):
        file.write_bytes(damage)
        same(net, basicsr_ssl.optimize_network(net, (8, 8), cache=tmp_path))
        assert len(measured) > 1, damage
        measured[1:] = []
        assert Plan.model_validate_json(file.read_bytes())
    # other sizes, threads and networks have their own
    basicsr_ssl.optimize_network(net, (8, 9), cache=tmp_path)
    basicsr_ssl.optimize_network(net, (8, 8), threads=2, cache=tmp_path)
    assert torch.get_num_threads() == 1
    basicsr_ssl.optimize_network(compact(NETS['uni, x2'], 0.3), (8, 8), cache=tmp_path)
    assert measured[1:] == [(1, (8, 9)), (2, (8, 8)), (1, (8, 8))]
    assert len(list(tmp_path.glob('*'))) == 4


def test_a_folder_that_cannot_be_written_to_is_no_obstacle(tmp_path: Path, clock: dict[str, float],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'basicsr_ssl').write_text('a file')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    net = compact(NETS['uni, x2'])
    same(net, basicsr_ssl.optimize_network(net, (8, 8)))


@pytest.mark.parametrize('size, threads', [((0, 8), None), ((8, -1), None), ((8, 8), 0)])
def test_impossible_sizes(size: tuple[int, int], threads: int | None) -> None:
    with pytest.raises(ValueError, match='lr_size and threads must be at least 1'):
        basicsr_ssl.optimize_network(tiny_net(), size, threads)


def test_large_frames_are_measured_in_part() -> None:
    assert planner.cropped((180, 320)) == (180, 320) and planner.cropped((3, 7)) == (3, 7)
    h, w = planner.cropped((1080, 1920))
    assert 0.95 * planner.MOST_PIXELS < h * w <= planner.MOST_PIXELS and h * 1920 == pytest.approx(w * 1080, rel=0.02)


# ---- profiles

class Ticks:
    """A clock on which every look takes a second more than the one before, so that each interval is told apart."""

    def __init__(self) -> None:
        self.looks, self.now = 0, 0.0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.looks
        return self.now


def test_a_profile_has_all_layers_and_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: dict[str, float],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    net = compact(NETS['flow'], 0.5).float()
    clock['channels_last, ordered, blocks, widths'] = 1.0  # with units of zeros, which do not count
    basicsr_ssl.save_network(net, tmp_path / 'net.safetensors')
    command = ['profile', str(tmp_path / 'net.safetensors'), '--lr-size', '20', '30', '--threads', '1']
    assert main([*command, '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: layer['macs'] for name, layer in told['layers'].items()} == {
        layer.name: round(layer.macs((20, 30))) for layer in net.cost_table}
    assert told['macs'] == pytest.approx(count_macs(net, (20, 30)), rel=1e-6)
    assert sum(layer['ms'] for layer in told['layers'].values()) + told['rest'] == pytest.approx(told['ms'])
    assert all(layer['share'] == pytest.approx(layer['ms'] / told['ms']) for layer in told['layers'].values())
    assert told['plan']['figures']['chosen'] == 'channels_last, ordered, blocks, widths' and told['plan']['units']
    assert (told['lr_size'], told['threads'], told['device']) == ([20, 30], 1, 'cpu')

    assert main(command) == 0
    text = capsys.readouterr().out
    for name in (*told['layers'], 'between the layers', 'the whole', 'milliseconds per LR frame of 20x30, 1 thread'):
        assert name in text
    assert len([line for line in text.splitlines() if line.endswith('| x      |')]) == 1


def test_a_layer_takes_the_time_between_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, 'work_clock', lambda device: Ticks())
    net = tiny_net(num_feat=4, num_block=1, bidirectional=False, scale=2).eval()
    seconds = profile._seconds_by_layer(net, clip(2, 4, 4))
    # a frame's layers, in the order of the forward pass; the clock is looked at before and after each
    order = ['forward_trunk.main.0', 'forward_trunk.main.2.0.conv1', 'forward_trunk.main.2.0.conv2', 'upconv1',
             'conv_hr', 'conv_last']
    assert list(seconds) == order  # the first repeat is the least: 2, 4, ... of the first frame, 14, ... of the second
    assert list(seconds.values()) == [2 * (i + 1) + 2 * (i + 7) for i in range(6)]


def test_what_cannot_be_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['profile', str(tmp_path / 'none.safetensors')]) == 1
    assert 'none.safetensors' in capsys.readouterr().err
    basicsr_ssl.save_network(tiny_net(), tmp_path / 'net.safetensors')
    assert main(['profile', str(tmp_path / 'net.safetensors'), '--lr-size', '0', '30']) == 1
    assert 'lr_size and threads must be at least 1' in capsys.readouterr().err


# ---- tests that run networks as planned

@pytest.mark.parametrize('kind', ['clip', 'image'])
def test_a_test_can_run_the_network_as_planned(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        write_noise(tmp_path / 'clips' / name, ['0.png', '1.png'], (12, 16))
    net = compact(NETS['flow'] if kind == 'clip' else NETS['EDSR']).float()
    with torch.no_grad():
        net.conv_last.weight.mul_(0.01)
    basicsr_ssl.save_network(net, 'net.safetensors')
    opt = {'name': 'tested', 'model_type': 'ReconstructionModel', 'scale': net.scale, 'num_gpu': 0,
           'path': {'pretrain_network_g': 'net.safetensors'},
           'datasets': {'test': {'name': 'noise', 'type': 'ClipFoldersTestDataset', 'dataroot_gt': 'clips',
                                 'degradation': 'BI'}},
           'val': {'pbar': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}}}
    Path('test.yml').write_text(json.dumps(opt))
    asked = []

    def plan(net: Any, lr_size: tuple[int, int], *_: Any) -> Plan:
        asked.append(lr_size)
        return Plan(channels_last=True, orders=planner._orders(net))

    monkeypatch.setattr(planner, 'find_plan', plan)
    plain = run_test('test.yml', overrides=['val:optimize=off'])['noise']
    assert not asked
    ran: list[Any] = []
    stream = type(net).stream
    monkeypatch.setattr(type(net), 'stream', lambda net, *args: ran.append(net) or stream(net, *args))
    fast = run_test('test.yml')['noise']
    assert asked == [(12 // net.scale, 16 // net.scale)]
    assert ran and all(one.conv_last.weight.is_contiguous(memory_format=torch.channels_last) for one in ran)
    assert fast.metrics['psnr'] == pytest.approx(plain.metrics['psnr'], abs=1e-3) and (plain.metrics['psnr'] or 0) > 5
    assert (fast.params, fast.macs, fast.form) == (plain.params, plain.macs, plain.form)

    timed: dict[str, Any] = {}  # the milliseconds of a report are of the same form
    monkeypatch.setattr(recipe, 'measure_latency', lambda nets, *_, **__: timed.update(nets) or dict.fromkeys(nets, 1.))
    report = {'rows': {'net': 'net.safetensors'}, 'bicubic': False, 'lr_size': [3, 5], 'crop': 2, 'expect': []}
    for optimize, planned in (('off', False), ('auto', True)):
        recipe.report_recipe(load_options('test.yml', [f'val:optimize={optimize}']), report,
                             Run(Processes(0, 1, torch.device('cpu'), False), 'report', 'results/report'))
        assert timed['net'].conv_last.weight.is_contiguous(memory_format=torch.channels_last) == planned
        assert (asked[-1] == (3, 5)) == planned
