"""SpyNet as a network of its own: so that its files are read, described and converted like any other's."""

from __future__ import annotations

from itertools import pairwise

from basicsr.utils.registry import ARCH_REGISTRY

from basicsr_ssl.nn.spynet import AnySizeSpyNet
from basicsr_ssl.pruning.cost import Conv
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.spec import Spec

# between the five convolutions of a level: a frame, the other frame and a flow go in, a flow comes out
CHANNELS = (8, 32, 64, 32, 16, 2)


@ARCH_REGISTRY.register()
class StandaloneSpyNet(AnySizeSpyNet):
    """SpyNet (Ranjan and Black, CVPR 2017) as BasicVSR uses it. It is not pruned, and has no arguments.

    It is given to a BasicVSR as ``network_g: spynet_path``; ``forward(ref, supp)`` gives the flow (b, 2, h, w) that
    aligns ``supp`` to ``ref``, both (b, 3, h, w) in [0, 1], RGB.
    """

    task = 'flow'
    flow_network = None
    groups: list[Group] = []
    layers: list[Conv] = [
        Conv(f'basic_module.{level}.basic_module.{2 * i}', cin, cout, 7, area=4.0**(level - 5), multiple=32, flow=True)
        for level in range(6) for i, (cin, cout) in enumerate(pairwise(CHANNELS))]

    def __init__(self) -> None:
        super().__init__()
        self.spec = Spec('StandaloneSpyNet')
