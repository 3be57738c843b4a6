"""The flow network is pruned too: only when asked, in one ranking with the rest or by one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import clip, random_gates_, randomise_, tiny_net
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl import count_macs, count_params, load_network, optimize_network, prune_network, save_network
from basicsr_ssl.api import choose_units, cut_network, open_flow, with_gates, without_gates
from basicsr_ssl.archs import PrunableBasicVSR, StandaloneSpyNet
from basicsr_ssl.models.networks import read_input_network
from basicsr_ssl.nn.spynet import AnySizeSpyNet
from basicsr_ssl.pruning.gates import close_gates
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units

SMALL: dict[str, Any] = {'flow': 'spynet_small', 'bidirectional': False}


def net_with_flow(**args: Any) -> Any:
    return tiny_net(**{**SMALL, **args})


def spynet(**args: Any) -> Any:
    torch.manual_seed(0)
    net = StandaloneSpyNet(**{'size': 'small', **args})
    randomise_(net)
    return net


def of_flow(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: units for name, units in kept.items() if name.startswith('spynet.')}


def widths(net: Any) -> dict[str, int]:
    return {group.name: group.size for group in net.groups}


def macs_of(net: Any, flow: bool) -> int:
    return count_macs(net, (64, 96)) - count_macs(net, (64, 96), flow=False) if flow else \
        count_macs(net, (64, 96), flow=False)


# ---- what goes

@pytest.mark.parametrize('budget', ['units', 'params', 'macs'])
def test_without_being_asked_it_stays(budget: str) -> None:
    for net in (net_with_flow(), net_with_flow(prune_flow=True)):
        pruned: Any = prune_network(net, 0.5, score='l1', budget=budget, lr_size=[64, 96])
        assert of_flow(pruned.spec.widths) == {} and macs_of(pruned, True) == macs_of(net, True)
        assert pruned.spec.widths == prune_network(net_with_flow(), 0.5, score='l1', budget=budget,
                                                   lr_size=[64, 96]).spec.widths  # type: ignore[union-attr]


@pytest.mark.parametrize('budget', ['params', 'macs'])
def test_its_units_stand_in_the_one_ranking_and_count_in_the_budget(budget: str) -> None:
    net: Any = open_flow(net_with_flow())
    kept = choose_units(net, PruningOptions.of(ratio=0.4, score='l1', budget=budget, flow=True, lr_size=[64, 96]))
    scores = score_units(net.state_dict(), net.groups, 'l1', relative=True)
    line = sorted((float(score), name, unit) for name, values in scores.items() for unit, score in enumerate(values)
                  if score < values.max())  # one unit of each group stays
    whole = sum(p.numel() for p in net.parameters()) if budget == 'params' else count_macs(net, (64, 96))

    def cost(removed: int) -> int:
        gone = [(name, unit) for _, name, unit in line[:removed]]
        left = {name: [u for u in range(len(values)) if (name, u) not in gone] for name, values in scores.items()}
        small = cut_network(net, left)
        return sum(p.numel() for p in small.parameters()) if budget == 'params' else count_macs(small, (64, 96))

    removed = sum(len(values) - len(kept[name]) for name, values in scores.items())
    assert cost(removed) <= 0.6 * whole < cost(removed - 1)
    assert sorted((name, unit) for _, name, unit in line[:removed]) == sorted(
        (name, unit) for name, values in scores.items() for unit in range(len(values)) if unit not in kept[name])
    assert any(len(kept[name]) < len(values) for name, values in scores.items() if name.startswith('spynet.'))


def test_it_may_have_a_share_and_a_floor_of_its_own() -> None:
    net = net_with_flow()
    for share, ratio in ((0.2, 0.7), (0.7, 0.2), (0.5, 0.0)):
        pruned: Any = prune_network(net, ratio, score='l1', budget='macs', flow=True, flow_ratio=share,
                                    lr_size=[64, 96])
        assert 0.9 * (1 - share) < macs_of(pruned, True) / macs_of(net, True) <= 1 - share
        assert 0.85 * (1 - ratio) < macs_of(pruned, False) / macs_of(net, False) <= 1 - ratio
    least = widths(prune_network(net, 0.6, score='l1', flow=True))
    assert min(of_flow(least).values()) < 5
    held = widths(prune_network(net, 0.6, score='l1', flow=True, flow_min_keep=5))
    assert min(of_flow(held).values()) == 5 and min(held.values()) < 5
    both = widths(prune_network(net, 0.6, score='l1', flow=True, min_keep=3, flow_min_keep=5, flow_ratio=0.6))
    assert min(of_flow(both).values()) == 5 and min(held.values()) < 5


@pytest.mark.parametrize(('settings', 'message'), [
    ({'flow_ratio': 0.5}, 'set flow: true'), ({'flow_min_keep': 2}, 'set flow: true'),
    ({'flow': True, 'flow_ratio': 1.0}, 'at least 0 and below 1'),
    ({'flow': True, 'flow_ratio': 0.5, 'budget': 'latency'}, 'leave it out with budget latency'),
    ({'flow': True, 'flow_ratio': 0.5, 'structure': 'weights'}, 'leave it out'),
])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_network(net_with_flow(), 0.5, score='l1', **settings)


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match='this PrunableBasicVSR has no flow network: leave it out'):
        prune_network(tiny_net(), 0.5, score='l1', flow=True)
    with pytest.raises(ValueError, match='no flow network to prune with flow: none'):
        tiny_net(prune_flow=True)


def test_floors_that_forbid_the_ratio_are_named() -> None:
    with pytest.raises(ValueError, match='with min_keep 1 or 7 and round_to 1 at most'):
        prune_network(net_with_flow(), 0.95, score='l1', flow=True, flow_min_keep=7)


# ---- what is left computes the same

@pytest.mark.parametrize('kind', ['', 'scale', 'weight_norm', 'mask'])
def test_opening_changes_nothing(kind: str) -> None:
    net: Any = net_with_flow().double()
    if kind:
        net = with_gates(net, kind)
        random_gates_(net)
    opened: Any = open_flow(net)
    x = clip(3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(opened(x), net(x))
    assert open_flow(opened) is opened and opened.spec.gates == kind
    ends = {'': (), 'mask': ('weight_mask',)}.get(kind, ('gate', 'gate_in'))
    assert any(name.startswith('spynet.') and name.endswith(ends) for name in opened.state_dict()) == bool(kind)


@pytest.mark.parametrize('size', ['full', 'small'])
@pytest.mark.parametrize('kind', ['scale', 'weight_norm'])
def test_a_flow_network_by_itself(size: Any, kind: str, tmp_path: Path) -> None:
    """Closed gates equal the compact network; its file and its place in a BasicVSR."""
    dense = spynet(size=size).double()
    gated: Any = with_gates(dense, kind)
    ref, supp = clip(2, 33, 40, dtype=torch.float64)[0][:, None]
    with torch.no_grad():
        assert torch.allclose(gated.eval()(ref, supp), dense.eval()(ref, supp), rtol=0, atol=1e-10)
        random_gates_(gated)
        kept = choose_units(gated, PruningOptions.of(ratio=0.5, score='gate'))
        small: Any = cut_network(gated, kept)
        gated.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
        expected = gated(ref, supp)
        assert torch.allclose(small(ref, supp), expected, rtol=0, atol=1e-10)
        assert torch.allclose(without_gates(gated)(ref, supp), expected, rtol=0, atol=1e-10)
    assert {name: len(units) for name, units in kept.items()} == widths(small)
    assert count_params(small) == sum(parameter.numel() for parameter in small.parameters()) < count_params(dense)

    save_network(small, tmp_path / 'flow.safetensors')
    loaded: Any = load_network(tmp_path / 'flow.safetensors', dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ref, supp), small(ref, supp))
    net = PrunableBasicVSR(8, 1, 8, bidirectional=False, spynet_path=str(tmp_path / 'flow.safetensors'),
                           flow='spynet' if size == 'full' else 'spynet_small').double()
    assert net.spec.args['prune_flow'] and {f'spynet.{name}': w for name, w in widths(small).items()} == of_flow(
        widths(net))
    assert net.spynet is not None
    with torch.no_grad():
        # the weights were read as float32
        assert torch.allclose(net.spynet(ref, supp), small.float().double()(ref, supp), rtol=0, atol=1e-10)
    assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())

    save_network(gated, tmp_path / 'gated.safetensors')
    with pytest.raises(ValueError, match='holds a SpyNet with gates'):
        PrunableBasicVSR(8, 1, 8, spynet_path=str(tmp_path / 'gated.safetensors'),
                         flow='spynet' if size == 'full' else 'spynet_small')


@pytest.mark.parametrize('budget', ['params', 'macs'])
def test_a_flow_network_by_itself_keeps_its_budget(budget: str) -> None:
    net = spynet()
    count: Any = count_params if budget == 'params' else lambda net: count_macs(net, (64, 96))
    pruned = prune_network(net, 0.6, score='l1', budget=budget, lr_size=[64, 96])
    assert 0.95 * 0.4 < count(pruned) / count(net) <= 0.4


def test_its_weights_are_masked_when_asked() -> None:
    def masks(flow: bool, **args: Any) -> dict[str, Tensor]:
        net = prune_network(net_with_flow(**args), 0.5, score='l1', structure='weights', scope='local', flow=flow)
        return {name: mask for name, mask in net.state_dict().items()
                if name.startswith('spynet.') and name.endswith('_mask')}

    assert masks(False) == {}
    assert all(mask.all() for mask in masks(False, prune_flow=True).values())
    asked = masks(True)
    assert len(asked) == 30 and all(abs(float(mask.float().mean()) - 0.5) < 0.01 for mask in asked.values())


def test_its_widths_may_be_filled_up_for_speed() -> None:
    """With the plan that was measured the network computes the same."""
    pruned: Any = prune_network(net_with_flow(), 0.5, score='l1', flow=True).double()
    x = clip(2, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(optimize_network(pruned, (12, 16))(x), pruned(x), rtol=0, atol=1e-10)


# ---- flow for less

def slowly(net: Any, ref: Tensor, other: Tensor) -> Tensor:
    """SpyNet without its coarse levels, on smaller frames: BasicSR's with a zero flow after those levels."""
    levels, shrunk = net.spec.args.get('flow_levels', 6), net.spec.args.get('flow_scale', 1)
    h, w = ref.shape[-2:]
    size = -(-h // shrunk), -(-w // shrunk)
    whole = AnySizeSpyNet('small').double()
    with torch.no_grad():
        for level in range(6):
            if level < 6 - levels:
                for parameter in whole.basic_module[level].parameters():
                    parameter.zero_()
            else:
                whole.basic_module[level].load_state_dict(net.spynet.basic_module[level].state_dict())
        flow = whole(*(F.interpolate(x, size, mode='bilinear') for x in (ref, other)))
    enlarged = F.interpolate(flow, (h, w), mode='bilinear')
    enlarged[:, 0] *= w / size[1]
    enlarged[:, 1] *= h / size[0]
    return enlarged


@pytest.mark.parametrize(('levels', 'shrunk', 'size'), [
    (6, 2, (64, 96)), (4, 1, (64, 96)), (3, 2, (45, 70)), (1, 4, (45, 70))])
def test_fewer_levels_and_smaller_frames(levels: int, shrunk: Any, size: tuple[int, int]) -> None:
    net: Any = net_with_flow(flow_levels=levels, flow_scale=shrunk, bidirectional=True).double()
    x = clip(2, *size, dtype=torch.float64)
    with torch.no_grad():
        forward, backward = net.compute_flows(x)
    assert torch.allclose(forward[:, 0], slowly(net, x[:, 1], x[:, 0]), rtol=0, atol=1e-10)
    assert torch.allclose(backward[:, 0], slowly(net, x[:, 0], x[:, 1]), rtol=0, atol=1e-10)
    assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.compute_flows(x)
    assert count_macs(net, size) - count_macs(net, size, flow=False) == counter.get_total_flops() // 2


def test_flow_of_a_scene_that_moves_is_in_pixels_of_the_frame() -> None:
    """A network that always answers one pixel of its own size means as many of the frame as that is larger."""
    net: Any = net_with_flow(flow_scale=2)
    with torch.no_grad():
        for parameter in net.spynet.parameters():
            parameter.zero_()
        last: Any = net.spynet.basic_module[5].basic_module[8]
        last.bias.copy_(torch.tensor([1.0, -0.5]))
        flow, _ = net.compute_flows(clip(2, 64, 128))
    assert torch.allclose(flow[0, 0, 0], torch.tensor(2.0)) and torch.allclose(flow[0, 0, 1], torch.tensor(-1.0))


@pytest.mark.parametrize(('args', 'message'), [
    ({'flow_levels': 0}, 'flow_levels must be one of 1, 2, 3, 4, 5, 6, got 0'), ({'flow_levels': 7}, 'got 7'),
    ({'flow_scale': 3}, 'flow_scale must be one of 1, 2, 4, got 3')])
def test_other_levels_and_scales_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net_with_flow(**args)


def test_option_files_change_how_flow_is_run(tmp_path: Path) -> None:
    """Of any network, when they say so; what they do not say stays as the file has it."""
    dense = net_with_flow()
    compact: Any = prune_network(dense, 0.5, score='l1', flow=True)
    shape = {'type': 'PrunableBasicVSR', 'num_feat': 8, 'num_block': 2, 'tail_feat': 6, **SMALL}

    def read(net: Any, **said: Any) -> Any:
        save_network(net, tmp_path / 'net.safetensors')
        return read_input_network({'path': {'pretrain_network_g': str(tmp_path / 'net.safetensors')},
                                   'network_g': {**shape, **said}, 'datasets': {}})

    for net in (dense, compact):
        assert read(net).spec == net.spec
        changed = read(net, flow_levels=4, flow_scale=2)
        assert (changed.spec.args['flow_levels'], changed.spec.args['flow_scale']) == (4, 2)
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in changed.state_dict().items())
        assert len(net.state_dict()) - len(changed.state_dict()) == 20  # five convolutions of two levels
        again = read(changed)
        assert again.spec == changed.spec
        assert 'flow_scale' not in read(changed, flow_scale=1).spec.args
        with pytest.raises(ValueError, match='cannot be used so'):
            read(changed, flow_levels=5)


def test_a_flow_network_of_all_levels_starts_one_of_fewer(tmp_path: Path) -> None:
    small: Any = prune_network(spynet(), 0.4, score='l1')
    for net in (spynet(), small):
        save_network(net, tmp_path / 'flow.safetensors')
        new = PrunableBasicVSR(8, 1, 8, **SMALL, flow_levels=4, spynet_path=str(tmp_path / 'flow.safetensors'))
        for level in range(2, 6):
            for name, tensor in net.basic_module[level].state_dict().items():
                key = f'spynet.basic_module.{level}.{name}'
                assert torch.equal(new.state_dict()[key], tensor), key
