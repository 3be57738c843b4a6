"""Networks small enough for tests, with weights under which every layer matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from basicsr_ssl.archs import PrunableBasicVSR

# Constructor arguments by readable name; the flow network is larger than the rest.
VARIANTS: dict[str, dict[str, Any]] = {
    'bi-x4': {},
    'uni-x4': {'bidirectional': False},
    'bi-x2': {'scale': 2},
    'uni-x2-relu': {'bidirectional': False, 'scale': 2, 'act': 'relu'},
    'uni-x4-flow': {'bidirectional': False, 'flow': 'spynet_small', 'prune_flow': True},
}


def tiny_net(seed: int = 0, **args: Any) -> PrunableBasicVSR:
    """A network of 8 channels and 2 blocks (unless ``args`` say otherwise), without flow, all weights random.

    The weights keep features at a magnitude around 1, and no bias is 0: BasicSR's own start, near the identity and
    without biases, would hide mistakes in the residual blocks.
    """
    torch.manual_seed(seed)
    net = PrunableBasicVSR(**{'num_feat': 8, 'num_block': 2, 'tail_feat': 6, 'flow': 'none', **args})
    randomise_(net)
    return net


@torch.no_grad()
def randomise_(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if parameter.dim() == 4:
            parameter.normal_(0, (1 if 'spynet' in name else 0.8) * parameter[0].numel()**-0.5)
        elif name.endswith('bias'):
            parameter.normal_(0, 0.1)


@torch.no_grad()
def random_gates_(net: nn.Module, seed: int = 1) -> None:
    """Gates of either sign, none near 0 and none equal to another."""
    generator = torch.Generator().manual_seed(seed)
    for name, gate in net.named_parameters():
        if name.endswith(('gate', 'gate_in')):
            sign = torch.randint(0, 2, gate.shape, generator=generator) * 2 - 1
            gate.copy_((0.3 + 1.2 * torch.rand(gate.shape, generator=generator)) * sign)


def clip(frames: int = 3, height: int = 12, width: int = 16, batch: int = 1, seed: int = 2,
         dtype: torch.dtype = torch.float32) -> Tensor:
    """Random frames (batch, frames, 3, height, width) in [0, 1]."""
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
