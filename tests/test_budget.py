"""A budget of milliseconds, under a clock that counts arithmetic: what is predicted can then be exact."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from nets import tiny_net
from tiny_runs import write_options
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr_ssl import load_network, prune_network, save_network
from basicsr_ssl.api import choose_units, cut_network, with_gates
from basicsr_ssl.archs import PrunableEDSR, PrunableSwinIR
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.cli import main
from basicsr_ssl.plans import budget, planner
from basicsr_ssl.plans.budget import CLOSE, LatencyModel, latency_figures
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.selection import select_units
from basicsr_ssl.runtime import from_first

LR_SIZE = [8, 12]  # whole windows of SwinIR: what it pads belongs to the rest
NETS: dict[str, Callable[[], Any]] = {
    'bi, x4': lambda: tiny_net(num_feat=12),
    'uni, x2': lambda: tiny_net(num_feat=12, scale=2, bidirectional=False),
    'flow': lambda: tiny_net(num_feat=12, flow='spynet_small'),
    'flow, pruned': lambda: tiny_net(num_feat=12, flow='spynet_small', prune_flow=True),
    'EDSR': lambda: PrunableEDSR(num_feat=12, num_block=3, scale=2),
    'EDSR, long skips': lambda: PrunableEDSR(num_feat=12, num_block=2, num_group=2, scale=3),
    'EDSR, aligned': lambda: PrunableEDSR(num_feat=12, num_block=3, scale=2, residual='aligned'),
    'SwinIR': lambda: PrunableSwinIR(embed_dim=12, depths=[2], num_heads=[3], scale=2, window_size=4),
}
WIDER = [lambda: tiny_net(num_feat=32), lambda: PrunableEDSR(num_feat=32, num_block=3, scale=2)]


class Work(TorchDispatchMode):
    """Counts what convolutions and linear layers multiply, in vectors of outputs; ``other``: elements made."""

    def __init__(self, vector: int) -> None:
        super().__init__()
        self.vector, self.layers, self.other = vector, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ('aten::convolution', 'aten::mkldnn_convolution'):
            weight, pixels = args[1], out.shape[0] * out.shape[2] * out.shape[3]
            self.layers += math.ceil(weight.shape[0] / self.vector) * self.vector * weight[0].numel() * pixels
        elif name == 'aten::addmm':
            self.layers += math.ceil(args[2].shape[1] / self.vector) * self.vector * args[1].numel()
        elif isinstance(out, torch.Tensor):
            self.other += out.numel()
        return out


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Instead of the clock: ``layer`` times what layers multiply and ``other`` times what else is made."""
    told = {'layer': 1e-3, 'other': 0.0, 'power': 1, 'vector': 4, 'calls': 0}

    def least(runs: Mapping[Hashable, Callable[[], object]], device: torch.device, repeats: int = 5
              ) -> dict[Any, float]:
        ms = {}
        for label, run in runs.items():
            with Work(int(told['vector'])) as work:
                run()
            ms[label] = (told['layer'] * work.layers + told['other'] * work.other)**told['power']
        told['calls'] += len(ms)
        return ms

    monkeypatch.setattr(budget, 'least_ms', least)
    monkeypatch.setattr(planner, 'least_ms', lambda runs, device: dict.fromkeys(runs, 1.0))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return told


def settings(**changes: Any) -> dict[str, Any]:
    return {'budget': 'latency', 'score': 'l1', 'lr_size': LR_SIZE, 'round_to': 2, **changes}


@pytest.mark.parametrize('layout', ['free', 'runs'])
@pytest.mark.parametrize('make', NETS.values(), ids=NETS)
def test_the_sum_of_the_parts_is_the_whole(make: Callable[[], Any], layout: str, clock: dict[str, float],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = make().eval()
    flow = any(group.flow for group in net.groups)
    options = PruningOptions.of(ratio=0.5, **settings(layout=layout, flow=flow))
    model = LatencyModel(net, options)
    other = [part for part in (0.3, 0.6) for _ in range(2)]
    for seed, ratio in enumerate(other):
        small: Any = prune_network(net, ratio, score='random', seed=seed, round_to=1 + seed % 2, flow=flow)
        before, after = model.measure(small)
        assert before == model.whole == pytest.approx(model(model.sizes), rel=1e-9) and after < before
        assert model(small.spec.widths) == pytest.approx(after, rel=1e-9), ratio
    # parts of a large frame are measured on a smaller one
    monkeypatch.setattr(planner, 'MOST_PIXELS', 24)
    assert LatencyModel(net, options)(small.spec.widths) == pytest.approx(after, rel=1e-9)


@pytest.mark.parametrize('make', WIDER, ids=['bi', 'EDSR'])
def test_the_rest_becomes_smaller_with_the_network(make: Callable[[], Any], clock: dict[str, float]) -> None:
    clock.update(other=0.05, vector=1)
    net: Any = make().eval()
    options = PruningOptions.of(ratio=0.3, **settings())
    model = LatencyModel(net, options)
    least = cut_network(net, {name: [i * model.sizes[name] // width for i in range(width)]
                              for name, width in model.narrowest.items()})
    assert set(model.narrowest.values()) == {2}
    other: Any
    for other, of in ((net, model.whole), (least, model.least)):
        assert model.measure(other)[1] == of == pytest.approx(model(other.spec.widths), rel=1e-9)
    kept = choose_units(net, options)
    figures = latency_figures(net, cut_network(net, kept), options)
    assert figures['predicted'] == pytest.approx(figures['after'], rel=CLOSE)
    assert figures['after'] / figures['before'] == pytest.approx(0.7, rel=0.03)


@pytest.mark.parametrize('target', ['ratio', 'target_ms'])
@pytest.mark.parametrize('make', WIDER, ids=['bi', 'EDSR'])
def test_the_budget_is_met_though_what_was_predicted_is_wrong(make: Callable[[], Any], target: str,
                                                              clock: dict[str, float]) -> None:
    """Parts take another time beside each other than alone."""
    clock.update(power=1.3, vector=1)
    net = with_gates(make().eval()) if target == 'ratio' else make().eval()
    options = PruningOptions.of(ratio=0.3, **settings())
    whole = LatencyModel(net, options).whole
    aim = {'ratio': 0.3} if target == 'ratio' else {'target_ms': 0.7 * whole}
    small: Any = prune_network(net, **settings(), **aim)
    figures = latency_figures(net, small, options)
    assert figures['before'] == pytest.approx(whole) and abs(figures['predicted'] / figures['after'] - 1) > CLOSE
    assert figures['after'] / figures['before'] == pytest.approx(0.7, rel=0.03)
    assert not any(width % 2 for width in small.spec.widths.values())


def test_the_flow_network_takes_part_when_asked(clock: dict[str, float]) -> None:
    net: Any = tiny_net(flow='spynet_small')
    model = LatencyModel(tiny_net(flow='spynet_small', prune_flow=True), PruningOptions.of(ratio=0.4, **settings()))
    assert {name: width for name, width in model.narrowest.items() if name.startswith('spynet.')} == {
        group.name: group.size for group in model.net.groups if group.flow}
    floor = LatencyModel(tiny_net(flow='spynet_small', prune_flow=True), PruningOptions.of(
        ratio=0.4, **settings(flow=True, flow_min_keep=6)))
    assert set(floor.narrowest.values()) == {2, 6}
    small: Any = prune_network(net, 0.4, **settings(flow=True))
    figures = latency_figures(net, small, PruningOptions.of(ratio=0.4, **settings(flow=True)))
    assert figures['after'] / figures['before'] == pytest.approx(0.6, rel=0.03)
    assert any(name.startswith('spynet.') for name in small.spec.widths)


def test_what_was_chosen_is_chosen_by_importance(clock: dict[str, float]) -> None:
    """With a prediction that is right, the units are those of ``select_units`` under these milliseconds."""
    from basicsr_ssl.pruning.scores import score_units
    net: Any = NETS['bi, x4']().eval()
    options = PruningOptions.of(ratio=0.4, **settings())
    scores = score_units(net.state_dict(), net.groups, 'l1', relative=True)
    expected = select_units(scores, 0.4, cost=LatencyModel(net, options), monotone=False, round_to=2)
    assert choose_units(net, options) == expected
    local = PruningOptions.of(ratio=0.4, **settings(scope='local'))
    assert choose_units(net, local) != expected
    # one of the layout runs can stand side by side
    side = choose_units(net, PruningOptions.of(ratio=0.4, **settings(layout='runs')))
    assert side != expected and {name: len(units) for name, units in side.items()} == {
        name: len(units) for name, units in expected.items()}


def test_units_that_cost_no_time_stay() -> None:
    scores = {'a': torch.arange(16.) + 20, 'b': torch.arange(16.)}

    def steps(widths: dict[str, int]) -> float:  # vectors of 4, and 12 of b as slow as 16
        return -(-widths['a'] // 4) + (4 if widths['b'] > 8 else 2 if widths['b'] > 4 else 1)

    for ratio in (0.2, 0.3, 0.45, 0.6):
        kept = select_units(scores, ratio, cost=steps, monotone=False)
        widths = {name: len(units) for name, units in kept.items()}
        assert steps(widths) <= (1 - ratio) * 8
        assert not [name for name in widths for wider in range(widths[name] + 1, 17)
                    if steps({**widths, name: wider}) <= steps(widths)], widths
        assert all(kept[name] == list(range(16 - width, 16)) for name, width in widths.items())
        rounded = select_units(scores, ratio, cost=steps, monotone=False, round_to=3)
        assert all(len(units) % 3 == 0 or len(units) == 16 for units in rounded.values())
    assert {name: len(units) for name, units in select_units(
        scores, 0.2, cost=steps, monotone=False).items()} == {'a': 16, 'b': 8}


def test_a_budget_that_is_out_of_reach_or_met_already(clock: dict[str, float]) -> None:
    net: Any = NETS['EDSR']().eval()
    with pytest.raises(ValueError, match='cannot be reached'):
        prune_network(net, 0.999, **settings())
    whole = LatencyModel(net, PruningOptions.of(ratio=0.5, **settings())).whole
    small: Any = prune_network(net, **settings(target_ms=1.5 * whole))
    assert not small.spec.widths
    with pytest.raises(ValueError, match='device: cuda, but there is no CUDA device'):
        prune_network(net, 0.5, **settings(device='cuda'))


@pytest.mark.parametrize(('wrong', 'message'), [
    ({'ratio': 0.5, 'budget': 'macs', 'target_ms': 3.0}, 'set budget: latency, or leave them out'),
    ({'ratio': 0.5, 'budget': 'macs', 'threads': 2}, 'set budget: latency, or leave them out'),
    ({'ratio': 0.5, 'budget': 'latency', 'target_ms': 3.0}, 'leave one of them out'),
    ({'budget': 'latency'}, 'ratio is missing'),
    ({'budget': 'latency', 'target_ms': 0.0}, 'target_ms'),
    ({'budget': 'latency', 'ratios': {'a': 0.5}}, 'leave budget out'),
    ({'budget': 'latency', 'ratio': 0.5, 'structure': 'filters', 'score': 'l1'}, 'leave budget'),
])
def test_settings_that_do_not_fit(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningOptions.of(**wrong)


def test_times_are_measured_once_and_anew_where_they_do_not_fit(clock: dict[str, float], tmp_path: Path) -> None:
    net: Any = NETS['EDSR']().eval()
    options = PruningOptions.of(ratio=0.5, **settings())
    first = choose_units(net, options)
    calls = clock['calls']
    assert choose_units(net, options) == first
    again = clock['calls'] - calls
    assert again == 2 * 2  # the network by itself, and beside the one that is chosen
    (file,) = (tmp_path / 'cache/basicsr_ssl').glob('parts_*.json')
    known = json.loads(file.read_text())
    assert len(known) == calls - again
    file.write_text('[1, 2')
    assert choose_units(net, options) == first and json.loads(file.read_text()) == known
    # with other threads they are others
    choose_units(net, PruningOptions.of(ratio=0.5, **settings(threads=torch.get_num_threads() + 1)))
    assert len(list((tmp_path / 'cache/basicsr_ssl').glob('parts_*.json'))) == 2


def test_threads_are_those_that_were_asked_for(clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, least = set(), budget.least_ms
    monkeypatch.setattr(budget, 'least_ms', lambda *args: seen.add(torch.get_num_threads()) or least(*args))
    threads = torch.get_num_threads() + 1
    prune_network(NETS['EDSR']().eval(), 0.4, **settings(threads=threads))
    assert seen == {threads} and torch.get_num_threads() == threads - 1


def test_the_pruning_stage_tells_what_it_measured(clock: dict[str, float], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net: Any = NETS['bi, x4']().eval()
    save_network(net, 'start.safetensors')
    pruning = settings(ratio=0.4)
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': 'start.safetensors'}, 'logger': {'use_tb_logger': False}}
    assert main(['train', '-opt', str(write_options(Path('pruned.yml'), opt))]) == 0
    file = Path('experiments/pruned/models/net_g_latest.safetensors')
    small: Any = load_network(file)
    kept = choose_units(net, PruningOptions.of(**pruning))
    assert small.spec == cut_network(net, kept).spec  # type: ignore[comparison-overlap]
    figures = latency_figures(net, small, PruningOptions.of(**pruning))
    told = json.loads(Path('experiments/pruned/report.json').read_text())['latency']
    assert told == {**figures, 'removed': 1 - figures['after'] / figures['before']}
    assert told['predicted'] == pytest.approx(told['after'], rel=1e-9)
    metadata = read_metadata(file)
    assert metadata['pruned']['latency'] == told and metadata['method'].endswith('40.00% of latency')
    opt['pruning'] = {**{key: value for key, value in pruning.items() if key != 'ratio'}, 'target_ms': 12.5}
    assert main(['train', '-opt', str(write_options(Path('pruned.yml'), opt))]) == 1  # nothing is as fast as that
    opt['pruning']['target_ms'] = 0.6 * figures['before']
    assert main(['train', '-opt', str(write_options(Path('pruned.yml'), opt))]) == 0
    assert load_network(file).spec == small.spec
    assert read_metadata(file)['method'].endswith(f'{opt["pruning"]["target_ms"]:g} ms')


def test_pruning_aware_training_refuses_it(tmp_path: Path) -> None:
    from basicsr_ssl.methods.aware import Aware
    with pytest.raises(ValueError, match='set budget: macs'):
        Aware(tiny_net(gates='weight_norm'), {}, PruningOptions.of(ratio=0.5, **settings()).model_dump())


def test_what_one_process_measures_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_first(lambda: 3) == 3
    sent: list[Any] = []
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'broadcast_object_list',
                        lambda made: sent.append(made[0]) or made.__setitem__(0, 'of the first'))
    for rank, made in ((0, 'mine'), (1, None)):
        monkeypatch.setattr(torch.distributed, 'get_rank', lambda rank=rank: rank)
        assert from_first(lambda: 'mine') == 'of the first' and sent.pop() == made
