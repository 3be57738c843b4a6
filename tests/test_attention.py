"""Groups and layers of a network with attention: packed projections, heads, layer norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_net import AttentionNet
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl import count_macs, count_params
from basicsr_ssl.api import choose_units
from basicsr_ssl.pruning.gates import close_gates, fold_gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.surgery import cut

KEPT = {'heads': [0, 3], 'keys': [1], 'hidden': [0, 2, 3, 7]}


def net_of(**form: Any) -> AttentionNet:
    torch.manual_seed(0)
    net = AttentionNet(**form).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(1 if 'gate' in name or name == 'norm.weight' else 0, 0.5)
    return net


def cut_net(net: AttentionNet, kept: dict[str, list[int]]) -> AttentionNet:
    state, spec = cut(net.state_dict(), net.spec, net.groups, kept)
    small = AttentionNet(widths=spec.widths, index=spec.index).double()
    small.load_state_dict(state)
    return small


def image() -> Tensor:
    return torch.rand(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('kept', [{name: KEPT[name]} for name in KEPT] + [KEPT], ids=[*KEPT, 'all'])
def test_closed_gates_equal_the_compact_network(kept: dict[str, list[int]]) -> None:
    gated = net_of(gates='scale')
    compact = cut_net(gated, kept)
    gated.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
    with torch.no_grad():
        expected = gated(image())
        torch.testing.assert_close(compact(image()), expected, rtol=0, atol=1e-10)
        folded = AttentionNet().double()
        folded.load_state_dict(fold_gates(gated.state_dict(), gated.groups))
        torch.testing.assert_close(folded(image()), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('kept', [{}, KEPT, {**KEPT, 'stream': [0, 2, 5]}], ids=['dense', 'compact', 'stream'])
def test_layers_cost_what_tensors_and_pytorchs_counter_say(kept: dict[str, list[int]]) -> None:
    net = cut_net(net_of(), kept)
    assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image()[:1])
    assert count_macs(net, (8, 12)) == count_macs(net, (7, 9)) == counter.get_total_flops() / 2


def test_a_closed_unit_counts_in_a_norm_over_channels() -> None:
    # why the stream has no gates: silencing a channel everywhere is not removing it
    net, kept = net_of(), [0, 2, 5]
    compact = cut_net(net, {'stream': kept})
    with torch.no_grad():
        tokens = torch.zeros(6, dtype=torch.float64)
        tokens[kept] = torch.tensor([1., 2, 4]).double()
        assert not torch.allclose(net.norm(tokens)[kept], compact.norm(tokens[kept]))
    with pytest.raises(ValueError, match='group stream passes through a norm over channels and cannot have gates'):
        Group('stream', 6, (Slice('first.weight', 0, gate='first.gate'),), normalised=True)
    gated = net_of(gates='scale')
    with pytest.raises(ValueError, match='group stream has no gates to close'):
        close_gates(gated.state_dict(), gated.groups, {'stream': kept})


def test_groups_without_gates_are_judged_by_all_their_weights_and_have_no_gate_score() -> None:
    net = net_of(gates='scale')
    assert list(score_units(net.state_dict(), net.groups, 'gate')) == ['heads', 'keys', 'hidden']
    kept = choose_units(net, PruningOptions.of(ratio=0.3))
    assert kept['stream'] == list(range(6))  # whole, since it has no gates
    assert sum(len(kept[name]) for name in ('heads', 'keys', 'hidden')) == 11
    plain = net_of()
    weights: list[tuple[str, int]] = [('first', 0), ('qkv', 1), ('proj', 0), ('fc1', 1), ('fc2', 0), ('last', 1)]
    parts = [plain.state_dict()[f'{name}.weight'].movedim(dim, 0).flatten(1).abs() for name, dim in weights]
    expected = torch.cat(parts, 1).mean(1)
    torch.testing.assert_close(score_units(plain.state_dict(), plain.groups, 'l1')['stream'], expected, rtol=0,
                               atol=1e-12)
