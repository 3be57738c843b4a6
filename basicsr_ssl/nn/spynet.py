"""BasicSR's SPyNet, for frames of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.archs.arch_util import flow_warp
from basicsr.archs.spynet_arch import SpyNet
from torch import Tensor


class AnySizeSpyNet(SpyNet):
    """The same network and the same numbers as BasicSR's ``SpyNet``, which fails when a side is 32 pixels or less.

    There the coarsest of its six levels is one pixel high or wide, and BasicSR starts from a flow of half that size,
    which is empty. Starting from a zero flow of the level's own size is the same for larger frames.
    """

    constant_buffers = ('mean', 'std')  # the same in every network: some files leave them out

    def process(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Flow (b, 2, h, w) that aligns ``supp`` to ``ref``, both (b, 3, h, w) with sides that are multiples of 32."""
        pyramid = [torch.cat((self.preprocess(ref), self.preprocess(supp)))]
        for _ in range(5):
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        flow = ref.new_zeros(len(ref), 2, *pyramid[-1].shape[-2:])
        for level, frames in enumerate(reversed(pyramid)):
            if level > 0:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode='bilinear', align_corners=True)
            one, other = frames.chunk(2)
            warped = flow_warp(other, flow.permute(0, 2, 3, 1), padding_mode='border')
            flow = flow + self.basic_module[level](torch.cat((one, warped, flow), 1))
        return flow
