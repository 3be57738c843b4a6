"""EDSR with prunable widths, its light tail and its deep body: dense, gated and compact forms of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.archs.prunable import PrunableNetwork, check_choice, check_least
from basicsr_ssl.nn.blocks import Channels, Residual, ResidualBlock, update_
from basicsr_ssl.nn.gated import conv
from basicsr_ssl.pruning.body import Body, Size, Stack
from basicsr_ssl.pruning.cost import Conv
from basicsr_ssl.pruning.gates import Gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec

MOST_BLOCKS = 10_000  # far above any network's
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]


class Reach(NamedTuple):
    """Something that reads the residual stream and adds to it: a block, or the single convolution of a long skip.

    Attributes:
        name: of its groups and, of a block, its module.
        reader, writer: the convolution that reads and the one that adds; one and the same at the end of a long skip.
    """
    name: str
    reader: str
    writer: str


def residuals(args: Mapping[str, Any]) -> list[Reach]:
    """In the order of the forward pass."""
    found = []
    for group in range(args['num_group']) or (None,):
        body = 'body' if group is None else f'body.{group}.residual_group'
        found += [Reach(f'{body}.{j}', f'{body}.{j}.conv1', f'{body}.{j}.conv2') for j in range(args['num_block'])]
        if group is not None:
            found.append(Reach(f'body.{group}.conv', f'body.{group}.conv', f'body.{group}.conv'))
    return [*found, Reach('conv_after_body', 'conv_after_body', 'conv_after_body')]


def shuffles(args: Mapping[str, Any]) -> dict[str, int]:
    """The convolutions before pixel shuffles by r, each with its r."""
    if args['upsampler'] == 'pixelshuffledirect' or args['scale'] == 3:
        return {'upsample.0': args['scale']}
    return {f'upsample.{2 * i}': 2 for i in range(args['scale'].bit_length() - 1)}


def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
    """Group name to number of units of the dense network."""
    feat, rsc = args['num_feat'], args['residual'] == 'rsc'
    widths = {'stream': feat} if args['residual'] == 'aligned' else {}
    for name, reader, writer in residuals(args):
        parts = (('in', rsc), ('mid', reader != writer), ('out', rsc))
        widths |= {f'{name}.{part}': feat for part, there in parts if there}
    if args['upsampler'] == 'pixelshuffle':
        widths |= dict.fromkeys(shuffles(args), feat)
    return widths


def group_table(spec: Spec) -> list[Group]:
    """All groups of the network that ``spec`` describes, in the order of the forward pass."""
    args = spec.args
    widths = {**full_widths(args), **spec.widths}
    groups = []

    def filters(name: str, repeat: int = 1) -> tuple[Slice, ...]:
        return tuple(Slice(f'{name}.{part}', 0, repeat, gate=f'{name}.gate') for part in ('weight', 'bias'))

    stream = list(filters('conv_first'))
    for name, reader, writer in residuals(args):
        stream += [Slice(f'{reader}.weight', 1), *filters(writer)]
        if args['residual'] == 'rsc':
            groups.append(Group(f'{name}.in', widths[f'{name}.in'],
                                (Slice(f'{reader}.weight', 1, gate=f'{reader}.gate_in'),), 'features'))
        if reader != writer:
            groups.append(Group(f'{name}.mid', widths[f'{name}.mid'], (*filters(reader), Slice(f'{writer}.weight', 1))))
        if args['residual'] == 'rsc':
            groups.append(Group(f'{name}.out', widths[f'{name}.out'], filters(writer), 'features'))
    if args['residual'] == 'aligned':
        groups.insert(0, Group('stream', widths['stream'], (*stream, Slice('upsample.0.weight', 1))))
    if args['upsampler'] == 'pixelshuffle':
        names = [*shuffles(args), 'conv_last']
        groups += [Group(name, widths[name], (*filters(name, r**2), Slice(f'{follower}.weight', 1)))
                   for (name, r), follower in zip(shuffles(args).items(), names[1:])]
    return groups


def stream_table(args: Mapping[str, Any]) -> dict[str, tuple[Slice, ...]]:
    """The residual stream, if blocks read and write channels of their own choice."""
    return {'features': (Slice('conv_first.weight', 0), Slice('conv_first.bias', 0), Slice('upsample.0.weight', 1))
            } if args['residual'] == 'rsc' else {}


def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[Conv]:
    """All layers of the network with these widths (groups not named are full)."""
    w = {**full_widths(args), **widths}
    feat: int = args['num_feat']
    stream = w.get('stream', feat)
    layers = [Conv('conv_first', 3, stream, 3)]
    for name, reader, writer in residuals(args):
        cin, cout = w.get(f'{name}.in', stream), w.get(f'{name}.out', stream)
        layers += [Conv(reader, cin, cout, 3)] if reader == writer else [
            Conv(reader, cin, w[f'{name}.mid'], 3), Conv(writer, w[f'{name}.mid'], cout, 3)]
    if args['upsampler'] == 'pixelshuffledirect':
        return [*layers, Conv('upsample.0', stream, 3 * args['scale']**2, 3)]
    cin, size = stream, 1
    for name, r in shuffles(args).items():
        layers.append(Conv(name, cin, r**2 * w[name], 3, area=size**2))
        cin, size = w[name], size * r
    return [*layers, Conv('conv_last', cin, 3, 3, area=size**2)]


def body_table(args: Mapping[str, Any]) -> Body:
    """The residual blocks, in groups if there are any."""
    j = range(args['num_block'])
    groups = tuple(Stack(tuple(f'body.{group}.residual_group.{k}' for k in j), (f'body.{group}.conv',))
                   for group in range(args['num_group']))
    return Body(args['num_feat'], groups or (Stack(tuple(f'body.{k}' for k in j)),))


def resized(args: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Arguments of a network of another size."""
    return {**args, 'num_feat': size.channels, 'num_block': size.blocks,
            'num_group': size.stacks if args['num_group'] else 0}


def unit_table(args: Mapping[str, Any]) -> list[Group]:
    """The groups by which all of the network that ``num_feat`` says becomes narrow."""
    return group_table(Spec('PrunableEDSR', {**args, 'residual': 'aligned'}))


@ARCH_REGISTRY.register()
class PrunableEDSR(PrunableNetwork):
    """EDSR (Lim et al., CVPR workshops 2017), prunable as in ASSL (Zhang et al., NeurIPS 2021), SRP (Zhang et al., ICLR
    2022) and SSL (Xia et al., CVPR 2023).

    With ``upsampler='pixelshuffle'`` and ``num_group=0`` the dense form is BasicSR's ``EDSR``: the same parameter
    names, the same output. ASSL and SRP prune an EDSR of 16 blocks and 256 channels whose tail is one convolution and
    one pixel shuffle (``'pixelshuffledirect'``, as SwinIR calls it) to 49 and to 45 channels. SRP's large network has
    the body of RCAN (Zhang et al., ECCV 2018) without attention: 10 groups of 20 blocks and 96 channels; the names in
    it are those of BasicSR's ``RCAN``.

    The middle of every block is a group of its own. What may be removed of the residual stream, which all blocks read
    and add to, is said by ``residual``:

    - ``'aligned'`` (ASSL, SRP): all convolutions that write to or read from the stream lose the same channels, and the
      stream becomes narrow;
    - ``'rsc'`` (SSL's Residual Sparsity Connection, for EDSR ours): the stream keeps all its channels; every block, and
      the convolution at the end of every long skip, reads and writes channels of its own choice;
    - ``'full'``: nothing.

    Never pruned: ``conv_last``, of the light tail its one convolution, and unless aligned ``conv_first``.

    Args:
        num_feat: channels of the residual stream.
        num_block: residual blocks, of each group if there are groups.
        num_group: groups of blocks with long skips; 0: the blocks alone.
        scale: 2, 3 or 4; BasicSR's ``upscale``.
        upsampler: ``'pixelshuffle'``, or ``'pixelshuffledirect'``.
        res_scale: factor of what a block adds.
        img_range: value of white within the network; a state dict does not say it.
        rgb_mean: mean colour, in [0, 1], subtracted before and added after.
        residual: see above; makes no difference to the dense network's output.
        gates: kind of the gates of the prunable convolutions, see ``pruning/gates.py``; empty: none. Those of units go
            with full widths only.
        widths: units kept by group name; groups not named are full.
        index: kept channels by group name, for inputs and outputs (``rsc``) that are not full.

    Raises:
        ValueError: an argument out of range, a group that does not exist, a width or index that does not fit.
    """

    full_widths = staticmethod(full_widths)
    group_table = staticmethod(group_table)
    layer_table = staticmethod(layer_table)
    stream_table = staticmethod(stream_table)
    body_table, resized, unit_table = staticmethod(body_table), staticmethod(resized), staticmethod(unit_table)
    task = 'image'
    pruning_args = ('residual',)
    mean: Tensor

    def __init__(self, num_feat: int = 64, num_block: int = 16, num_group: int = 0, scale: Literal[2, 3, 4] = 4,
                 upsampler: Literal['pixelshuffle', 'pixelshuffledirect'] = 'pixelshuffle', res_scale: float = 1.0,
                 img_range: float = 255.0, rgb_mean: Sequence[float] = RGB_MEAN,
                 residual: Literal['aligned', 'rsc', 'full'] = 'rsc', gates: Gates = '',
                 widths: Mapping[str, int] | None = None, index: Mapping[str, Sequence[int]] | None = None) -> None:
        check_choice('scale', scale, (2, 3, 4))
        check_choice('upsampler', upsampler, ('pixelshuffle', 'pixelshuffledirect'))
        check_choice('residual', residual, ('aligned', 'rsc', 'full'))
        check_least(1, num_feat=num_feat, num_block=num_block)
        check_least(0, num_group=num_group)
        if num_group * num_block > MOST_BLOCKS:  # before tables of so many are made
            raise ValueError(f'{num_group} groups of {num_block} blocks are more than {MOST_BLOCKS:,} blocks')
        if not img_range > 0 or len(rgb_mean) != 3:
            raise ValueError(f'img_range must be above 0 and rgb_mean have 3 numbers, got {img_range} and {rgb_mean}')
        args: dict[str, Any] = dict(
            num_feat=num_feat, num_block=num_block, num_group=num_group, scale=scale, upsampler=upsampler,
            res_scale=float(res_scale), img_range=float(img_range), rgb_mean=[float(mean) for mean in rgb_mean],
            residual=residual)
        super().__init__(args, gates, widths, index)

        w, kept = {**full_widths(args), **self.spec.widths}, self.spec.index
        stream, rsc = w.get('stream', num_feat), residual == 'rsc'
        writes = residual != 'full'  # whether what writes to the stream can be pruned

        def block(name: str) -> ResidualBlock:
            return ResidualBlock(stream, w[f'{name}.mid'], kept.get(f'{name}.in'), kept.get(f'{name}.out'), gates,
                                 gate_in=rsc, gate_out=writes, scale=res_scale)

        def end(name: str) -> tuple[nn.Conv2d, Channels, Channels]:
            """The convolution at the end of a long skip, and what it reads and writes."""
            layer = conv(w.get(f'{name}.in', stream), w.get(f'{name}.out', stream), gates=gates, gate_in=rsc,
                         units=writes)
            return layer, Channels(kept.get(f'{name}.in')), Channels(kept.get(f'{name}.out'))

        self.register_buffer('mean', torch.tensor(args['rgb_mean']).view(1, 3, 1, 1), persistent=False)
        self.conv_first = conv(3, stream, gates=gates, units=residual == 'aligned')
        if num_group:
            self.body = nn.Sequential(*(ResidualGroup(
                [block(f'body.{group}.residual_group.{j}') for j in range(num_block)], *end(f'body.{group}.conv'))
                for group in range(num_group)))
        else:
            self.body = nn.Sequential(*(block(f'body.{j}') for j in range(num_block)))
        self.conv_after_body, self.inputs, self.outputs = end('conv_after_body')
        if upsampler == 'pixelshuffledirect':
            self.upsample = nn.Sequential(conv(stream, 3 * scale**2, gates=gates, units=False), nn.PixelShuffle(scale))
            self.conv_last = nn.Identity()
        else:
            steps: list[nn.Module] = []
            cin = stream
            for name, r in shuffles(args).items():
                steps += [conv(cin, r**2 * w[name], gates=gates, repeat=r**2), nn.PixelShuffle(r)]
                cin = w[name]
            self.upsample = nn.Sequential(*steps)
            self.conv_last = conv(cin, 3, gates=gates, units=False)
        self.scale, self.img_range = scale, float(img_range)

    def forward(self, x: Tensor) -> Tensor:
        """LR images (b, 3, h, w) in [0, 1], RGB, to HR images (b, 3, scale*h, scale*w); h and w are free."""
        return self._run(x, self.body)

    @torch.no_grad()
    def stream(self, frames: Iterable[Tensor], keep: str = 'device') -> Iterator[Tensor]:
        """What ``forward`` makes of images (b, 3, h, w), one by one and faster; there are no states to ``keep``."""
        yield from (self._run(x, lambda features: update_(features.clone(), self.body)) for x in frames)

    def _run(self, x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
        mean = self.mean.type_as(x)
        out = self.conv_first((x - mean) * self.img_range)
        out = self.outputs.add(out, self.conv_after_body(self.inputs.read(body(out))))
        return self.conv_last(self.upsample(out)) / self.img_range + mean


class ResidualGroup(Residual):
    """Residual blocks and a convolution within a long skip; named as in BasicSR's RCAN."""

    def __init__(self, blocks: Sequence[nn.Module], layer: nn.Conv2d, inputs: Channels, outputs: Channels) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(*blocks)
        self.conv, self.inputs, self.outputs = layer, inputs, outputs

    def change(self, x: Tensor) -> Tensor:
        return self.conv(self.inputs.read(self.residual_group(x)))

    def update_(self, x: Tensor) -> Tensor:
        # the skip needs what the blocks started from
        return self.outputs.add_(x, self.conv(self.inputs.read(update_(x.clone(), self.residual_group))))
