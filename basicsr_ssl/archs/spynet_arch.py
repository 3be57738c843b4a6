"""SpyNet as a network of its own: so that it is trained, and its files read and described, like any other."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from basicsr_ssl.nn.spynet import LEVELS, SIZES, AnySizeSpyNet, SpyNetSize
from basicsr_ssl.pruning.cost import Conv
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.spec import Spec


def layer_table(size: SpyNetSize = 'full') -> list[Conv]:
    """Its layers."""
    level_size = SIZES[size]
    return [Conv(f'basic_module.{level}.basic_module.{2 * i}', cin, cout, level_size.kernel,
                 area=4.0**(level - LEVELS + 1), multiple=32, flow=True)
            for level in range(LEVELS) for i, (cin, cout) in enumerate(pairwise(level_size.channels))]


@ARCH_REGISTRY.register()
class StandaloneSpyNet(AnySizeSpyNet):
    """SpyNet (Ranjan and Black, CVPR 2017) as BasicVSR uses it, or a small one. It is not pruned.

    It is given to a BasicVSR as ``network_g: spynet_path``; ``forward(ref, supp)`` gives the flow (b, 2, h, w) that
    aligns ``supp`` to ``ref``, both (b, 3, h, w) in [0, 1], RGB. In training mode it gives the flows of all levels,
    (b, 6, 2, h, w) from coarse to fine, brought to full size and in its pixels, for a loss on each of them; the sides
    must be multiples of 32 then.

    Args:
        size: ``'full'``, or ``'small'``: see ``nn.spynet.SIZES``.

    Raises:
        ValueError: another size; in training mode, frames whose sides are no multiples of 32.
    """

    task = 'flow'
    flow_network = None
    pruning_args = ()
    groups: list[Group] = []

    def __init__(self, size: SpyNetSize = 'full') -> None:
        if size not in SIZES:
            raise ValueError(f'size must be {" or ".join(SIZES)}, got {size!r}')
        super().__init__(size)
        self.cost_table = layer_table(size)
        self.spec = Spec('StandaloneSpyNet', {} if size == 'full' else {'size': size})

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        if not self.training:
            return super().forward(ref, supp)
        h, w = ref.shape[-2:]
        if h % 32 or w % 32:
            raise ValueError(f'flow is trained on frames whose sides are multiples of 32, got {h} x {w}')
        return torch.stack([F.interpolate(flow, (h, w), mode='bilinear', align_corners=True) * (h / flow.shape[-2])
                            for flow in self.pyramid(ref, supp)], dim=1)
