"""PrunableEDSR against BasicSR's EDSR, against a forward pass written out step by step, and against the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.edsr_arch import EDSR
from nets import random_gates_, randomise_
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl.api import count_macs, count_params, cut_network, prune_network, with_gates, without_gates
from basicsr_ssl.archs import PrunableEDSR
from basicsr_ssl.checkpoints.store import load_network, save_network
from basicsr_ssl.pruning.gates import GATES, close_gates

VARIANTS: dict[str, dict[str, Any]] = {
    'x2-rsc': {'scale': 2, 'residual': 'rsc'},
    'x3-aligned': {'scale': 3, 'residual': 'aligned'},
    'x4-full': {'scale': 4, 'residual': 'full'},
    'x4-rsc-direct': {'scale': 4, 'residual': 'rsc', 'upsampler': 'pixelshuffledirect'},
    'x3-aligned-direct': {'scale': 3, 'residual': 'aligned', 'upsampler': 'pixelshuffledirect'},
    'groups-aligned': {'scale': 2, 'residual': 'aligned', 'num_group': 2},
    'groups-rsc': {'scale': 2, 'residual': 'rsc', 'num_group': 2, 'res_scale': 0.5},
}


def tiny_edsr(seed: int = 0, **args: Any) -> Any:
    torch.manual_seed(seed)
    net = PrunableEDSR(**{'num_feat': 8, 'num_block': 2, 'img_range': 2.0, **args})
    randomise_(net)
    return net


def image(height: int = 9, width: int = 7, batch: int = 2, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_units(net: Any, seed: int = 3) -> dict[str, list[int]]:
    """A random selection that leaves 1 to all but one of the units of each group."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator)
            [:int(torch.randint(1, group.size, (), generator=generator))].sort().values.tolist()
            for group in net.groups}


def shuffle_slowly(x: Tensor, r: int) -> Tensor:
    """(b, r*r*c, h, w) to (b, c, r*h, r*w): channel r*r*c + r*i + j becomes pixel (i, j) of channel c."""
    b, c, h, w = x.shape
    out = x.new_zeros(b, c // r**2, r * h, r * w)
    for channel in range(c):
        out[:, channel // r**2, channel // r % r::r, channel % r::r] = x[:, channel]
    return out


def forward_slowly(state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor) -> Tensor:
    """The dense network from nothing but its weights."""
    mean = torch.tensor(args['rgb_mean'], dtype=torch.float32).to(x.dtype).view(1, 3, 1, 1)

    def conv(name: str, features: Tensor) -> Tensor:
        return F.conv2d(features, state[f'{name}.weight'], state[f'{name}.bias'], padding=1)

    def blocks(prefix: str, features: Tensor) -> Tensor:
        for j in range(args['num_block']):
            inner = conv(f'{prefix}.{j}.conv1', features).clamp_min(0)
            features = features + args['res_scale'] * conv(f'{prefix}.{j}.conv2', inner)
        return features

    first = out = conv('conv_first', (x - mean) * args['img_range'])
    for group in range(args['num_group']):
        out = out + conv(f'body.{group}.conv', blocks(f'body.{group}.residual_group', out))
    if not args['num_group']:
        out = blocks('body', out)
    out = first + conv('conv_after_body', out)
    if args['upsampler'] == 'pixelshuffledirect':
        out = shuffle_slowly(conv('upsample.0', out), args['scale'])
    else:
        for i, r in enumerate({2: [2], 3: [3], 4: [2, 2]}[args['scale']]):
            out = shuffle_slowly(conv(f'upsample.{2 * i}', out), r)
        out = conv('conv_last', out)
    return out / args['img_range'] + mean


# ---- the dense form

@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-10)],
                         ids=['float32', 'float64'])
def test_dense_equals_basicsr(scale: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    theirs = EDSR(3, 3, num_feat=8, num_block=2, upscale=scale, res_scale=0.5, img_range=2.0)  # type: ignore[arg-type]
    randomise_(theirs)
    ours = PrunableEDSR(num_feat=8, num_block=2, scale=scale, res_scale=0.5, img_range=2.0)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = image(dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(ours.to(dtype)(x), theirs.to(dtype)(x), rtol=0, atol=tolerance)


def test_default_arguments_are_those_of_basicsr() -> None:
    theirs, ours = EDSR(3, 3), PrunableEDSR()
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == \
        {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert (ours.img_range, ours.mean.flatten().tolist()) == (theirs.img_range, theirs.mean.flatten().tolist())


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('grad', [True, False], ids=['training', 'inference'])
def test_output_equals_the_slow_forward(args: dict[str, Any], grad: bool) -> None:
    net, x = tiny_edsr(**args).double(), image()
    before = x.clone()
    with torch.set_grad_enabled(grad):
        out = net(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(out.detach(), forward_slowly(net.state_dict(), net.spec.args, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_streamed_images_equal_forward_bit_for_bit(args: dict[str, Any]) -> None:
    dense = tiny_edsr(**args).double()
    images = [image(), image(5, 8)]
    before = [x.clone() for x in images]
    nets: list[Any] = [dense, cut_network(dense, some_units(dense))]
    for net in nets:
        for streamed, x in zip(net.stream(iter(images)), images):
            assert torch.equal(streamed, net(x)) and not streamed.requires_grad
    assert all(map(torch.equal, images, before))


# ---- gated and compact

@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kind', GATES)
def test_fresh_gates_change_nothing_and_stand_where_the_groups_say(kind: str, args: dict[str, Any]) -> None:
    dense, x = tiny_edsr(**args), image(dtype=torch.float32)
    gated: Any = with_gates(dense, kind)
    declared = {gate: group.size for group in dense.groups for gate in group.gates if kind != 'mask'}
    assert {name: len(gate) for name, gate in gated.named_parameters() if 'gate' in name} == declared
    with torch.no_grad():
        assert torch.equal(gated(x), dense(x))


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kind', ['scale', 'weight_norm'])
@pytest.mark.parametrize('grad', [True, False], ids=['training', 'inference'])
def test_closed_gates_equal_the_cut_network(args: dict[str, Any], kind: str, grad: bool) -> None:
    gated: Any = with_gates(tiny_edsr(**args), kind).double()
    random_gates_(gated)
    kept, x = some_units(gated), image()
    compact: Any = cut_network(gated, kept)
    assert compact.spec.form == 'compact' and all(compact.spec.widths[name] == len(units)
                                                  for name, units in kept.items())
    gated.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compact(x), gated(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(without_gates(gated)(x), gated(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_cutting_twice_equals_cutting_once(args: dict[str, Any]) -> None:
    net, x = tiny_edsr(**args).double(), image()
    kept = some_units(net)
    half: Any = cut_network(net, {name: sorted({*units, 0, 7}) for name, units in kept.items()})
    again = {name: [sorted({*units, 0, 7}).index(unit) for unit in units] for name, units in kept.items()}
    once, twice = cut_network(net, kept), cut_network(half, again)
    assert once.spec == twice.spec
    with torch.no_grad():
        assert torch.equal(once(x), twice(x))


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_learns(args: dict[str, Any]) -> None:
    dense = tiny_edsr(**args)
    for net in (dense, with_gates(dense), cut_network(dense, {group.name: [0, 2, 3, 5, 7] for group in dense.groups})):
        net(image(dtype=torch.float32)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_an_aligned_stream_is_one_group_of_all_that_writes_or_reads_it() -> None:
    groups = {group.name: group for group in tiny_edsr(residual='aligned', scale=2, num_block=1).groups}
    assert {(s.param, s.dim, bool(s.gate)) for s in groups['stream'].slices} == {
        ('conv_first.weight', 0, True), ('conv_first.bias', 0, True), ('body.0.conv1.weight', 1, False),
        ('body.0.conv2.weight', 0, True), ('body.0.conv2.bias', 0, True), ('conv_after_body.weight', 0, True),
        ('conv_after_body.weight', 1, False), ('conv_after_body.bias', 0, True), ('upsample.0.weight', 1, False)}
    narrow: Any = cut_network(tiny_edsr(residual='aligned', scale=2), {'stream': [1, 2, 6]})
    assert not narrow.spec.index and {conv.cout for conv in narrow.cost_table if conv.name in (
        'conv_first', 'body.0.conv2', 'body.1.conv2', 'conv_after_body')} == {3}


def test_files_and_other_kinds_of_selection_know_it(tmp_path) -> None:
    for residual in ('aligned', 'rsc', 'full'):
        net = tiny_edsr(residual=residual, scale=3)
        small: Any = prune_network(net, 0.4, budget='macs', score='l1')
        assert count_macs(small) <= 0.6 * count_macs(net)
        save_network(small, tmp_path / 'small.safetensors')
        again = load_network(tmp_path / 'small.safetensors')
        assert again.spec == small.spec
        with torch.no_grad():
            x = image(dtype=torch.float32)
            assert torch.equal(again(x), small(x))


# ---- cost

@pytest.mark.parametrize('form', ['dense', 'gated', 'compact'])
@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_cost_equals_the_tensors_and_pytorchs_counter(form: str, args: dict[str, Any]) -> None:
    net: Any = tiny_edsr(**args)
    net = with_gates(net) if form == 'gated' else cut_network(net, some_units(net)) if form == 'compact' else net
    real = {name: (m.in_channels, m.out_channels) for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {conv.name: (conv.cin, conv.cout) for conv in net.cost_table} == real
    assert count_params(net) == sum(p.numel() for name, p in net.named_parameters() if 'gate' not in name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image(batch=1, dtype=torch.float32))
    assert count_macs(net, (9, 7)) == counter.get_total_flops() / 2


def narrowed(channels: int, scale: int) -> Any:
    """The papers' EDSR of 256 channels and 16 blocks with every width cut to ``channels``."""
    with torch.device('meta'):
        dense = PrunableEDSR(256, 16, scale=scale, upsampler='pixelshuffledirect',  # type: ignore[arg-type]
                             residual='aligned')
        return PrunableEDSR(**{**dense.spec.args, 'widths': {group.name: channels for group in dense.groups}})


# For HR images of 1280x720, whose third is no whole number of columns: the tables of ASSL count a third of a row and
# round, that of SRP takes 426 columns and cuts the digits off.
@pytest.mark.parametrize(('channels', 'scale', 'params', 'mult_adds'), [
    (49, 2, '0.721', '165.8'), (49, 3, '0.728', '74.4'), (49, 4, '0.737', '42.4'),
    (45, 2, '0.609', '140.0'), (45, 3, '0.615', '62.8'), (45, 4, '0.624', '35.8'),
])
def test_budgets_of_assl(channels: int, scale: int, params: str, mult_adds: str) -> None:
    net = narrowed(channels, scale)
    assert f'{count_params(net) / 1e6:.3f}' == params
    assert f'{count_macs(net, (720, 1280)) / scale**2 / 1e9:.1f}' == mult_adds


@pytest.mark.parametrize(('scale', 'params', 'mult_adds'), [(2, 609, 1399), (3, 615, 627), (4, 623, 358)])
def test_budgets_of_srp(scale: int, params: int, mult_adds: int) -> None:
    net = narrowed(45, scale)
    assert count_params(net) // 1000 == params
    assert count_macs(net, (720 // scale, 1280 // scale)) // 10**8 == mult_adds


# ---- arguments

@pytest.mark.parametrize(('args', 'message'), [
    ({'scale': 8}, r'scale must be one of 2, 3, 4, got 8'),
    ({'residual': 'free'}, r"residual must be one of 'aligned', 'rsc', 'full', got 'free'"),
    ({'upsampler': 'direct'}, r"upsampler must be one of 'pixelshuffle', 'pixelshuffledirect', got 'direct'"),
    ({'num_feat': 0}, r'num_feat must be at least 1, got 0'),
    ({'num_group': -1}, r'num_group must be at least 0, got -1'),
    ({'img_range': 0}, r'img_range must be above 0'),
    ({'rgb_mean': [0.5]}, r'rgb_mean have 3 numbers'),
    ({'widths': {'stream': 4}}, r'no such group in this network: stream'),
    ({'residual': 'aligned', 'widths': {'stream': 9}}, r'stream must be within 1\.\.8, got 9'),
    ({'widths': {'conv_after_body.in': 4}}, r'conv_after_body\.in keeps 4 of 8 channels, and needs an index'),
    ({'upsampler': 'pixelshuffledirect', 'widths': {'upsample.0': 4}}, r'no such group in this network: upsample\.0'),
])
def test_bad_arguments_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_edsr(**args)
