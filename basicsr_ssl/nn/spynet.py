"""SPyNet, of BasicSR's size and smaller, for frames of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from basicsr.archs.arch_util import flow_warp
from basicsr.archs.spynet_arch import SpyNet
from torch import Tensor, nn

from basicsr_ssl.nn.gated import conv

LEVELS = 6

SpyNetSize = Literal['full', 'small']


class LevelSize(NamedTuple):
    """Of the five convolutions of a level: channels between them, and their kernels' side."""
    hidden: tuple[int, int, int, int]
    kernel: int


#: ``full`` is the published network; ``small`` has a ninth of its parameters and multiply-accumulates
SIZES: dict[SpyNetSize, LevelSize] = {'full': LevelSize((32, 64, 32, 16), 7), 'small': LevelSize((16, 24, 16, 8), 5)}


class AnySizeSpyNet(SpyNet):
    """The same network and the same numbers as BasicSR's ``SpyNet``, which fails when a side is 32 pixels or less.

    There the coarsest of its six levels is one pixel high or wide, and BasicSR starts from a flow of half that size,
    which is empty. Starting from a zero flow of the level's own size is the same for larger frames.

    Args:
        size: see ``SIZES``.
        hidden: channels between the convolutions of each level, from coarse to fine, where they are other than those.
            With fewer than six levels the coarsest ones are left out: the flow there is zero.
        gates: of the convolutions whose filters are units, see ``nn.gated``; may be empty.
    """

    constant_buffers = ('mean', 'std')  # the same in every network: some files leave them out

    def __init__(self, size: SpyNetSize = 'full', hidden: Sequence[Sequence[int]] | None = None,
                 gates: str = '') -> None:
        super().__init__()
        if size != 'full' or hidden is not None or gates:
            levels = [SIZES[size].hidden] * LEVELS if hidden is None else hidden
            # those left out keep their places, so that the others keep their names
            self.basic_module = nn.ModuleList([*(nn.Identity() for _ in range(LEVELS - len(levels))), *(
                _Level(level, SIZES[size].kernel, gates) for level in levels)])
        self.levels = LEVELS if hidden is None else len(hidden)
        self.size: SpyNetSize = size

    def process(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Flow (b, 2, h, w) that aligns ``supp`` to ``ref``, both (b, 3, h, w) with sides that are multiples of 32."""
        return self.pyramid(ref, supp)[-1]

    def pyramid(self, ref: Tensor, supp: Tensor, apart: bool = False) -> list[Tensor]:
        """The flows of all levels, from coarse to fine: (b, 2, h/32, w/32) in pixels of that size, ..., (b, 2, h, w).

        Args:
            ref, supp: (b, 3, h, w), sides multiples of 32.
            apart: without gradients from a level to the coarser ones: each learns what those before it left, as
                published.
        """
        frames = [torch.cat((self.preprocess(ref), self.preprocess(supp)))]
        for _ in range(self.levels - 1):
            frames.append(F.avg_pool2d(frames[-1], 2))
        flows = []
        flow = ref.new_zeros(len(ref), 2, *frames[-1].shape[-2:])
        for level, both in enumerate(reversed(frames), LEVELS - self.levels):
            if flows:
                flow = 2 * F.interpolate(flow.detach() if apart else flow, scale_factor=2, mode='bilinear',
                                         align_corners=True)
            one, other = both.chunk(2)
            warped = flow_warp(other, flow.permute(0, 2, 3, 1), padding_mode='border')
            flow = flow + self.basic_module[level](torch.cat((one, warped, flow), 1))
            flows.append(flow)
        return flows


def through_level(hidden: Sequence[int]) -> list[tuple[int, int]]:
    """Channels into and out of each convolution of a level, which takes two frames and a flow, and makes a flow."""
    return list(pairwise((8, *hidden, 2)))


class _Level(nn.Module):
    """The convolutions of one level, named as BasicSR names its own."""

    def __init__(self, hidden: Sequence[int], kernel: int, gates: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate(through_level(hidden)):
            layers += [conv(cin, cout, kernel, gates=gates, units=i < len(hidden)), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)
