"""PrunableBasicVSR against BasicSR's BasicVSR, and against a forward pass written out step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import spynet_arch
from basicsr.archs.arch_util import flow_warp as basicsr_flow_warp
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.spynet_arch import SpyNet
from nets import VARIANTS, clip, random_gates_, randomise_, tiny_net
from torch import Tensor

from basicsr_ssl.api import cut_network, with_gates
from basicsr_ssl.archs import BicubicUpsampler, PrunableBasicVSR
from basicsr_ssl.nn.spynet import AnySizeSpyNet
from basicsr_ssl.nn.warp import flow_warp

# ---- an independent forward pass

class FunctionalWithEmptyFlows:
    """``torch.nn.functional`` for BasicSR's SPyNet: enlarging or padding an empty flow gives an empty or zero one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)

    @staticmethod
    def interpolate(input: Tensor, **options: Any) -> Tensor:
        if input.numel():
            return F.interpolate(input, **options)
        return input.new_zeros(*input.shape[:2], *(side * options['scale_factor'] for side in input.shape[2:]))

    @staticmethod
    def pad(input: Tensor, pad: list[int], mode: str) -> Tensor:
        if input.numel():
            return F.pad(input, pad, mode)
        return input.new_zeros(*input.shape[:2], input.shape[2] + pad[3], input.shape[3] + pad[1])


@pytest.fixture
def basicsr_spynet_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's own SPyNet starts from a flow of half the coarsest level's size: empty for up to 32 pixels."""
    monkeypatch.setattr(spynet_arch, 'F', FunctionalWithEmptyFlows())


def warp_slowly(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear sampling of features (c, h, w) at position + flow (2, h, w), pixel by pixel; zero outside."""
    h, w = x.shape[1:]
    out = torch.zeros_like(x)
    for row in range(h):
        for column in range(w):
            at_x, at_y = column + float(flow[0, row, column]), row + float(flow[1, row, column])
            left, top = int(at_x // 1), int(at_y // 1)
            for y in (top, top + 1):
                for z in (left, left + 1):
                    if 0 <= y < h and 0 <= z < w:
                        out[:, row, column] += (1 - abs(at_y - y)) * (1 - abs(at_x - z)) * x[:, y, z]
    return out


def shuffle_slowly(x: Tensor) -> Tensor:
    """(b, 4c, h, w) to (b, c, 2h, 2w): channel 4c + 2i + j becomes pixel (i, j) of channel c."""
    b, c, h, w = x.shape
    out = x.new_zeros(b, c // 4, 2 * h, 2 * w)
    for channel in range(c):
        out[:, channel // 4, channel // 2 % 2::2, channel % 2::2] = x[:, channel]
    return out


def forward_slowly(state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames and hidden states of a dense network from nothing but its weights."""
    n, feat, scale = x.shape[1], args['num_feat'], args['scale']
    slope = 0.1 if args['act'] == 'lrelu' else 0.0
    spynet = None
    if args['flow'] == 'spynet':
        spynet = SpyNet().to(x.dtype)
        spynet.load_state_dict({name[7:]: tensor for name, tensor in state.items() if name.startswith('spynet.')})

    def act(features: Tensor) -> Tensor:
        return torch.where(features > 0, features, slope * features)

    def conv(name: str, features: Tensor) -> Tensor:
        weight = state[f'{name}.weight']
        return F.conv2d(features, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2)

    def propagate(trunk: str, order: list[int]) -> dict[int, Tensor]:
        hidden, last = {}, None
        for i in order:
            before = torch.zeros(x.shape[0], feat, *x.shape[-2:], dtype=x.dtype)
            if last is not None:
                before = hidden[last]
                if spynet is not None:
                    flow = spynet(x[:, i], x[:, last])
                    before = torch.stack([warp_slowly(f, d) for f, d in zip(before, flow)])
            features = act(conv(f'{trunk}.main.0', torch.cat((x[:, i], before), 1)))
            for j in range(args['num_block']):
                block = f'{trunk}.main.2.{j}'
                features = features + conv(f'{block}.conv2', conv(f'{block}.conv1', features).clamp_min(0))
            hidden[i], last = features, i
        return hidden

    states = {'forward': propagate('forward_trunk', list(range(n)))}
    if args['bidirectional']:
        states['backward'] = propagate('backward_trunk', list(range(n))[::-1])
    frames = []
    for i in range(n):
        out = states['forward'][i]
        if args['bidirectional']:
            out = act(conv('fusion', torch.cat((states['backward'][i], out), 1)))
        out = act(shuffle_slowly(conv('upconv1', out)))
        if scale == 4:
            out = act(shuffle_slowly(conv('upconv2', out)))
        out = conv('conv_last', act(conv('conv_hr', out)))
        frames.append(out + F.interpolate(x[:, i], scale_factor=scale, mode='bilinear', align_corners=False))
    return torch.stack(frames, 1), {name: torch.stack([kept[i] for i in range(n)], 1) for name, kept in states.items()}


# ---- the dense form

@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-6), (torch.float64, 1e-10)],
                         ids=['float32', 'float64'])
def test_dense_equals_basicsr(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    theirs = BasicVSR(num_feat=8, num_block=2)
    randomise_(theirs)
    ours = PrunableBasicVSR(num_feat=8, num_block=2, tail_feat=64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = clip(2, 33, 45, dtype=dtype)  # BasicSR's SPyNet needs more than 32 pixels
    with torch.no_grad():
        torch.testing.assert_close(ours.to(dtype)(x), theirs.to(dtype)(x), rtol=0, atol=tolerance)


def test_default_arguments_have_the_parameters_of_basicsr() -> None:
    theirs, ours = BasicVSR(num_feat=64, num_block=30), PrunableBasicVSR()
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == \
        {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def test_residual_blocks_start_as_in_basicsr() -> None:
    torch.manual_seed(0)
    theirs, ours = BasicVSR(num_feat=64, num_block=1).state_dict(), PrunableBasicVSR(num_block=1).state_dict()
    for conv in ('conv1', 'conv2'):
        name = f'forward_trunk.main.2.0.{conv}'
        assert float(ours[f'{name}.weight'].std()) == pytest.approx(float(theirs[f'{name}.weight'].std()), rel=0.03)
        assert not ours[f'{name}.bias'].any()


REFERENCE_CASES: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    **{name: (args, 3, (12, 16)) for name, args in VARIANTS.items() if 'flow' not in args},
    'relu': ({'act': 'relu'}, 3, (12, 16)),
    'spynet-bi': ({'flow': 'spynet'}, 3, (12, 16)),
    'spynet-uni-x2': ({'flow': 'spynet', 'bidirectional': False, 'scale': 2}, 3, (13, 17)),
    'spynet-flat': ({'flow': 'spynet', 'bidirectional': False}, 2, (5, 35)),
    'uneven-size': ({}, 3, (13, 17)),
    'one-frame': ({'flow': 'spynet'}, 1, (12, 16)),
    'one-frame-uni': ({'flow': 'spynet', 'bidirectional': False}, 1, (13, 17)),
    'one-pixel': ({}, 2, (1, 1)),
}


@pytest.mark.parametrize(('args', 'frames', 'size'), REFERENCE_CASES.values(), ids=REFERENCE_CASES)
def test_frames_and_hidden_states_equal_the_slow_forward(args: dict[str, Any], frames: int, size: tuple[int, int],
                                                         basicsr_spynet_of_any_size: None) -> None:
    net = tiny_net(**args).double()
    x = clip(frames, *size, batch=2, dtype=torch.float64)
    with torch.no_grad():
        out, states = net(x, return_states=True)
        expected, expected_states = forward_slowly(net.state_dict(), net.spec.args, x)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        for found in (states, net.hidden_states(x)):
            assert found.keys() == expected_states.keys()
            for direction, values in expected_states.items():
                torch.testing.assert_close(found[direction], values, rtol=0, atol=1e-10)


def test_streaming_frame_by_frame_equals_the_whole_clip() -> None:
    net = tiny_net(bidirectional=False, flow='spynet').double()
    x = clip(4, dtype=torch.float64)
    with torch.no_grad():
        whole, states = net(x, return_states=True)
        state = torch.zeros(1, 8, 12, 16, dtype=torch.float64)
        for i in range(4):
            if i:
                flow, none = net.compute_flows(x[:, i - 1:i + 1])
                assert none is None and flow is not None
                state = flow_warp(state, flow[:, 0])
            state = net.forward_trunk(torch.cat((x[:, i], state), 1))
            torch.testing.assert_close(state, states['forward'][:, i], rtol=0, atol=1e-10)
            torch.testing.assert_close(net.upsample(x[:, i], None, state), whole[:, i], rtol=0, atol=1e-10)


STREAMED: dict[str, dict[str, Any]] = {**VARIANTS, 'spynet-bi': {'flow': 'spynet'},
                                       'spynet-uni': {'flow': 'spynet', 'bidirectional': False}}


@pytest.mark.parametrize(('dtype', 'batch'), [(torch.float32, 2), (torch.float64, 1)], ids=['float32', 'float64'])
@pytest.mark.parametrize('args', STREAMED.values(), ids=STREAMED)
def test_streamed_clip_equals_forward_bit_for_bit(args: dict[str, Any], dtype: torch.dtype, batch: int) -> None:
    """Dense, and compact with blocks that update in place; more frames than flows are estimated at once."""
    dense: Any = tiny_net(**args)
    x = clip(7, 13, 17, batch=batch, dtype=dtype)
    before = x.clone()
    compact: Any = cut_network(dense, some_units(dense))
    for net in (dense.to(dtype), compact.to(dtype)):
        with torch.no_grad():
            whole = net(x)
        for keep in ('device', 'host'):
            frames = list(net.stream(iter(x.unbind(1)), keep))
            assert not any(frame.requires_grad for frame in frames)
            assert torch.equal(torch.stack(frames, 1), whole)
        assert torch.equal(x, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_states_that_wait_in_page_locked_memory_come_back_as_they_were() -> None:
    net: Any = tiny_net(flow='spynet').to('cuda')
    x = clip(9, 40, 48).to('cuda')
    on_device = torch.stack(list(net.stream(x)), 1)
    assert torch.equal(torch.stack(list(net.stream(x, 'host')), 1), on_device)
    with torch.no_grad():
        torch.testing.assert_close(on_device, net(x), rtol=0, atol=1e-5)


def test_stream_of_one_frame_and_of_an_unknown_place() -> None:
    net, x = tiny_net(flow='spynet'), clip(1)
    with torch.no_grad():
        assert torch.equal(next(net.stream(x)), net(x)[:, 0])
    with pytest.raises(ValueError, match=r"keep must be one of 'device', 'host', got 'disk'"):
        next(net.stream(x, 'disk'))  # type: ignore[arg-type]


@pytest.mark.parametrize('flow', ['none', 'spynet'])
def test_steps_equal_forward(flow: str) -> None:
    dense = tiny_net(bidirectional=False, flow=flow).double()
    x = clip(6, batch=2, dtype=torch.float64)
    nets: list[Any] = [dense, cut_network(dense, some_units(dense))]
    for net in nets:
        output, states = net(x, return_states=True)
        state: Any = None
        for i in range(6):
            given = [tensor.clone() for tensor in state or ()]
            frame, new = net.step(x[:, i], state)
            assert all(map(torch.equal, state or (), given))
            state = new
            torch.testing.assert_close(frame, output[:, i].detach(), rtol=0, atol=1e-12)
            torch.testing.assert_close(state[1], states['forward'][:, i].detach(), rtol=0, atol=1e-12)
            assert not frame.requires_grad


def test_a_bidirectional_network_takes_no_steps() -> None:
    with pytest.raises(ValueError, match='a bidirectional network needs the frames to come: use stream'):
        tiny_net().step(clip(1)[:, 0])


def test_a_unidirectional_stream_takes_frames_when_it_needs_them() -> None:
    taken = []
    stream = tiny_net(bidirectional=False, flow='spynet').stream(
        taken.append(i) or frame for i, frame in enumerate(clip(4).unbind(1)))
    for i in range(4):
        next(stream)
        assert taken == list(range(i + 1))


def test_streamed_bicubic_frames_are_those_of_the_clip() -> None:
    x = clip(3, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(list(BicubicUpsampler(3).stream(x)), 1), BicubicUpsampler(3)(x), rtol=0,
                               atol=1e-14)


def test_later_frames_do_not_reach_earlier_ones_of_a_unidirectional_network() -> None:
    net, x = tiny_net(bidirectional=False, flow='spynet'), clip(3)
    changed = x.clone()
    changed[:, 2] = 0
    with torch.no_grad():
        torch.testing.assert_close(net(x)[:, :2], net(changed)[:, :2], rtol=0, atol=0)


# ---- the other forms

def some_units(net: PrunableBasicVSR, seed: int = 3) -> dict[str, list[int]]:
    """A random selection that leaves 1 to all units of each group."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator)
            [:int(torch.randint(1, group.size + 1, (), generator=generator))].sort().values.tolist()
            for group in net.groups}


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_fresh_gated_network_equals_the_dense_one_exactly(args: dict[str, Any]) -> None:
    dense, x = tiny_net(**args), clip()
    gated = with_gates(dense)
    own = {name for group in dense.groups for name in group.gates}
    assert {name for name, _ in gated.named_parameters()} - {name for name, _ in dense.named_parameters()} == own
    with torch.no_grad():
        assert torch.equal(gated(x), dense(x))


def test_gates_multiply_the_convolutions_output_including_its_bias() -> None:
    gated: Any = tiny_net(gated=True).double()
    random_gates_(gated)
    features = torch.randn(2, 8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv1, upconv1 = gated.forward_trunk.main[2][0].conv1, gated.upconv1
    inner = F.conv2d(features * conv1.gate_in.view(1, 8, 1, 1), conv1.weight, conv1.bias, padding=1)
    torch.testing.assert_close(conv1(features), inner * conv1.gate.view(1, 8, 1, 1), rtol=0, atol=1e-12)
    # one gate for the four filters that the pixel shuffle joins to one channel
    shuffled = F.pixel_shuffle(F.conv2d(features, upconv1.weight, upconv1.bias, padding=1), 2)
    torch.testing.assert_close(F.pixel_shuffle(upconv1(features), 2), shuffled * upconv1.gate.view(1, 8, 1, 1),
                               rtol=0, atol=1e-12)


@pytest.mark.parametrize('scale', [2, 4])
def test_untrained_network_is_bilinear_upsampling(scale: Literal[2, 4]) -> None:
    torch.manual_seed(0)
    net, x = PrunableBasicVSR(8, 1, 8, scale=scale, flow='none'), clip(frames=2)
    expected = F.interpolate(x[0], scale_factor=scale, mode='bilinear', align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], expected, rtol=0, atol=1e-6)
        features = net.hidden_states(x)['forward']
    assert 0.1 < float(features.std()) < 5  # alive, so that the last layer has something to learn from


def test_blocks_and_upsampling_start_at_a_tenth() -> None:
    torch.manual_seed(0)
    net = PrunableBasicVSR(16, 2, 16, flow='none')
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and name != 'conv_last':
            small = '.main.2.' in name or name in ('upconv1', 'upconv2')
            expected = (2 / 1.01 / layer.weight[0].numel())**0.5 * (0.1 if small else 1)  # Kaiming, slope 0.1
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.1), name


@pytest.mark.parametrize('args', [*VARIANTS.values(), {'flow': 'spynet'}], ids=[*VARIANTS, 'spynet'])
@pytest.mark.parametrize('form', ['dense', 'gated', 'compact'])
def test_every_parameter_gets_a_gradient(form: str, args: dict[str, Any]) -> None:
    # a seed under which no unit of the narrow networks is a dead ReLU on this clip
    net: Any = tiny_net(seed=1, gated=form == 'gated', **args)
    if form == 'compact':
        net = cut_network(net, some_units(net))
    assert net.spec.form == form
    net(clip(3)).square().mean().backward()
    # the coarse levels of the flow network see a single pixel, and most of their units may be dead
    without = [name for name, parameter in net.named_parameters()
               if parameter.grad is None or not (parameter.grad.abs().sum() > 0 or name.startswith('spynet.'))]
    assert not without


def test_gradients_of_gates_equal_finite_differences() -> None:
    net, x = tiny_net(gated=True).double(), clip(2, 6, 6, dtype=torch.float64)
    random_gates_(net)
    net(x).square().sum().backward()
    for name in ('forward_trunk.main.2.1.conv1.gate_in', 'backward_trunk.main.2.0.conv1.gate', 'upconv1.gate'):
        gate = net.get_parameter(name)
        assert gate.grad is not None
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                gate[3] += step
                values.append(float(net(x).square().sum()))
                gate[3] -= step
        assert float(gate.grad[3]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


# ---- nothing is damaged, and both ways of running agree

@pytest.mark.parametrize(('form', 'flow'), [('dense', 'none'), ('gated', 'none'), ('compact', 'none'),
                                            ('compact', 'spynet')])
@pytest.mark.parametrize('bidirectional', [True, False], ids=['bi', 'uni'])
def test_inference_in_place_changes_neither_input_nor_result(form: str, flow: str, bidirectional: bool) -> None:
    net: Any = tiny_net(gated=form == 'gated', bidirectional=bidirectional, flow=flow).double()
    if form == 'compact':
        net = cut_network(net, some_units(net))
    x = clip(7, dtype=torch.float64)  # more frames than flows are estimated at once
    before = x.clone()
    with torch.no_grad():
        states = net.hidden_states(x)
        held = {name: state.clone() for name, state in states.items()}
        first, second = torch.stack(list(net.stream(x)), 1), net(x)
    trained, trained_states = net(x, return_states=True)
    assert torch.equal(x, before)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, trained, rtol=0, atol=1e-10)
    for name, state in states.items():
        assert torch.equal(state, held[name])
        torch.testing.assert_close(state, trained_states[name], rtol=0, atol=1e-10)


def test_one_clip_of_a_batch_does_not_touch_the_other() -> None:
    net, x = tiny_net(flow='spynet').double(), clip(3, batch=2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:], net(x[1:]), rtol=0, atol=1e-10)


def test_channels_last_gives_the_same() -> None:
    net: Any = tiny_net(flow='spynet')
    x = clip()
    with torch.no_grad():
        plain = net(x)
        torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize('grad', [True, False], ids=['training', 'inference'])
def test_autocast_keeps_flows_in_full_precision(grad: bool) -> None:
    net, x = tiny_net(flow='spynet'), clip()
    with torch.set_grad_enabled(grad):
        flows = net.compute_flows(x)
        full = net(x)
        with torch.autocast('cpu', torch.bfloat16):
            for exact, cast in zip(flows, net.compute_flows(x)):
                assert exact is not None and cast is not None
                assert torch.equal(exact, cast)
            half = net(x)
    assert float((half - full).detach().abs().mean()) < 0.02


# ---- flow and warping

def test_spynet_equals_basicsr() -> None:
    torch.manual_seed(0)
    theirs, ours = SpyNet().double(), AnySizeSpyNet().double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    one, other = clip(2, 40, 70, dtype=torch.float64)[0, :, None]
    with torch.no_grad():
        torch.testing.assert_close(ours(one, other), theirs(one, other), rtol=0, atol=1e-12)



@pytest.mark.parametrize('size', [(5, 7), (1, 6), (6, 1), (1, 1)], ids=lambda size: 'x'.join(map(str, size)))
def test_flow_warp_equals_basicsr_and_the_definition(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    flow = 3 * torch.randn(2, 2, *size, dtype=torch.float64, generator=generator)  # some point outside the frame
    warped = flow_warp(x, flow)
    torch.testing.assert_close(warped, basicsr_flow_warp(x, flow.permute(0, 2, 3, 1)), rtol=0, atol=1e-12)
    if min(size) > 1:  # a side of one pixel has no scale: every position is that pixel, as in BasicSR
        slow = torch.stack([warp_slowly(f, d) for f, d in zip(x, flow)])
        torch.testing.assert_close(warped, slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize('flow_type', [torch.bfloat16, torch.float32], ids=['bfloat16-flow', 'float32-flow'])
def test_flow_warp_finds_every_pixel_of_wide_bfloat16_features(flow_type: torch.dtype) -> None:
    x = (torch.arange(700) * 37 % 251).to(torch.bfloat16).expand(1, 1, 700, 700)  # whole numbers, exact in bfloat16
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 700, 700).to(flow_type)
    warped = flow_warp(x, flow)
    assert warped.dtype == torch.bfloat16
    assert torch.equal(warped[..., 2:, :-3], x[..., :-2, 3:])
    assert not warped[..., -3:].any() and not warped[..., :2, :].any()


# ---- arguments

WIDTH = 'forward_trunk.main.2.0'
BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    'scale': ({'scale': 3}, r'scale must be one of 2, 4, got 3'),
    'act': ({'act': 'gelu'}, r"act must be one of 'lrelu', 'relu', got 'gelu'"),
    'flow': ({'flow': 'raft'}, r"flow must be one of 'spynet', 'spynet_small', 'none', got 'raft'"),
    'num_feat': ({'num_feat': 0}, r'num_feat must be at least 1, got 0'),
    'num_block': ({'num_block': 0}, r'num_block must be at least 1, got 0'),
    'tail_feat': ({'tail_feat': -1}, r'tail_feat must be at least 1, got -1'),
    'unknown-width': ({'widths': {'fusio': 3}}, r'no such group in this network: fusio \(it has 16'),
    'unknown-index': ({'index': {'nowhere.in': [1]}}, r'no such group in this network: nowhere\.in'),
    'group-of-another-variant': ({'bidirectional': False, 'widths': {'fusion': 3}}, r'no such group.*fusion'),
    'gated-and-narrow': ({'gated': True, 'widths': {'fusion': 3}}, r'a gated network has full widths'),
    'width-zero': ({'widths': {'fusion': 0}}, r'fusion must be within 1\.\.8, got 0'),
    'width-too-large': ({'widths': {'fusion': 9}}, r'fusion must be within 1\.\.8, got 9'),
    'index-missing': ({'widths': {f'{WIDTH}.in': 2}}, r'keeps 2 of 8 channels, and needs an index'),
    'index-of-full-group': ({'index': {f'{WIDTH}.in': list(range(8))}}, r'takes no index when it is full'),
    'index-not-taken': ({'widths': {f'{WIDTH}.mid': 2}, 'index': {f'{WIDTH}.mid': [0, 1]}}, r'takes no index, its'),
    'index-too-short': ({'widths': {f'{WIDTH}.in': 2}, 'index': {f'{WIDTH}.in': [1]}}, r'must name 2 distinct'),
    'index-twice': ({'widths': {f'{WIDTH}.out': 2}, 'index': {f'{WIDTH}.out': [1, 1]}}, r'must name 2 distinct'),
    'index-descending': ({'widths': {f'{WIDTH}.out': 2}, 'index': {f'{WIDTH}.out': [3, 1]}}, r'ascending'),
    'index-out-of-range': ({'widths': {f'{WIDTH}.in': 2}, 'index': {f'{WIDTH}.in': [1, 8]}}, r'within 0\.\.7'),
    'index-negative': ({'widths': {f'{WIDTH}.in': 2}, 'index': {f'{WIDTH}.in': [-1, 8]}}, r'within 0\.\.7'),
}


@pytest.mark.parametrize(('args', 'message'), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_net(**args)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match='num_feats'):
        tiny_net(num_feats=8)


def test_full_widths_written_out_are_the_dense_network() -> None:
    assert tiny_net(widths={'fusion': 8}).spec == tiny_net().spec


def test_spynet_path_reads_what_basicsr_saves(tmp_path) -> None:
    torch.manual_seed(5)
    weights = {name: tensor for name, tensor in SpyNet().state_dict().items() if name not in ('mean', 'std')}
    torch.save({'params': weights}, tmp_path / 'spynet.pth')
    net = tiny_net(flow='spynet').__class__(num_feat=8, num_block=1, spynet_path=str(tmp_path / 'spynet.pth'))
    assert net.spynet is not None
    assert all(torch.equal(net.spynet.state_dict()[name], tensor) for name, tensor in weights.items())
    assert 'spynet_path' not in net.spec.args


@pytest.mark.parametrize('damage', ['incomplete', 'foreign', 'shape'])
def test_spynet_path_of_other_weights_is_refused(damage: str, tmp_path) -> None:
    weights = SpyNet().state_dict()
    if damage == 'incomplete':
        del weights['basic_module.5.basic_module.8.bias']
    elif damage == 'foreign':
        weights = tiny_net().state_dict()
    else:
        weights['basic_module.0.basic_module.0.bias'] = torch.zeros(3)
    torch.save({'params': weights}, tmp_path / 'flow.pth')
    with pytest.raises(ValueError, match=r'spynet_path: .*flow\.pth does not hold the weights of SpyNet'):
        tiny_net(flow='spynet', spynet_path=str(tmp_path / 'flow.pth'))
