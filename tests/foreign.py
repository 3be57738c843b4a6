"""Networks as other projects save them, and what they compute, written out without any class of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Convs = dict[str, tuple[int, int, int]]  # filters, channels, side of the kernel
Lists = dict[str, dict[str, list[int]]]
# of ImageNet, RGB; in float32, as the flow network's buffers are
CONSTANTS = {'mean': torch.tensor([.485, .456, .406]).view(1, 3, 1, 1),
             'std': torch.tensor([.229, .224, .225]).view(1, 3, 1, 1)}


def weights(names: Convs, seed: int = 0) -> State:
    """Random weights and biases of convolutions."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (cout, cin, kernel) in names.items():
        scale = (cin * kernel**2)**-0.5
        state[f'{name}.weight'] = torch.randn(cout, cin, kernel, kernel, generator=generator) * scale
        state[f'{name}.bias'] = torch.randn(cout, generator=generator) * 0.1
    return state


def spynet_convs(prefix: str = '') -> Convs:
    sizes = ((32, 8), (64, 32), (32, 64), (16, 32), (2, 16))
    return {f'{prefix}basic_module.{level}.basic_module.{2 * i}': (cout, cin, 7)
            for level in range(6) for i, (cout, cin) in enumerate(sizes)}


def basicvsr_convs(feat: int = 8, blocks: int = 2, tail: int = 64, flow: bool = True) -> Convs:
    """Convolutions of BasicSR's BasicVSR."""
    convs = spynet_convs('spynet.') if flow else {}
    for trunk in ('backward_trunk', 'forward_trunk'):
        convs[f'{trunk}.main.0'] = (feat, feat + 3, 3)
        for j in range(blocks):
            convs |= {f'{trunk}.main.2.{j}.conv1': (feat, feat, 3), f'{trunk}.main.2.{j}.conv2': (feat, feat, 3)}
    return {**convs, 'fusion': (feat, 2 * feat, 1), 'upconv1': (4 * feat, feat, 3), 'upconv2': (4 * tail, feat, 3),
            'conv_hr': (tail, tail, 3), 'conv_last': (3, tail, 3)}


# ---- what they compute

def basicvsr(state: State, x: Tensor, act: Callable[[Tensor], Tensor], kept: Mapping[str, list[int]] | None = None,
             kept_pre: Mapping[str, list[int]] | None = None) -> Tensor:
    """Output frames (1, n, 3, 4h, 4w) of ``x`` (1, n, 3, h, w), by BasicSR's names.

    Layers may have gates, ``act_scale`` and ``act_scale_pre``. With ``kept`` and ``kept_pre`` each block gathers, runs
    its two convolutions and scatters, channel by channel: the Residual Sparsity Connection of the SSL networks.
    """
    def conv(name: str, y: Tensor) -> Tensor:
        weight = state[f'{name}.weight']
        if f'{name}.act_scale_pre' in state:
            y = y * state[f'{name}.act_scale_pre']
        y = F.conv2d(y, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2)
        if f'{name}.act_scale' in state:
            gates = state[f'{name}.act_scale'].flatten()
            each = y.shape[1] // len(gates)  # of an upconv 4 filters share a gate
            y = torch.cat([y[:, i:i + 1] * gates[i // each] for i in range(y.shape[1])], dim=1)
        return y

    def trunk(name: str, y: Tensor) -> Tensor:
        y = act(conv(f'{name}.main.0', y))
        j = 0
        while f'{name}.main.2.{j}.conv1.weight' in state:
            block = f'{name}.main.2.{j}'
            read = y[:, sorted(kept_pre[f'{block}.conv1'])] if kept_pre else y
            change = conv(f'{block}.conv2', F.relu(conv(f'{block}.conv1', read)))
            y = y.clone()
            for i, channel in enumerate(sorted(kept[f'{block}.conv2']) if kept else range(y.shape[1])):
                y[:, channel] = y[:, channel] + change[:, i]
            j += 1
        return y

    frames = list(x.unbind(1))
    feat = state['forward_trunk.main.0.weight'].shape[0]
    states: dict[str, list[Tensor]] = {}
    for name, order in (('backward_trunk', range(len(frames))[::-1]), ('forward_trunk', range(len(frames)))):
        hidden, before, made = x.new_zeros(1, feat, *x.shape[-2:]), None, {}
        for i in order:
            if before is not None and 'spynet.basic_module.0.basic_module.0.weight' in state:
                hidden = warp(hidden, spynet(state, frames[i], frames[before], 'spynet.'))
            hidden = trunk(name, torch.cat((frames[i], hidden), 1))
            made[i], before = hidden, i
        states[name] = [made[i] for i in range(len(frames))]
    out = []
    for frame, backward, forward in zip(frames, *states.values()):
        y = act(conv('fusion', torch.cat((backward, forward), 1)))
        y = act(F.pixel_shuffle(conv('upconv1', y), 2))
        y = act(F.pixel_shuffle(conv('upconv2', y), 2))
        y = conv('conv_last', act(conv('conv_hr', y)))
        out.append(y + F.interpolate(frame, scale_factor=4, mode='bilinear', align_corners=False))
    return torch.stack(out, 1)


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def warp(x: Tensor, flow: Tensor, padding: str = 'zeros') -> Tensor:
    """``x`` (1, c, h, w) sampled at every pixel's position plus ``flow`` (1, 2, h, w)."""
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h, dtype=x.dtype), torch.arange(w, dtype=x.dtype), indexing='ij')
    columns, rows = columns + flow[0, 0], rows + flow[0, 1]
    grid = torch.stack((columns * 2 / max(w - 1, 1) - 1, rows * 2 / max(h - 1, 1) - 1), -1)
    return F.grid_sample(x, grid[None], mode='bilinear', padding_mode=padding, align_corners=True)


def spynet(state: State, ref: Tensor, other: Tensor, prefix: str = '') -> Tensor:
    """Flow (1, 2, h, w) of the six-level network; RGB frames (1, 3, h, w) in [0, 1]."""
    h, w = ref.shape[-2:]
    size = [-(-side // 32) * 32 for side in (h, w)]
    mean, std = (tensor.to(ref) for tensor in CONSTANTS.values())
    pyramids = []
    for frame in (ref, other):
        frame = (F.interpolate(frame, size, mode='bilinear', align_corners=False) - mean) / std
        pyramids.append([frame := F.avg_pool2d(frame, 2) if level else frame for level in range(6)][::-1])
    flow = ref.new_zeros(1, 2, *pyramids[0][0].shape[-2:])
    for level, (one, two) in enumerate(zip(*pyramids)):
        if level:
            flow = 2 * F.interpolate(flow, scale_factor=2, mode='bilinear', align_corners=True)
        y = torch.cat((one, warp(two, flow, 'border'), flow), 1)
        for i in range(0, 10, 2):
            name = f'{prefix}basic_module.{level}.basic_module.{i}'
            y = F.conv2d(y, state[f'{name}.weight'], state[f'{name}.bias'], padding=3)
            y = F.relu(y) if i < 8 else y
        flow = flow + y
    flow = F.interpolate(flow, (h, w), mode='bilinear', align_corners=False)
    return flow * flow.new_tensor([w / size[1], h / size[0]]).view(1, 2, 1, 1)


# ---- in the layouts of other projects

def mmagic_name(name: str) -> str:
    """mmagic's name of a BasicSR tensor."""
    head, _, rest = name.partition('.')
    head = {'backward_trunk': 'backward_resblocks', 'forward_trunk': 'forward_resblocks',
            'upconv1': 'upsample1.upsample_conv', 'upconv2': 'upsample2.upsample_conv'}.get(head, head)
    if 'basic_module' in name:
        before, number, kind = name.rsplit('.', 2)
        return f'{before}.{int(number) // 2}.conv.{kind}'
    return f'{head}.{rest}' if rest else name


def gated(state: State, seed: int = 3) -> State:
    """The SSL authors' gated network: gates of either sign beside the weights."""
    generator = torch.Generator().manual_seed(seed)

    def gates(count: int) -> Tensor:
        signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        return ((0.3 + torch.rand(count, generator=generator)) * signs).view(1, -1, 1, 1)

    result = dict(state)
    for name, tensor in state.items():
        layer = name.removesuffix('.weight')
        if layer == name or layer.startswith('spynet') or layer.endswith(('main.0', 'conv_last')):
            continue
        result[f'{layer}.act_scale'] = gates(tensor.shape[0] // (4 if 'upconv' in layer else 1))
        if layer.endswith('.conv1'):
            result[f'{layer}.act_scale_pre'] = gates(tensor.shape[1])
    return result


def pruned(feat: int = 8, blocks: int = 2, tail: int = 64, flow: bool = True, seed: int = 5) -> tuple[State, Lists]:
    """The SSL authors' final network, and its lists, in no order."""
    generator = torch.Generator().manual_seed(seed)
    lists: Lists = {name: {} for name in ('pruned_wg', 'kept_wg', 'pruned_wg_pre', 'kept_wg_pre')}

    def choose(layer: str, size: int, keep: int, suffix: str = '') -> int:
        order = torch.randperm(size, generator=generator).tolist()
        lists[f'pruned_wg{suffix}'][layer], lists[f'kept_wg{suffix}'][layer] = order[keep:], order[:keep]
        return keep

    convs = basicvsr_convs(feat, blocks, tail, flow)
    for layer, (cout, cin, _) in convs.items():  # layers that are never pruned stand there too
        choose(layer, cout, cout)
        choose(layer, cin, cin, '_pre')
    for j in range(blocks):
        for trunk in ('backward_trunk', 'forward_trunk'):
            block = f'{trunk}.main.2.{j}'
            read = choose(f'{block}.conv1', feat, feat - 2 - j, '_pre')
            middle = choose(f'{block}.conv1', feat, 3 + j)
            convs |= {f'{block}.conv1': (middle, read, 3),
                      f'{block}.conv2': (choose(f'{block}.conv2', feat, feat if j else 4), middle, 3)}
    fusion, up1 = choose('fusion', feat, 5), choose('upconv1', feat, 6)
    up2, hr = choose('upconv2', tail, 9), choose('conv_hr', tail, 7)
    convs |= {'fusion': (fusion, 2 * feat, 1), 'upconv1': (4 * up1, fusion, 3), 'upconv2': (4 * up2, up1, 3),
              'conv_hr': (hr, up2, 3), 'conv_last': (3, hr, 3)}
    return weights(convs, seed), lists


def distributed(value: dict[str, Any]) -> dict[str, Any]:
    return {f'module.{name}': entry for name, entry in value.items()}
