"""SPyNet, of BasicSR, mmagic and pytorch-spynet.

The three are one network with one order of channels: pytorch-spynet takes BGR frames and turns them into RGB before it
subtracts the mean, the others take RGB. Its own code warps with ``align_corners=False``, that of the others, and this
one, with True.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from basicsr.archs.spynet_arch import SpyNet
from torch import nn

from basicsr_ssl.checkpoints.layouts.layout import Found, Layout, State
from basicsr_ssl.nn.spynet import SIZES, SpyNetSize
from basicsr_ssl.pruning.spec import Spec


def read(state: State, lists: Mapping[str, Any] | None) -> Found:
    """It is not pruned."""
    del lists
    size = size_of(state)
    return Found(Spec('StandaloneSpyNet', {} if size == 'full' else {'size': size}), state)


def size_of(state: State) -> SpyNetSize:
    """The size of a SpyNet by its first kernel; ``full`` if that is none of ours, so that the misfit is told."""
    first = state.get('basic_module.0.basic_module.0.weight')
    sides = first.shape[2:] if first is not None and first.dim() == 4 else ()
    small = SIZES['small'].kernel
    return 'small' if sides == (small, small) else 'full'


def to_basicsr(net: nn.Module) -> State:
    """The weights as BasicSR's ``SpyNet`` loads them.

    Raises:
        ValueError: it is a small one, or mean and std are not BasicSR's.
    """
    if size_of(net.state_dict()) != 'full':
        raise ValueError('whose class knows no small SpyNet')
    own, theirs = net.state_dict(), SpyNet().state_dict()
    if not all(own[name].equal(theirs[name]) for name in ('mean', 'std')):
        raise ValueError('whose class knows no other mean and std')
    # it reads its file before it has mean and std, and would refuse them
    return {name: tensor for name, tensor in own.items() if name not in ('mean', 'std')}


def from_mmagic(name: str) -> str:
    """BasicSR's name of one of mmagic's tensors, also within a BasicVSR."""
    # five convolutions in a row; BasicSR counts the activations between them too
    return re.sub(r'^((?:spynet\.)?basic_module\.\d\.basic_module)\.(\d)\.conv\.',
                  lambda match: f'{match[1]}.{2 * int(match[2])}.', name)


def _from_pytorch_spynet(name: str) -> str:
    return re.sub('^(?:module|net)Basic\\.(\\d)\\.(?:module|net)Basic\\.', r'basic_module.\1.basic_module.', name)


LAYOUTS = (
    Layout('BasicSR SpyNet', ('basic_module.0.basic_module.0.weight',), str, read),
    Layout('mmagic SpyNet', ('basic_module.0.basic_module.0.conv.weight',), from_mmagic, read),
    Layout('pytorch-spynet', ('moduleBasic.0.moduleBasic.0.weight',), _from_pytorch_spynet, read),
    Layout('pytorch-spynet', ('netBasic.0.netBasic.0.weight',), _from_pytorch_spynet, read),
)
