"""A network with attention, layer norm and packed projections, which declares itself as the archs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl.archs.prunable import PrunableNetwork
from basicsr_ssl.pruning.cost import Attention, Conv, Layer, Linear, Norm
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec

STREAM, HEADS, KEY, VALUE, HIDDEN, WINDOW = 6, 4, 2, 3, 10, 4  # KEY, VALUE: features of one head; WINDOW: its side


def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
    return {'heads': HEADS, 'keys': KEY, 'hidden': HIDDEN, 'stream': STREAM}


def group_table(spec: Spec) -> list[Group]:
    """Heads, features of queries and keys, hidden units of the MLP, and the stream that the norm sees."""
    w = {**full_widths(spec.args), **spec.widths}
    heads, keys = w['heads'], w['keys']
    packed = [(0, keys), (heads * keys, keys), (2 * heads * keys, VALUE)]  # q, k, v: first row, rows of a head
    return [
        Group('heads', heads, (
            *(Slice(f'qkv.{part}', 0, rows, first) for part in ('weight', 'bias') for first, rows in packed),
            Slice('proj.weight', 1, VALUE, gate='proj.gate_in'))),
        # feature d of the queries and keys of every head: a slice per head
        Group('keys', keys, tuple(
            Slice(f'qkv.{part}', 0, 1, first + head * keys, gate='qkv.gate' if first == 0 else None)
            for part in ('weight', 'bias') for first in (0, heads * keys) for head in range(heads))),
        Group('hidden', w['hidden'], (Slice('fc1.weight', 0, gate='fc1.gate'), Slice('fc1.bias', 0, gate='fc1.gate'),
                                      Slice('fc2.weight', 1))),
        Group('stream', w['stream'], (
            Slice('first.weight', 0), Slice('first.bias', 0), Slice('norm.weight', 0), Slice('norm.bias', 0),
            Slice('qkv.weight', 1), Slice('proj.weight', 0), Slice('proj.bias', 0), Slice('fc1.weight', 1),
            Slice('fc2.weight', 0), Slice('fc2.bias', 0), Slice('last.weight', 1)), normalised=True),
    ]


def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[Layer]:
    w = {**full_widths(args), **widths}
    keys, values = w['heads'] * w['keys'], w['heads'] * VALUE
    return [Conv('first', 3, w['stream'], 3, bias=True, multiple=WINDOW), Norm('norm', w['stream'], multiple=WINDOW),
            Linear('qkv', w['stream'], 2 * keys + values, multiple=WINDOW),
            Attention('attention', keys, values, WINDOW**2, multiple=WINDOW),
            Linear('proj', values, w['stream'], multiple=WINDOW),
            Linear('fc1', w['stream'], w['hidden'], multiple=WINDOW),
            Linear('fc2', w['hidden'], w['stream'], multiple=WINDOW),
            Conv('last', w['stream'], 3, 3, bias=False, multiple=WINDOW)]


class AttentionNet(PrunableNetwork):
    """``(b, 3, h, w)`` to the same shape; sides are multiples of the window's. Its gates multiply what they name."""

    full_widths = staticmethod(full_widths)
    group_table = staticmethod(group_table)
    layer_table = staticmethod(layer_table)
    task = 'image'

    def __init__(self, gates: str = '', widths: Mapping[str, int] | None = None,
                 index: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__({}, gates, widths, index)
        w = {**full_widths({}), **self.spec.widths}
        self.heads, self.keys = w['heads'], w['keys']
        self.first = nn.Conv2d(3, w['stream'], 3, padding=1)
        self.norm = nn.LayerNorm(w['stream'])
        self.qkv = nn.Linear(w['stream'], self.heads * (2 * self.keys + VALUE))
        self.proj = nn.Linear(self.heads * VALUE, w['stream'])
        self.fc1, self.fc2 = nn.Linear(w['stream'], w['hidden']), nn.Linear(w['hidden'], w['stream'])
        self.last = nn.Conv2d(w['stream'], 3, 3, padding=1, bias=False)
        if gates:
            self.qkv.gate = nn.Parameter(torch.ones(self.keys))
            self.proj.gate_in = nn.Parameter(torch.ones(self.heads))
            self.fc1.gate = nn.Parameter(torch.ones(w['hidden']))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        rows, columns = h // WINDOW, w // WINDOW
        tokens = self.first(x).reshape(b, -1, rows, WINDOW, columns, WINDOW).permute(0, 2, 4, 3, 5, 1)
        tokens = tokens.reshape(b * rows * columns, WINDOW**2, -1)
        q, k, v = self.qkv(self.norm(tokens)).split(
            [self.heads * self.keys, self.heads * self.keys, self.heads * VALUE], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.spec.gates:
            q = q * self.qkv.get_parameter('gate')
        # no division by the root of the number of features, which would change with it
        out = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)
        if self.spec.gates:
            out = out * self.proj.get_parameter('gate_in')[:, None]
        tokens = tokens + self.proj(out.flatten(-2))
        hidden = self.fc1(self.norm(tokens))
        if self.spec.gates:
            hidden = hidden * self.fc1.get_parameter('gate')
        tokens = tokens + self.fc2(F.gelu(hidden))
        tokens = tokens.reshape(b, rows, columns, WINDOW, WINDOW, -1).permute(0, 5, 1, 3, 2, 4)
        return self.last(tokens.reshape(b, -1, h, w))
