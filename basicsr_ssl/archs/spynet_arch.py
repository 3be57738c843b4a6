"""SpyNet as a network of its own: so that it is trained, and its files read and described, like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.archs.prunable import PrunableNetwork, checked_spec
from basicsr_ssl.nn.spynet import LEVELS, SIZES, AnySizeSpyNet, SpyNetSize, through_level
from basicsr_ssl.pruning.cost import Conv
from basicsr_ssl.pruning.gates import Gates
from basicsr_ssl.pruning.groups import Group, Slice
from basicsr_ssl.pruning.spec import Spec


def _levels(args: Mapping[str, Any]) -> range:
    """The levels that run, the finest ones: all, unless ``args`` say how many."""
    return range(LEVELS - args.get('levels', LEVELS), LEVELS)


def _convolution(level: int, i: int) -> str:
    return f'basic_module.{level}.basic_module.{2 * i}'


def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
    """Group name to number of units of the dense network: the filters of all convolutions whose output is no flow."""
    return {_convolution(level, i): width for level in _levels(args)
            for i, width in enumerate(SIZES[args.get('size', 'full')].hidden)}


def hidden_widths(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Channels between the convolutions of each level that runs (groups not named are full)."""
    every = {**full_widths(args), **widths}
    return [tuple(every[_convolution(level, i)] for i in range(4)) for level in _levels(args)]


def group_table(spec: Spec) -> list[Group]:
    """All groups of the network that ``spec`` describes, in the order of the forward pass."""
    widths = {**full_widths(spec.args), **spec.widths}
    groups = []
    for level in _levels(spec.args):
        for i in range(4):
            name, follower = _convolution(level, i), _convolution(level, i + 1)
            gate = f'{name}.gate'
            groups.append(Group(name, widths[name], (Slice(f'{name}.weight', 0, gate=gate),
                                                     Slice(f'{name}.bias', 0, gate=gate),
                                                     Slice(f'{follower}.weight', 1)), flow=True))
    return groups


def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> list[Conv]:
    """All layers of the network with these widths (groups not named are full)."""
    kernel = SIZES[args.get('size', 'full')].kernel
    return [Conv(_convolution(level, i), cin, cout, kernel, area=4.0**(level - LEVELS + 1), multiple=32, flow=True)
            for level, hidden in zip(_levels(args), hidden_widths(args, widths))
            for i, (cin, cout) in enumerate(through_level(hidden))]


@ARCH_REGISTRY.register()
class StandaloneSpyNet(AnySizeSpyNet):
    """SpyNet (Ranjan and Black, CVPR 2017) as BasicVSR uses it, or a small one.

    It is given to a BasicVSR as ``network_g: spynet_path``; ``forward(ref, supp)`` gives the flow (b, 2, h, w) that
    aligns ``supp`` to ``ref``, both (b, 3, h, w) in [0, 1], RGB. In training mode it gives the flows of all levels,
    (b, 6, 2, h, w) from coarse to fine, brought to full size and in its pixels, for a loss on each of them, which
    teaches that level alone; the sides must be multiples of 32 then.

    Args:
        size: ``'full'``, or ``'small'``: see ``nn.spynet.SIZES``.
        shared: all levels have the same weights, as at the start of training, when what one of them learns serves all.
            The file has them six times, so that it is one of a network whose levels go their own ways, too.
        gates: kind of the gates of the prunable convolutions, see ``pruning/gates.py``; empty: none.
        widths: units kept by group name; groups not named are full.

    Raises:
        ValueError: another size, a group that does not exist, a width that does not fit, gates or widths of levels
            that share their weights; in training mode, frames whose sides are no multiples of 32.
    """

    task = 'flow'
    flow_network = None
    pruning_args = ()
    run_args = ('shared',)
    full_widths = staticmethod(full_widths)
    group_table = staticmethod(group_table)
    layer_table = staticmethod(layer_table)
    # what it shares with other prunable networks, without their constructor: BasicSR's must run
    stream_table = staticmethod(PrunableNetwork.stream_table)
    groups, cost_table = PrunableNetwork.groups, PrunableNetwork.cost_table

    def __init__(self, size: SpyNetSize = 'full', gates: Gates = '', widths: Mapping[str, int] | None = None,
                 shared: bool = False) -> None:
        if size not in SIZES:
            raise ValueError(f'size must be {" or ".join(SIZES)}, got {size!r}')
        args = {**({} if size == 'full' else {'size': size}), **({'shared': True} if shared else {})}
        spec = checked_spec(type(self), args, gates, widths)
        if shared and (gates or spec.widths):
            raise ValueError('shared: levels that share their weights are not pruned: leave shared out')
        super().__init__(size, hidden_widths(spec.args, spec.widths) if spec.widths else None, gates)
        if shared:
            self.basic_module = nn.ModuleList([self.basic_module[0]] * LEVELS)
        self.spec = spec

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        if not self.training:
            return super().forward(ref, supp)
        h, w = ref.shape[-2:]
        if h % 32 or w % 32:
            raise ValueError(f'flow is trained on frames whose sides are multiples of 32, got {h} x {w}')
        return torch.stack([F.interpolate(flow, (h, w), mode='bilinear', align_corners=True) * (h / flow.shape[-2])
                            for flow in self.pyramid(ref, supp, apart=True)], dim=1)
