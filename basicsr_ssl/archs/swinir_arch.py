"""SwinIR with prunable heads, hidden units and embedding: dense, gated and compact forms of one network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.archs.edsr_arch import MOST_BLOCKS, RGB_MEAN, shuffles
from basicsr_ssl.archs.prunable import PrunableNetwork, check_choice, check_least
from basicsr_ssl.nn.gated import GatedLinear, conv, linear
from basicsr_ssl.pruning.body import Body, Size, Stack
from basicsr_ssl.pruning.cost import Attention, Conv, Layer, Linear, Norm
from basicsr_ssl.pruning.gates import Gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec

TAIL_FEAT = 64  # channels before the pixel shuffles of the classical tail
APART = -100.0  # added to the attention between pixels of different sides of the image


def blocks(args: Mapping[str, Any]) -> list[list[str]]:
    """The transformer blocks of every residual group (RSTB), in the order of the forward pass."""
    return [[f'layers.{i}.residual_group.blocks.{j}' for j in range(depth)] for i, depth in enumerate(args['depths'])]


def ends(args: Mapping[str, Any]) -> list[str]:
    """The convolutions, or threes of them, that end the residual groups, and the one after all."""
    return [*(f'layers.{i}.conv' for i in range(len(args['depths']))), 'conv_after_body']


def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
    """Group name to number of units of the dense network."""
    embed: int = args['embed_dim']
    widths = dict[str, int]()
    if args['residual'] == 'aligned':
        widths['stream'] = embed
    for names, heads, end in zip(blocks(args), args['num_heads'], ends(args)):
        for block in names:
            widths |= {f'{block}.heads': heads, f'{block}.hidden': int(embed * args['mlp_ratio'])}
        widths |= _middles(args, end)
    widths |= _middles(args, 'conv_after_body')
    if args['upsampler'] == 'pixelshuffle':
        names = ('conv_before_upsample', *shuffles(args))
        widths |= zip(names, [TAIL_FEAT] * len(names))
    return widths


def _middles(args: Mapping[str, Any], end: str) -> dict[str, int]:
    """Channels between the convolutions of ``3conv``."""
    width: int = args['embed_dim'] // 4
    return {f'{end}.0': width, f'{end}.2': width} if args['resi_connection'] == '3conv' else {}


def group_table(spec: Spec) -> list[Group]:
    """All groups of the network that ``spec`` describes, in the order of the forward pass."""
    args = spec.args
    w = {**full_widths(args), **spec.widths}
    stream: list[Slice] = []
    groups: list[Group] = []

    def both(name: str, **where: Any) -> tuple[Slice, ...]:
        return tuple(Slice(f'{name}.{part}', 0, **where) for part in ('weight', 'bias'))

    def filters(name: str, follower: str, module: str = '', repeat: int = 1) -> None:
        """A group of the filters of a convolution that only ``follower`` reads."""
        module = module or name
        groups.append(Group(name, w[name], (*both(module, repeat=repeat, gate=f'{module}.gate'),
                                            Slice(f'{follower}.weight', 1))))

    def end(name: str) -> None:
        if args['resi_connection'] == '3conv':
            filters(f'{name}.0', f'{name}.2')
            filters(f'{name}.2', f'{name}.4')
            stream.extend((Slice(f'{name}.0.weight', 1), *both(f'{name}.4')))
        else:
            stream.extend((Slice(f'{name}.weight', 1), *both(name)))

    stream += [*both('conv_first'), *both('patch_embed.norm')]
    for i, (names, full) in enumerate(zip(blocks(args), args['num_heads'])):
        features = args['embed_dim'] // full  # of one head's queries, keys, values
        for block in names:
            heads, attn = w[f'{block}.heads'], f'{block}.attn'
            groups.append(Group(f'{block}.heads', heads, (
                *(s for part in range(3) for s in both(f'{attn}.qkv', repeat=features, offset=part * heads * features)),
                Slice(f'{attn}.relative_position_bias_table', 1),
                Slice(f'{attn}.proj.weight', 1, features, gate=f'{attn}.proj.gate_in'))))
            groups.append(Group(f'{block}.hidden', w[f'{block}.hidden'], (
                *both(f'{block}.mlp.fc1', gate=f'{block}.mlp.fc1.gate'), Slice(f'{block}.mlp.fc2.weight', 1))))
            stream += [*both(f'{block}.norm1'), Slice(f'{attn}.qkv.weight', 1), *both(f'{attn}.proj'),
                       *both(f'{block}.norm2'), Slice(f'{block}.mlp.fc1.weight', 1), *both(f'{block}.mlp.fc2')]
        end(f'layers.{i}.conv')
    stream += both('norm')
    end('conv_after_body')
    names = [*shuffles(args), 'conv_last']
    if args['upsampler'] == 'pixelshuffle':
        stream.append(Slice('conv_before_upsample.0.weight', 1))
        filters('conv_before_upsample', names[0], 'conv_before_upsample.0')
        for (name, r), follower in zip(shuffles(args).items(), names[1:]):
            filters(name, follower, repeat=r**2)
    else:
        stream.append(Slice('upsample.0.weight', 1))
    if args['residual'] == 'aligned':
        groups.insert(0, Group('stream', w['stream'], tuple(stream), normalised=True))
    return groups


def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[Layer]:
    """All layers of the network with these widths (groups not named are full)."""
    w = {**full_widths(args), **widths}
    embed: int = args['embed_dim']
    side: int = args['window_size']
    c = w.get('stream', embed)

    def end(name: str) -> list[Layer]:
        if args['resi_connection'] == '1conv':
            return [Conv(name, c, c, 3, multiple=side)]
        first, second = w[f'{name}.0'], w[f'{name}.2']
        return [Conv(f'{name}.0', c, first, 3, multiple=side), Conv(f'{name}.2', first, second, 1, multiple=side),
                Conv(f'{name}.4', second, c, 3, multiple=side)]

    layers: list[Layer] = [Conv('conv_first', 3, c, 3, multiple=side), Norm('patch_embed.norm', c, multiple=side)]
    for i, (names, full) in enumerate(zip(blocks(args), args['num_heads'])):
        for block in names:
            heads, hidden = w[f'{block}.heads'], w[f'{block}.hidden']
            inner = heads * (embed // full)
            layers += [
                Norm(f'{block}.norm1', c, multiple=side), Linear(f'{block}.attn.qkv', c, 3 * inner, multiple=side),
                Attention(f'{block}.attn', inner, inner, side**2, (2 * side - 1)**2 * heads, multiple=side),
                Linear(f'{block}.attn.proj', inner, c, multiple=side), Norm(f'{block}.norm2', c, multiple=side),
                Linear(f'{block}.mlp.fc1', c, hidden, multiple=side),
                Linear(f'{block}.mlp.fc2', hidden, c, multiple=side)]
        layers += end(f'layers.{i}.conv')
    layers += [Norm('norm', c, multiple=side), *end('conv_after_body')]
    if args['upsampler'] == 'pixelshuffledirect':
        return [*layers, Conv('upsample.0', c, 3 * args['scale']**2, 3, multiple=side)]
    cin, size = w['conv_before_upsample'], 1
    layers.append(Conv('conv_before_upsample.0', c, cin, 3, multiple=side))
    for name, r in shuffles(args).items():
        layers.append(Conv(name, cin, r**2 * w[name], 3, area=size**2, multiple=side))
        cin, size = w[name], size * r
    return [*layers, Conv('conv_last', cin, 3, 3, area=size**2, multiple=side)]


def body_table(args: Mapping[str, Any]) -> Body:
    """The transformer blocks, by residual group; every other one has shifted windows."""
    return Body(args['embed_dim'], tuple(map(Stack, map(tuple, blocks(args)), ((end,) for end in ends(args)))),
                math.lcm(*args['num_heads']), 2)


def resized(args: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Arguments of a network of another size, with as many heads."""
    return {**args, 'embed_dim': size.channels, 'depths': [size.blocks] * size.stacks,
            'num_heads': args['num_heads'][:size.stacks]}


def unit_table(args: Mapping[str, Any]) -> list[Group]:
    """The groups by which all of the network that ``embed_dim`` says becomes narrow, the features of the heads too."""
    groups = group_table(Spec('PrunableSwinIR', {**args, 'residual': 'aligned'}))
    for names, heads in zip(blocks(args), args['num_heads']):
        features = args['embed_dim'] // heads
        groups += [Group(f'{block}.features', features, (
            *(Slice(f'{block}.attn.qkv.{param}', 0, offset=(part * heads + head) * features)
              for param in ('weight', 'bias') for part in range(3) for head in range(heads)),
            *(Slice(f'{block}.attn.proj.weight', 1, offset=head * features) for head in range(heads))))
            for block in names]
    return groups


@ARCH_REGISTRY.register()
class PrunableSwinIR(PrunableNetwork):
    """SwinIR for super-resolution (Liang et al., ICCV workshops 2021), prunable.

    The dense form is BasicSR's ``SwinIR`` with the same parameter names and, in eval mode, the same output; of its
    arguments those that no published super-resolution network changes are left out. Images of any size are mirrored at
    their right and lower border up to whole windows, as BasicSR's ``SwinIRModel`` does it. Stochastic depth
    (``drop_path_rate``) is left out: a network computes the same in training and after it.

    Groups are the hidden units of every MLP, the heads of every attention (queries, keys, values, column of the table
    of position biases, input of the projection), and what stands between the convolutions of ``3conv`` and of the
    classical tail. With ``residual='aligned'`` also the embedding: a channel of all that writes to the residual stream
    or reads it. It passes layer norms, which a closed channel would still count in, so it has no gates: it can be cut,
    judged by its weights, but not be driven to zero beforehand. A head keeps its number of features, and the factor of
    the attention with it, whatever is cut.

    Never pruned: ``conv_last``, of the light tail its one convolution, and unless aligned ``conv_first``.

    Args:
        embed_dim: channels of the residual stream, a multiple of every number of heads.
        depths: transformer blocks of every residual group.
        num_heads: heads of the attention, by residual group.
        window_size: side of the windows that attention is confined to, in LR pixels.
        mlp_ratio: hidden units of an MLP, relative to ``embed_dim``.
        scale: 2, 3, 4 or 8; BasicSR's ``upscale``.
        upsampler: ``'pixelshuffledirect'`` (light: one convolution) or ``'pixelshuffle'`` (classical).
        resi_connection: ``'1conv'`` or ``'3conv'``, at the end of each residual group and after all.
        img_range: value of white within the network; a state dict does not say it.
        residual: ``'aligned'`` or ``'full'``: whether the embedding is a group; makes no difference to the dense
            network's output.
        gates: kind of the gates of the prunable layers, see ``pruning/gates.py``; empty: none. Those of units go with
            full widths only.
        widths: units kept by group name; groups not named are full.
        index: there is none; here because all networks have it.

    Raises:
        ValueError: an argument out of range, a group that does not exist, a width that does not fit.
    """

    full_widths = staticmethod(full_widths)
    group_table = staticmethod(group_table)
    layer_table = staticmethod(layer_table)
    body_table, resized, unit_table = staticmethod(body_table), staticmethod(resized), staticmethod(unit_table)
    task = 'image'
    pruning_args = ('residual',)
    mean: Tensor

    def __init__(self, embed_dim: int = 60, depths: Sequence[int] = (6, 6, 6, 6),
                 num_heads: Sequence[int] = (6, 6, 6, 6), window_size: int = 8, mlp_ratio: float = 2.0,
                 scale: Literal[2, 3, 4, 8] = 4,
                 upsampler: Literal['pixelshuffledirect', 'pixelshuffle'] = 'pixelshuffledirect',
                 resi_connection: Literal['1conv', '3conv'] = '1conv', img_range: float = 1.0,
                 residual: Literal['full', 'aligned'] = 'full', gates: Gates = '',
                 widths: Mapping[str, int] | None = None, index: Mapping[str, Sequence[int]] | None = None) -> None:
        check_choice('scale', scale, (2, 3, 4, 8))
        check_choice('upsampler', upsampler, ('pixelshuffledirect', 'pixelshuffle'))
        check_choice('resi_connection', resi_connection, ('1conv', '3conv'))
        check_choice('residual', residual, ('full', 'aligned'))
        check_least(1, embed_dim=embed_dim, window_size=window_size, **{'the least of depths': min(depths, default=0)})
        if len(depths) != len(num_heads):
            raise ValueError(f'depths and num_heads must be of one length, got {list(depths)} and {list(num_heads)}')
        if sum(depths) > MOST_BLOCKS:  # before tables of so many are made
            raise ValueError(f'{sum(depths)} blocks are more than {MOST_BLOCKS:,}')
        if any(heads < 1 or embed_dim % heads for heads in num_heads):
            raise ValueError(f'embed_dim must be a multiple of all num_heads, got {embed_dim} and {list(num_heads)}')
        if not img_range > 0 or not int(embed_dim * mlp_ratio) >= 1:
            raise ValueError(f'img_range and the hidden units, embed_dim * mlp_ratio, must be above 0, got {img_range} '
                             f'and {embed_dim} * {mlp_ratio}')
        if resi_connection == '3conv' and embed_dim < 4:
            raise ValueError(f'3conv has embed_dim // 4 channels, embed_dim must be at least 4, got {embed_dim}')
        args: dict[str, Any] = dict(
            embed_dim=embed_dim, depths=list(depths), num_heads=list(num_heads), window_size=window_size,
            mlp_ratio=float(mlp_ratio), scale=scale, upsampler=upsampler, resi_connection=resi_connection,
            img_range=float(img_range), residual=residual)
        super().__init__(args, gates, widths, index)

        w = {**full_widths(args), **self.spec.widths}
        c = w.get('stream', embed_dim)

        def end(name: str) -> nn.Module:
            if resi_connection == '1conv':
                return conv(c, c, gates=gates, units=False)
            first, second = w[f'{name}.0'], w[f'{name}.2']
            return nn.Sequential(conv(c, first, gates=gates), nn.LeakyReLU(0.2), conv(first, second, 1, gates=gates),
                                 nn.LeakyReLU(0.2), conv(second, c, gates=gates, units=False))

        self.register_buffer('mean', torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = conv(3, c, gates=gates, units=False)
        self.patch_embed = nn.ModuleDict({'norm': nn.LayerNorm(c)})
        self.layers = nn.ModuleList(
            ResidualGroup([Block(c, w[f'{name}.heads'], embed_dim // heads, w[f'{name}.hidden'], window_size,
                                 window_size // 2 if j % 2 else 0, gates) for j, name in enumerate(names)], end(last))
            for names, heads, last in zip(blocks(args), num_heads, ends(args)))
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = end('conv_after_body')
        if upsampler == 'pixelshuffledirect':
            self.conv_before_upsample = self.conv_last = nn.Identity()
            self.upsample = nn.Sequential(conv(c, 3 * scale**2, gates=gates, units=False), nn.PixelShuffle(scale))
        else:
            cin, steps = w['conv_before_upsample'], list[nn.Module]()
            self.conv_before_upsample = nn.Sequential(conv(c, cin, gates=gates), nn.LeakyReLU())
            for name, r in shuffles(args).items():
                steps += [conv(cin, r**2 * w[name], gates=gates, repeat=r**2), nn.PixelShuffle(r)]
                cin = w[name]
            self.upsample = nn.Sequential(*steps)
            self.conv_last = conv(cin, 3, gates=gates, units=False)
        self.scale, self.img_range, self.window_size = scale, float(img_range), window_size
        self._init_weights_()

    @torch.no_grad()
    def _init_weights_(self) -> None:
        """As BasicSR's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            if isinstance(module, GatedLinear):
                module.init_gates_()

    def forward(self, x: Tensor) -> Tensor:
        """LR images (b, 3, h, w) in [0, 1], RGB, to HR images (b, 3, scale*h, scale*w); h and w are free."""
        h, w = x.shape[-2:]
        mean = self.mean.type_as(x)
        first = self.conv_first((whole_windows(x, self.window_size) - mean) * self.img_range)  # (b, c, H, W)
        mask = borders(first.shape[2], first.shape[3], self.window_size, self.window_size // 2).to(first)
        tokens = self.patch_embed['norm'](first.permute(0, 2, 3, 1))  # (b, H, W, c), as everything up to the last norm
        for layer in self.layers:
            tokens = layer(tokens, mask)
        out = first + self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))
        out = self.conv_last(self.upsample(self.conv_before_upsample(out))) / self.img_range + mean
        return out[..., :h * self.scale, :w * self.scale]

    @torch.no_grad()
    def stream(self, frames: Iterable[Tensor], keep: str = 'device') -> Iterator[Tensor]:
        """What ``forward`` makes of images (b, 3, h, w), one by one; there are no states to ``keep``."""
        yield from map(self, frames)


class ResidualGroup(nn.Module):
    """Transformer blocks and a convolution within a skip (RSTB); named as in BasicSR's SwinIR."""

    def __init__(self, transformer: Sequence[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({'blocks': nn.ModuleList(transformer)})
        self.conv = last

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(b, H, W, c) to the same shape."""
        y = x
        for block in self.residual_group['blocks']:  # type: ignore[attr-defined]
            y = block(y, mask)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention within windows, and an MLP, each behind a layer norm and within a skip.

    Args:
        channels: of the stream.
        heads, features: heads, and features of each.
        hidden: units of the MLP.
        window: side of the windows.
        shift: by how much they are moved right and down.
        gates: kind of the gates of the heads and of the hidden units.
    """

    def __init__(self, channels: int, heads: int, features: int, hidden: int, window: int, shift: int,
                 gates: str = '') -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, features, window, gates)
        self.mlp = nn.Sequential()  # its parts have names, and run in their order
        self.mlp.add_module('fc1', linear(channels, hidden, gates=gates, outputs=hidden))
        self.mlp.add_module('act', nn.GELU())
        self.mlp.add_module('fc2', linear(hidden, channels, gates=gates))
        self.window, self.shift = window, shift

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(b, H, W, c) to the same shape.

        Args:
            x: H and W are multiples of the window's side n.
            mask: (windows, 1, n*n, n*n), see ``borders``; for shifted windows.
        """
        b, height, width, _ = x.shape
        n, shift = self.window, self.shift
        y = self.norm1(x)
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
        y = y.unflatten(1, (-1, n)).unflatten(3, (-1, n)).transpose(2, 3)  # (b, H/n, W/n, n, n, c)
        y = self.attn(y.reshape(b, -1, n * n, y.shape[-1]), mask if shift else None)
        y = y.reshape(b, height // n, width // n, n, n, -1).transpose(2, 3).reshape(b, height, width, -1)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Attention of all pixels of a window to each other, with a learnt bias for how they lie to each other."""

    def __init__(self, channels: int, heads: int, features: int, window: int, gates: str = '') -> None:
        super().__init__()
        self.heads, self.features = heads, features
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1)**2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = linear(channels, 3 * heads * features, gates=gates)
        self.proj = linear(heads * features, channels, gates=gates, inputs=heads)
        # a function of the window's size: not in the state dict
        self.register_buffer('relative_position_index', relative_positions(window), persistent=False)

    relative_position_index: Tensor

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, windows, t, c) to the same shape, t the pixels of a window; ``mask`` (windows, 1, t, t) is added."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.features)).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, t, t)
        attention = (self.features**-0.5 * q) @ k.transpose(-1, -2) + bias  # (b, windows, heads, t, t)
        if mask is not None:
            attention = attention + mask
        return self.proj((attention.softmax(-1) @ v).transpose(2, 3).flatten(-2))


def relative_positions(window: int) -> Tensor:
    """(n*n, n*n) for windows of side n: the row of the table of position biases for two pixels of one, int64."""
    rows, columns = (torch.arange(window**2) // window, torch.arange(window**2) % window)
    down, right = (at[:, None] - at + window - 1 for at in (rows, columns))
    return down * (2 * window - 1) + right


def borders(height: int, width: int, window: int, shift: int) -> Tensor:
    """(windows, 1, n*n, n*n), 0 or ``APART``: what is added to the attention of images rolled by the shift.

    The last windows of a row or column then hold pixels of both sides of the image, which are to stay apart.
    """
    rows, columns = (torch.arange(side) for side in (height, width))
    # of a rolled side: 0, in the last window 1 and, from beyond the border, 2
    rows, columns = ((at >= len(at) - window).int() + (at >= len(at) - shift).int() for at in (rows, columns))
    parts = (3 * rows[:, None] + columns).unflatten(0, (-1, window)).unflatten(2, (-1, window))
    parts = parts.transpose(1, 2).reshape(-1, 1, window**2)
    return APART * (parts[..., None] != parts[..., None, :]).float()


def whole_windows(x: Tensor, window: int) -> Tensor:
    """(b, c, h, w) mirrored at its right and lower border, which are not repeated, up to multiples of the window."""
    for dim in (2, 3):
        size = x.shape[dim]
        if more := -size % window:
            # there and back, as often as need be
            at = torch.arange(size + more, device=x.device) % max(2 * size - 2, 1)
            x = x.index_select(dim, torch.minimum(at, 2 * size - 2 - at) if size > 1 else at)
    return x
