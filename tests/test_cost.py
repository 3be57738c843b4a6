"""Parameters and multiply-accumulates: the table against real tensors, PyTorch's counter and the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import VARIANTS, clip, tiny_net
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl import count_macs, count_params, load_network, prune_network
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.archs.basicvsr_arch import layer_table
from basicsr_ssl.pruning import cost

CASES = {**VARIANTS, 'bi-spynet': {'flow': 'spynet'}, 'uni-spynet': {'flow': 'spynet', 'bidirectional': False}}


def net_of(form: str, args: dict[str, Any]) -> Any:
    net = tiny_net(gated=form == 'gated', **args)
    return prune_network(net, 0.4, score='l1') if form == 'compact' else net


@pytest.mark.parametrize('args', CASES.values(), ids=CASES)
@pytest.mark.parametrize('form', ['dense', 'gated', 'compact'])
def test_every_convolution_stands_in_the_table(form: str, args: dict[str, Any]) -> None:
    net = net_of(form, args)
    real = {name: (m.in_channels, m.out_channels, m.kernel_size[0]) for name, m in net.named_modules()
            if isinstance(m, torch.nn.Conv2d)}
    assert {conv.name: (conv.cin, conv.cout, conv.kernel) for conv in net.cost_table} == real
    numel = {name: p.numel() for name, p in net.named_parameters() if not name.endswith(('gate', 'gate_in'))}
    assert count_params(net) == sum(numel.values())
    assert count_params(net, flow=False) == sum(n for name, n in numel.items() if not name.startswith('spynet'))


@pytest.mark.parametrize('args', CASES.values(), ids=CASES)
@pytest.mark.parametrize('form', ['dense', 'gated', 'compact'])
@pytest.mark.parametrize('size', [(12, 16), (33, 20)], ids=['12x16', '33x20'])
def test_macs_equal_pytorchs_counter_over_a_clip(form: str, args: dict[str, Any], size: tuple[int, int]) -> None:
    net, frames = net_of(form, args), 3
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(clip(frames, *size))
    without_flow = count_macs(net, size, flow=False)
    pairs = count_macs(net, size) - without_flow
    assert frames * without_flow + (frames - 1) * pairs == counter.get_total_flops() / 2


PAPER = dict(num_feat=64, num_block=30, tail_feat=64, scale=4, flow='spynet')


def test_the_papers_bidirectional_network() -> None:
    convs = layer_table({**PAPER, 'bidirectional': True}, {})
    assert cost.params(convs, flow=False) == 4_851_011
    assert cost.params(convs) == 6_291_311
    assert cost.params([conv for conv in convs if conv.flow]) == 1_440_300
    assert round(cost.macs(convs, (180, 320), flow=False) / 1e9, 1) == 337.8


def test_the_papers_unidirectional_network() -> None:
    convs = layer_table({**PAPER, 'bidirectional': False}, {})
    assert round(cost.params(convs, flow=False) / 1e6, 2) == 2.59
    assert round(cost.macs(convs, (180, 320), flow=False) / 1e9, 1) == 207.7


def test_the_default_network_is_the_papers() -> None:
    net = PrunableBasicVSR()
    assert count_params(net) == sum(p.numel() for p in net.parameters()) == 6_291_311
    assert round(count_macs(net, flow=False) / 1e9, 1) == 337.8


def test_one_convolution_by_hand() -> None:
    conv = cost.Conv('up', cin=3, cout=5, kernel=3, area=4, times=2, multiple=32)
    assert conv.params() == 3 * 5 * 9 + 5
    assert conv.macs((33, 64)) == 3 * 5 * 9 * 4 * 2 * (64 * 64)


def test_bicubic_costs_nothing() -> None:
    bicubic = load_network('bicubic')
    assert count_params(bicubic) == count_macs(bicubic) == 0


def test_a_network_of_another_package_is_refused() -> None:
    for count in (count_macs, count_params):
        with pytest.raises(TypeError, match=r'Linear .*use a network of basicsr_ssl'):
            count(torch.nn.Linear(2, 2))
