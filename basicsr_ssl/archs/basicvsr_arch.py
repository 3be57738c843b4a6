"""BasicVSR with prunable widths: dense, gated and compact forms of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.archs import spynet_arch
from basicsr_ssl.archs.prunable import PrunableNetwork, check_choice, check_least
from basicsr_ssl.nn.blocks import ResidualBlock, update_
from basicsr_ssl.nn.gated import GatedConv2d, conv
from basicsr_ssl.nn.spynet import LEVELS, AnySizeSpyNet, SpyNetSize
from basicsr_ssl.nn.warp import flow_warp
from basicsr_ssl.pruning.cost import Conv
from basicsr_ssl.pruning.gates import Gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec

# Flows between this many frame pairs are estimated at once in inference: more does not run faster, but keeps every
# level of every pair's pyramid in memory.
FLOW_CHUNK = 4

State = tuple[Tensor, Tensor]  # between two steps: an LR frame (b, 3, h, w) and its hidden state (b, num_feat, h, w)


def trunk_names(args: Mapping[str, Any]) -> list[str]:
    return ['backward_trunk', 'forward_trunk'] if args['bidirectional'] else ['forward_trunk']


def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
    """Group name to number of units of the dense network."""
    feat, tail = args['num_feat'], args['tail_feat']
    widths = {f'{trunk}.main.2.{j}.{part}': feat
              for trunk in trunk_names(args) for j in range(args['num_block']) for part in ('in', 'mid', 'out')}
    if args.get('prune_flow'):
        widths = {**{f'spynet.{name}': width
                     for name, width in spynet_arch.full_widths(_spynet_args(args)).items()}, **widths}
    if args['bidirectional']:
        widths['fusion'] = feat
    if args['scale'] == 4:
        return {**widths, 'upconv1': feat, 'upconv2': tail, 'conv_hr': tail}
    return {**widths, 'upconv1': tail, 'conv_hr': tail}


def group_table(spec: Spec) -> list[Group]:
    """All groups of the network that ``spec`` describes, in the order of the forward pass."""
    args = spec.args
    groups = []

    def filters(name: str, follower: str, repeat: int = 1) -> Group:
        """Filters of one convolution, read by the next one; ``repeat`` of them make one channel for it."""
        gate = f'{name}.gate'
        return Group(name, widths[name], (Slice(f'{name}.weight', 0, repeat, gate=gate),
                                          Slice(f'{name}.bias', 0, repeat, gate=gate), Slice(f'{follower}.weight', 1)))

    widths = {**full_widths(args), **spec.widths}
    if args.get('prune_flow'):
        flow = Spec('StandaloneSpyNet', _spynet_args(args), spynet_widths(widths))
        groups += [replace(group, name=f'spynet.{group.name}', slices=tuple(
            replace(s, param=f'spynet.{s.param}', gate=s.gate and f'spynet.{s.gate}') for s in group.slices))
            for group in spynet_arch.group_table(flow)]
    for trunk in trunk_names(args):
        for j in range(args['num_block']):
            block = f'{trunk}.main.2.{j}'
            one, two = f'{block}.conv1', f'{block}.conv2'
            groups += [
                Group(f'{block}.in', widths[f'{block}.in'], (Slice(f'{one}.weight', 1, gate=f'{one}.gate_in'),), trunk),
                Group(f'{block}.mid', widths[f'{block}.mid'],
                      (Slice(f'{one}.weight', 0, gate=f'{one}.gate'), Slice(f'{one}.bias', 0, gate=f'{one}.gate'),
                       Slice(f'{two}.weight', 1))),
                Group(f'{block}.out', widths[f'{block}.out'],
                      (Slice(f'{two}.weight', 0, gate=f'{two}.gate'), Slice(f'{two}.bias', 0, gate=f'{two}.gate')),
                      trunk),
            ]
    if args['bidirectional']:
        groups.append(filters('fusion', 'upconv1'))
    if args['scale'] == 4:
        groups += [filters('upconv1', 'upconv2', 4), filters('upconv2', 'conv_hr', 4)]
    else:
        groups.append(filters('upconv1', 'conv_hr', 4))
    return [*groups, filters('conv_hr', 'conv_last')]


def stream_table(args: Mapping[str, Any]) -> dict[str, tuple[Slice, ...]]:
    """Each trunk's residual stream, which is its hidden state too."""
    streams = {}
    for trunk in trunk_names(args):
        first = f'{trunk}.main.0'
        behind = Slice('fusion.weight', 1, offset=0 if trunk == 'backward_trunk' else args['num_feat'])
        streams[trunk] = (Slice(f'{first}.weight', 0), Slice(f'{first}.bias', 0), Slice(f'{first}.weight', 1, offset=3),
                          behind if args['bidirectional'] else Slice('upconv1.weight', 1))
    return streams


def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[Conv]:
    """All layers of the network with these widths (groups not named are full)."""
    w = {**full_widths(args), **widths}
    feat, scale = args['num_feat'], args['scale']
    layers: list[Conv] = []
    for trunk in trunk_names(args):
        layers.append(Conv(f'{trunk}.main.0', 3 + feat, feat, 3))
        for j in range(args['num_block']):
            block = f'{trunk}.main.2.{j}'
            layers += [Conv(f'{block}.conv1', w[f'{block}.in'], w[f'{block}.mid'], 3),
                       Conv(f'{block}.conv2', w[f'{block}.mid'], w[f'{block}.out'], 3)]
    if args['bidirectional']:
        layers.append(Conv('fusion', 2 * feat, w['fusion'], 1))
    layers.append(Conv('upconv1', w['fusion'] if args['bidirectional'] else feat, 4 * w['upconv1'], 3))
    if scale == 4:
        layers.append(Conv('upconv2', w['upconv1'], 4 * w['upconv2'], 3, area=4))
    layers += [Conv('conv_hr', w['upconv2' if scale == 4 else 'upconv1'], w['conv_hr'], 3, area=scale**2),
               Conv('conv_last', w['conv_hr'], 3, 3, area=scale**2)]
    if FLOW_SIZES[args['flow']]:
        shrunk = args.get('flow_scale', 1)
        layers += [replace(layer, name=f'spynet.{layer.name}', times=2 if args['bidirectional'] else 1,
                           area=layer.area / shrunk**2, multiple=layer.multiple * shrunk)
                   for layer in spynet_arch.layer_table(_spynet_args(args), spynet_widths(w))]
    return layers


def spynet_widths(widths: Mapping[str, int]) -> dict[str, int]:
    """Those of the flow network's groups, by their names in a ``StandaloneSpyNet``."""
    return {name.removeprefix('spynet.'): width for name, width in widths.items() if name.startswith('spynet.')}


def _spynet_args(args: Mapping[str, Any]) -> dict[str, Any]:
    return {'size': FLOW_SIZES[args['flow']], 'levels': args.get('flow_levels', LEVELS)}


#: Reads the network in a file, for ``spynet_path``. The package puts it here: reading a network takes all archs.
read_network: Callable[[str], nn.Module]

#: The SpyNet that each ``flow`` means.
FLOW_SIZES: dict[str, SpyNetSize | None] = {'spynet': 'full', 'spynet_small': 'small', 'none': None}


@ARCH_REGISTRY.register()
class PrunableBasicVSR(PrunableNetwork):
    """BasicVSR (Chan et al., CVPR 2021), prunable as in SSL (Xia et al., CVPR 2023).

    With the default arguments and ``num_block=30`` the dense form is BasicSR's ``BasicVSR``: the same parameter names,
    the same output. What may be pruned, and how it hangs together, is declared in ``group_table``; what it costs in
    ``layer_table``. Never pruned: the first convolution of each trunk, ``conv_last``, the channels of the hidden
    states, and, unless ``prune_flow`` is set, the flow network.

    Args:
        num_feat: channels of the hidden states.
        num_block: residual blocks of each trunk.
        tail_feat: channels of ``conv_hr``, at the output resolution.
        scale: 4 or 2.
        bidirectional: False leaves out the backward trunk and ``fusion``; then frames can be streamed.
        act: activation of the tail and after each trunk's first convolution: ``'lrelu'`` (slope 0.1, BasicSR) or
            ``'relu'`` (the released SSL networks).
        flow: ``'spynet'``, ``'spynet_small'`` (a ninth of it), or ``'none'``: features are propagated without
            alignment.
        spynet_path: file of a SpyNet of that size, read at construction; a pruned one sets ``prune_flow``.
        prune_flow: the filters between the convolutions of the flow network are units too.
        flow_levels: levels of the flow network that run, the finest ones; six see motion of up to some 64 pixels, each
            one less half of that.
        flow_scale: flow is estimated on frames that are so many times smaller, 1, 2 or 4, and enlarged.
        gates: kind of the gates of the prunable convolutions, see ``pruning/gates.py``; empty: none. Those of units go
            with full widths only.
        widths: units kept by group name; groups not named are full.
        index: kept channels by group name, for the inputs and outputs of blocks that are not full.
        gated: the same as ``gates='scale'``, as older option files have it.

    Raises:
        ValueError: an argument out of range, a group that does not exist, a width or index that does not fit.
    """

    full_widths = staticmethod(full_widths)
    group_table = staticmethod(group_table)
    layer_table = staticmethod(layer_table)
    stream_table = staticmethod(stream_table)
    task = 'clip'
    #: arguments that the hidden states depend on: those of two networks can be compared if these are equal
    state_args = ('num_feat', 'bidirectional')
    pruning_args = ('prune_flow',)
    run_args = ('flow_levels', 'flow_scale')
    flow_network = property(lambda self: self.spynet)
    backward_trunk: Trunk
    forward_trunk: Trunk

    def __init__(self, num_feat: int = 64, num_block: int = 30, tail_feat: int = 64, scale: Literal[2, 4] = 4,
                 bidirectional: bool = True, act: Literal['lrelu', 'relu'] = 'lrelu',
                 flow: Literal['spynet', 'spynet_small', 'none'] = 'spynet', spynet_path: str | None = None,
                 gates: Gates = '', widths: Mapping[str, int] | None = None,
                 index: Mapping[str, Sequence[int]] | None = None, gated: bool = False,
                 prune_flow: bool = False, flow_levels: int = LEVELS, flow_scale: Literal[1, 2, 4] = 1) -> None:
        check_choice('scale', scale, (2, 4))
        check_choice('bidirectional', bidirectional, (True, False))
        check_choice('act', act, ('lrelu', 'relu'))
        check_choice('flow', flow, tuple(FLOW_SIZES))
        check_choice('prune_flow', prune_flow, (True, False))
        check_choice('flow_levels', flow_levels, tuple(range(1, LEVELS + 1)))
        check_choice('flow_scale', flow_scale, (1, 2, 4))
        check_least(1, num_feat=num_feat, num_block=num_block, tail_feat=tail_feat)
        size = FLOW_SIZES[flow]
        if prune_flow and not size:
            raise ValueError('prune_flow: there is no flow network to prune with flow: none')
        known = _read_flow_network(size, spynet_path) if size and spynet_path else None
        if known is not None and known.spec.widths:
            prune_flow = True
            running = spynet_arch.full_widths({'size': size, 'levels': flow_levels})
            widths = {**{f'spynet.{name}': width for name, width in known.spec.widths.items() if name in running},
                      **(widths or {})}
        args: dict[str, Any] = dict(num_feat=num_feat, num_block=num_block, tail_feat=tail_feat, scale=scale,
                                    bidirectional=bidirectional, act=act, flow=flow)
        # arguments that came later are named where they say something
        args |= {key: value for key, value, usual in (('prune_flow', prune_flow, False), ('flow_levels', flow_levels,
                 LEVELS), ('flow_scale', flow_scale, 1)) if value != usual}
        gates = gates or ('scale' if gated else '')
        super().__init__(args, gates, widths, index)

        w = {**full_widths(args), **self.spec.widths}
        self.spynet = AnySizeSpyNet(size, spynet_arch.hidden_widths(_spynet_args(args), spynet_widths(w))
                                    if prune_flow or flow_levels < LEVELS else None,
                                    gates if prune_flow else '') if size else None
        if self.spynet is not None and known is not None:
            own = self.spynet.state_dict()  # has gates, which are set below, and lacks levels that do not run
            self.spynet.load_state_dict({**own, **{key: tensor for key, tensor in known.state_dict().items()
                                                   if key in own}})
        for trunk in trunk_names(args):
            self.add_module(trunk, Trunk(trunk, num_feat, num_block, _activation(act), w, self.spec.index, gates))
        if bidirectional:
            self.fusion = conv(2 * num_feat, w['fusion'], 1, gates=gates)
        entry = w['fusion'] if bidirectional else num_feat
        self.upconv1 = conv(entry, 4 * w['upconv1'], gates=gates, repeat=4)
        if scale == 4:
            self.upconv2 = conv(w['upconv1'], 4 * w['upconv2'], gates=gates, repeat=4)
        self.conv_hr = conv(w['upconv2' if scale == 4 else 'upconv1'], w['conv_hr'], gates=gates)
        self.conv_last = conv(w['conv_hr'], 3, gates=gates, units=False)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.act = _activation(act)
        self.num_feat, self.scale, self.bidirectional = num_feat, scale, bidirectional
        self.flow_scale = flow_scale
        self._initialise()

    def _initialise(self) -> None:
        """Start as plain bilinear upsampling, with features that keep their magnitude from layer to layer.

        BasicSR leaves PyTorch's initialisation in place, under which features shrink with every layer and the first
        hundreds of iterations go into unlearning a random residual image; the weights of the last layer go to zero
        meanwhile, and with them the gradient of all others.
        """
        flow = set() if self.spynet is None else set(self.spynet.modules())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer not in flow:
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        blocks = [block for block in self.modules() if isinstance(block, ResidualBlock)]
        # blocks close to the identity, as BasicSR has them; the upsampling starts as small
        for layer in (*(layer for block in blocks for layer in (block.conv1, block.conv2)), self.upconv1,
                      *([self.upconv2] if self.scale == 4 else [])):
            layer.weight.data.mul_(0.1)
        nn.init.zeros_(self.conv_last.weight)
        for layer in self.modules():
            if isinstance(layer, GatedConv2d):
                layer.init_gates_()

    def forward(self, x: Tensor, return_states: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Super-resolve a clip.

        Args:
            x: LR frames (b, n, 3, h, w) in [0, 1], RGB; n may be 1, h and w are free.
            return_states: also return the hidden states.

        Returns:
            HR frames (b, n, 3, scale*h, scale*w); with ``return_states`` also
            ``{'backward': (b, n, num_feat, h, w), 'forward': ...}``, in the order of the frames.
        """
        backward, forward = self.propagate_clip(x)
        frames = [self.upsample(x[:, i], backward[i] if backward else None, forward[i]) for i in range(x.shape[1])]
        out = torch.stack(frames, dim=1)
        return (out, _stack_states(backward, forward)) if return_states else out

    @torch.no_grad()
    def step(self, frame: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Super-resolve the next frame of a clip, with a unidirectional network: frame by frame, what ``forward`` does.

        Args:
            frame: LR frame (b, 3, h, w) in [0, 1], RGB.
            state: what the step before returned; None for the first frame.

        Returns:
            HR frame (b, 3, scale*h, scale*w), and the state for the next step: the LR frame and its hidden state
            (b, num_feat, h, w). The given state is left as it is.

        Raises:
            ValueError: the network is bidirectional: its frames depend on those to come.
        """
        if self.bidirectional:
            raise ValueError('a bidirectional network needs the frames to come: use stream')
        if state is None:
            hidden = frame.new_zeros(len(frame), self.num_feat, *frame.shape[-2:])
        else:
            before, hidden = state
            if self.spynet is not None:
                hidden = flow_warp(hidden, self._estimate(frame, before))
        hidden = self.forward_trunk.infer(torch.cat((frame, hidden), dim=1))
        return self.upsample(frame, None, hidden), (frame, hidden)

    @torch.no_grad()
    def stream(self, frames: Iterable[Tensor], keep: Literal['device', 'host'] = 'device') -> Iterator[Tensor]:
        """Super-resolve a clip frame by frame: the frames of ``forward``, in little memory and without gradients.

        A unidirectional network takes each frame when it is needed and holds one state. A bidirectional one takes all
        frames first; alive at a time are then the clip, its flows, the backward hidden states of the frames still to
        come, and of forward states and HR frames the last one and the one being made. ``forward`` holds all states of
        both directions and all HR frames, twice while it stacks them.

        Args:
            frames: LR frames (b, 3, h, w) in [0, 1], RGB, h and w free; or all of them, (b, n, 3, h, w).
            keep: where the backward states wait, ``4 * b * n * num_feat * h * w`` bytes in float32: on the device of
                the frames, or in host memory, page-locked if they come from a GPU.

        Yields:
            HR frames (b, 3, scale*h, scale*w), in order.
        """
        check_choice('keep', keep, ('device', 'host'))
        if not self.bidirectional:
            state = None
            for frame in frames.unbind(1) if isinstance(frames, Tensor) else frames:
                output, state = self.step(frame, state)
                yield output
                del output  # before the next one is made
            return
        x = frames if isinstance(frames, Tensor) else torch.stack(list(frames), dim=1)
        flows_forward, flows_backward = self.compute_flows(x)
        waiting = [_to_host(state) if keep == 'host' else state
                   for state in self._walk(x, flows_backward, reverse=True, in_place=True)]
        # the first frame's state was made last, so the list is a stack, and what has been used is freed
        for i, state in enumerate(self._walk(x, flows_forward, in_place=True)):
            yield self.upsample(x[:, i], waiting.pop().to(x.device, non_blocking=True), state)

    @torch.no_grad()
    def hidden_states(self, x: Tensor) -> dict[str, Tensor]:
        """Only the hidden states that ``forward`` returns, without gradients and without reconstructing frames.

        Args:
            x: LR frames (b, n, 3, h, w).
        """
        return _stack_states(*self.propagate_clip(x, in_place=True))

    def propagate_clip(self, x: Tensor, in_place: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Backward (empty if unidirectional) and forward hidden states of all frames, each (b, num_feat, h, w)."""
        flows_forward, flows_backward = self.compute_flows(x)
        backward = [*self._walk(x, flows_backward, True, in_place)][::-1] if self.bidirectional else []
        return backward, [*self._walk(x, flows_forward, False, in_place)]

    def compute_flows(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Flows from each frame to the one before it, and to the one after it.

        Args:
            x: frames (b, n, 3, h, w).

        Returns:
            Two tensors (b, n-1, 2, h, w), ``[:, i]`` aligns frame i to i+1 and frame i+1 to i. None without a flow
            network or with a single frame; the second also for a unidirectional network.
        """
        b, n, _, h, w = x.shape
        if self.spynet is None or n == 1:
            return None, None
        before, after = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
        flow_forward = self._estimate(after, before).view(b, n - 1, 2, h, w)
        if not self.bidirectional:
            return flow_forward, None
        return flow_forward, self._estimate(before, after).view(b, n - 1, 2, h, w)

    def _estimate(self, ref: Tensor, other: Tensor) -> Tensor:
        assert self.spynet is not None
        # in full precision under autocast too: flows are in pixels, and half precision loses the sub-pixel part
        with torch.autocast(ref.device.type, enabled=False):
            weight = next(self.spynet.parameters())
            ref, other = ref.to(weight), other.to(weight)
            size = len(ref) if torch.is_grad_enabled() else FLOW_CHUNK
            return torch.cat([self._flow(a, b) for a, b in zip(ref.split(size), other.split(size))])

    def _flow(self, ref: Tensor, other: Tensor) -> Tensor:
        assert self.spynet is not None
        if self.flow_scale == 1:
            return self.spynet(ref, other)
        h, w = ref.shape[-2:]
        small = -(-h // self.flow_scale), -(-w // self.flow_scale)
        flow = self.spynet(*(F.interpolate(frame, small, mode='bilinear', align_corners=False)
                             for frame in (ref, other)))
        flow = F.interpolate(flow, (h, w), mode='bilinear', align_corners=False)
        return torch.stack((flow[:, 0] * (w / small[1]), flow[:, 1] * (h / small[0])), dim=1)

    def _walk(self, x: Tensor, flows: Tensor | None, reverse: bool = False, in_place: bool = False
              ) -> Iterator[Tensor]:
        """Hidden states (b, num_feat, h, w) one by one, in the order in which they are made; ``in_place``: with blocks
        that overwrite their features, without gradients."""
        b, n, _, h, w = x.shape
        trunk = self.backward_trunk if reverse else self.forward_trunk
        run = trunk.infer if in_place else trunk
        order = range(n - 1, -1, -1) if reverse else range(n)
        state = x.new_zeros(b, self.num_feat, h, w)
        for i in order:
            if i != order[0] and flows is not None:
                state = flow_warp(state, flows[:, i if reverse else i - 1])
            state = run(torch.cat((x[:, i], state), dim=1))
            yield state

    def upsample(self, frame: Tensor, backward: Tensor | None, forward: Tensor) -> Tensor:
        """Reconstruct one frame (b, 3, scale*h, scale*w) from its LR frame (b, 3, h, w) and hidden states."""
        out = forward
        if self.bidirectional:
            assert backward is not None
            out = self.act(self.fusion(torch.cat((backward, forward), dim=1)))
        out = self.act(self.pixel_shuffle(self.upconv1(out)))
        if self.scale == 4:
            out = self.act(self.pixel_shuffle(self.upconv2(out)))
        out = self.conv_last(self.act(self.conv_hr(out)))
        return out + F.interpolate(frame, scale_factor=self.scale, mode='bilinear', align_corners=False)


def _to_host(state: Tensor) -> Tensor:
    if state.device.type == 'cpu':
        return state
    # page-locked, so that the copy does not wait for the device; CUDA's stream keeps copies and their uses in order
    return torch.empty_like(state, device='cpu', pin_memory=True).copy_(state, non_blocking=True)


def _stack_states(backward: list[Tensor], forward: list[Tensor]) -> dict[str, Tensor]:
    states = {'backward': backward, 'forward': forward}
    return {name: torch.stack(values, dim=1) for name, values in states.items() if values}


class Trunk(nn.Module):
    """First convolution, activation and residual blocks; named as in BasicSR's ``ConvResidualBlocks``."""

    def __init__(self, name: str, num_feat: int, num_block: int, act: nn.Module, widths: Mapping[str, int],
                 index: Mapping[str, Sequence[int]], gates: str) -> None:
        super().__init__()
        blocks = []
        for j in range(num_block):
            block = f'{name}.main.2.{j}'
            blocks.append(ResidualBlock(num_feat, widths[f'{block}.mid'], index.get(f'{block}.in'),
                                        index.get(f'{block}.out'), gates))
        self.main = nn.Sequential(conv(3 + num_feat, num_feat, gates=gates, units=False), act, nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3 + num_feat, h, w) to (b, num_feat, h, w)."""
        return self.main(x)

    def infer(self, x: Tensor) -> Tensor:
        """The same without gradients, with blocks that overwrite their features; ``x`` is left as it is."""
        first, act, blocks = self.main.children()
        return update_(act(first(x)), blocks.children())


def _activation(act: str) -> nn.Module:
    return nn.LeakyReLU(0.1, inplace=True) if act == 'lrelu' else nn.ReLU(inplace=True)


def _read_flow_network(size: SpyNetSize, path: str) -> Any:
    """The ``StandaloneSpyNet`` in a file."""
    try:
        found: Any = read_network(path)  # noqa: F821, set from above
    except ValueError as error:
        raise ValueError(f'spynet_path: {path} does not hold the weights of SpyNet: {error}') from error
    if not isinstance(found, AnySizeSpyNet):
        raise ValueError(f'spynet_path: {path} does not hold the weights of SpyNet but a {type(found).__name__}: name '
                         'that as path: pretrain_network_g, it brings its own flow network')
    if found.size != size:
        flow = next(flow for flow, other in FLOW_SIZES.items() if other == found.size)
        raise ValueError(f'spynet_path: {path} holds a SpyNet of the size {found.size}: set flow: {flow}')
    if cast(Any, found).spec.gates:
        raise ValueError(f'spynet_path: {path} holds a SpyNet with gates: finish its training, or prune it first')
    return found

