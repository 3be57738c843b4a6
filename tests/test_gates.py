"""Gates of every kind: they start as nothing, and fold away exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import VARIANTS, clip, tiny_net
from torch import Tensor

from basicsr_ssl import load_network, save_network
from basicsr_ssl.api import choose_units, cut_network, with_gates, without_gates
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.models.optimization import build_optimizer
from basicsr_ssl.nn.gated import GatedConv2d
from basicsr_ssl.pruning.gates import GATES, close_gates
from basicsr_ssl.pruning.masks import weights_left
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.spec import Spec


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def trained(kind: str, **args: Any) -> Any:
    """Float64; gates of either sign that no longer fit the weights, or masks that leave about two thirds."""
    net = with_gates(tiny_net(**{'num_feat': 12, 'tail_feat': 10, **args}).double(), kind)
    for i, (name, tensor) in enumerate(net.state_dict().items()):
        if name.endswith(('gate', 'gate_in')):
            tensor.mul_(numbers(len(tensor), seed=i).sign() * (0.5 + numbers(len(tensor), seed=-i).abs()))
        elif name.endswith('mask'):
            tensor.copy_(numbers(*tensor.shape, seed=i) > -0.5)
        elif tensor.dtype != torch.int64:
            tensor.mul_(1.25)
    return net


def same_function(one: Any, other: Any, tolerance: float = 1e-10) -> None:
    x = clip(2, 6, 7, dtype=next(one.parameters()).dtype)
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=0, atol=tolerance)


# ---- init and fold

@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kind', GATES)
def test_gates_start_as_nothing_and_fold_exactly(kind: str, args: dict[str, Any]) -> None:
    dense = tiny_net(**args).double()
    same_function(with_gates(dense, kind), dense, 0)
    net = trained(kind, **args)
    assert (net.spec.gates, net.spec.form) == (kind, 'gated')
    plain: Any = without_gates(net)
    assert plain.spec == tiny_net(**{'num_feat': 12, 'tail_feat': 10, **args}).spec
    same_function(plain, net)
    assert float((plain.upconv1.weight - net.upconv1.weight).detach().abs().max()) > 0.1  # there was something to fold


@pytest.mark.parametrize('kind', GATES)
def test_networks_built_with_gates_start_as_the_dense_one(kind: Any) -> None:
    nets = []
    for gates in ('', kind):
        torch.manual_seed(0)
        nets.append(PrunableBasicVSR(8, 2, 6, flow='none', gates=gates))
    dense, gated = nets
    assert all(torch.equal(gated.state_dict()[name], tensor) for name, tensor in dense.state_dict().items())
    assert torch.equal(gated.hidden_states(clip())['forward'], dense.hidden_states(clip())['forward'])


def test_weight_normalisation_by_hand() -> None:
    torch.manual_seed(0)
    layer: Any = GatedConv2d(3, 4, 3, 'weight_norm', repeat=2, gate_in=True).double()
    assert layer.gate_in is not None and layer.bias is not None
    with torch.no_grad():
        layer.gate.copy_(torch.tensor([2., -3]))
        layer.gate_in.copy_(torch.tensor([1., 0, 5]))
        x, weight, bias = numbers(1, 3, 5, 5), layer.weight.clone(), layer.bias.clone()
        for unit, s in enumerate((2., -3)):
            norm = float(sum(v * v for v in layer.weight[2 * unit:2 * unit + 2].flatten().tolist()))**0.5
            weight[2 * unit:2 * unit + 2] *= s / norm
            bias[2 * unit:2 * unit + 2] *= s / norm
        for channel, s in enumerate((1., 0, 5)):
            weight[:, channel] *= s / float(sum(v * v for v in layer.weight[:, channel].flatten().tolist()))**0.5
        torch.testing.assert_close(layer(x), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-12)


def test_a_unit_of_weights_0_keeps_its_bias() -> None:
    dense: Any = tiny_net().double()
    with torch.no_grad():
        dense.conv_hr.weight[2] = 0
        dense.conv_hr.bias[2] = 3
    same_function(with_gates(dense, 'weight_norm'), dense, 0)


def test_the_length_of_normalised_weights_makes_no_difference() -> None:
    net = trained('weight_norm')
    longer = with_gates(net, 'weight_norm')
    with torch.no_grad():
        longer.get_parameter('conv_hr.weight').mul_(7)
        longer.get_parameter('conv_hr.bias').mul_(7)
    same_function(longer, net)


@pytest.mark.parametrize('other', GATES)
@pytest.mark.parametrize('kind', GATES)
def test_one_kind_becomes_another(kind: str, other: str) -> None:
    net = trained(kind)
    new: Any = with_gates(net, other)
    assert new.spec.gates == other
    same_function(new, net)
    if other == kind:
        assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


def test_unknown_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown gates 'l0'; choose one of scale, weight_norm, mask"):
        with_gates(tiny_net(), 'l0')
    with pytest.raises(ValueError, match=r"gates must be one of '', 'scale', 'weight_norm', 'mask', got 'l0'"):
        tiny_net(gates='l0')


# ---- what pruning makes of them

@pytest.mark.parametrize('score', ['gate', 'l1'])
@pytest.mark.parametrize('kind', ['scale', 'weight_norm'])
def test_closed_gates_equal_the_compact_network(kind: str, score: str) -> None:
    net = trained(kind)
    kept = choose_units(net, PruningOptions.of(ratio=0.5, score=score))
    compact = cut_network(net, kept)
    net.load_state_dict(close_gates(net.state_dict(), net.groups, kept))
    same_function(compact, net)


@pytest.mark.parametrize('kind', GATES)
def test_weights_are_judged_as_the_network_uses_them(kind: str) -> None:
    net, plain = trained(kind), without_gates(trained(kind))
    scores = score_units(net.state_dict(), net.groups, 'l2', gates=kind)
    for name, expected in score_units(plain.state_dict(), net.groups, 'l2').items():
        torch.testing.assert_close(scores[name], expected, rtol=1e-12, atol=0)
    options = PruningOptions.of(ratio=0.5, score='l1')
    assert choose_units(net, options) == choose_units(plain, options)


def test_gates_are_parameters_that_are_not_decayed_and_masks_are_no_parameters() -> None:
    train = {'optim_g': {'type': 'Adam', 'lr': 1e-3, 'weight_decay': 0.1}, 'flow_lr_mul': 1, 'gate_lr_mul': 2}
    for kind in GATES:
        net: Any = with_gates(tiny_net(), kind)
        groups = {group['name']: group for group in build_optimizer(net, train).param_groups}
        names = [name for group in net.groups for name in group.gates]
        assert len(groups.get('gates', {'params': []})['params']) == (0 if kind == 'mask' else len(names))
        assert len(groups['net']['params']) == len([*tiny_net().parameters()])


# ---- masks

def test_masked_weights_have_no_part_and_no_gradient() -> None:
    net = trained('mask')
    net(clip(2, 6, 7, dtype=torch.float64)).square().sum().backward()
    for name, mask in net.named_buffers():
        if name.endswith('_mask'):
            grad = net.get_parameter(name.removesuffix('_mask')).grad
            assert not grad[~mask].any() and grad[mask].any()


def test_masks_are_cut_with_their_weights() -> None:
    net = trained('mask')
    kept = choose_units(net, PruningOptions.of(ratio=0.4, score='l1'))
    compact: Any = cut_network(net, kept)
    assert compact.spec.gates == 'mask' and compact.spec.widths
    same_function(compact, cut_network(without_gates(net), kept))
    assert torch.equal(compact.conv_hr.weight_mask, net.conv_hr.weight_mask[kept['conv_hr']][:, kept['upconv2']])
    same_function(with_gates(without_gates(compact), 'mask'), compact)  # compact networks may have masks
    with pytest.raises(ValueError, match='group fusion has no gates to close'):
        close_gates(net.state_dict(), net.groups, {'fusion': [0]})


def test_weights_left_are_counted_by_layer() -> None:
    net: Any = with_gates(tiny_net(), 'mask')
    net.conv_hr.weight_mask[1:] = False
    net.upconv1.weight_mask[:, :, 1, 1] = False
    left = weights_left(net.state_dict())
    assert left.pop('conv_hr') == (6 * 9, 6 * 6 * 9) and left.pop('upconv1') == (32 * 8 * 8, 32 * 8 * 9)
    assert left.pop('conv_last') == (3 * 6 * 9, 3 * 6 * 9) and left.pop('forward_trunk.main.0') == (792, 792)
    assert all(kept == size for kept, size in left.values()) and 'forward_trunk.main.2.1.conv2' in left
    assert weights_left(tiny_net().state_dict()) == {}


# ---- files

@pytest.mark.parametrize('kind', GATES)
def test_files_hold_gates_of_every_kind(kind: str, tmp_path: Path) -> None:
    net = trained(kind)
    save_network(net, tmp_path / 'net.safetensors')
    read: Any = load_network(tmp_path / 'net.safetensors')
    assert read.spec == net.spec
    same_function(read, net, 0)


def test_a_spec_says_its_gates_as_older_versions_read_them_where_they_can() -> None:
    said = {gates: json.loads(Spec('A', gates=gates).to_json()) for gates in ('', *GATES)}
    assert (said['']['format'], said['']['gated']) == (1, False)
    assert (said['scale']['format'], said['scale']['gated']) == (1, True)
    for gates in ('weight_norm', 'mask'):  # an older version says that it is too old
        assert (said[gates]['format'], said[gates]['gates']) == (2, gates) and 'gated' not in said[gates]
    for gates in ('', *GATES):
        assert Spec.from_json(json.dumps(said[gates])) == Spec('A', gates=gates)
    with pytest.raises(ValueError, match='ill-typed entries: gated'):
        Spec.from_json(json.dumps({**said['scale'], 'gated': 'scale'}))


def test_option_files_may_say_gated() -> None:
    assert tiny_net(gated=True).spec == tiny_net(gates='scale').spec
