"""A convolution whose output channels, and optionally input channels, are multiplied by trainable gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedConv2d(nn.Conv2d):
    """``gate * (weight * (gate_in * x) + bias)`` with one gate per unit.

    The gates are applied to the weights instead of the features: the same function and the same gradients, for the
    price of a product over a few thousand weights instead of over every pixel.

    Args:
        cin, cout: channels.
        kernel: side of the square kernel; the padding keeps the size.
        repeat: consecutive filters that share a gate, r^2 before a pixel shuffle by r.
        gate_in: whether the input channels have gates too.

    All gates start at 1: a fresh gated convolution is the plain one.
    """

    def __init__(self, cin: int, cout: int, kernel: int, repeat: int = 1, gate_in: bool = False) -> None:
        super().__init__(cin, cout, kernel, 1, kernel // 2)
        self.repeat = repeat
        self.gate = nn.Parameter(torch.ones(cout // repeat))
        self.gate_in = nn.Parameter(torch.ones(cin)) if gate_in else None

    def forward(self, input: Tensor) -> Tensor:
        """(b, cin, h, w) to (b, cout, h, w)."""
        gate = self.gate.repeat_interleave(self.repeat)
        weight = self.weight * gate[:, None, None, None]
        if self.gate_in is not None:
            weight = weight * self.gate_in[None, :, None, None]
        assert self.bias is not None
        return F.conv2d(input, weight, self.bias * gate, 1, self.padding)


def conv(cin: int, cout: int, kernel: int = 3, *, gated: bool = False, repeat: int = 1,
         gate_in: bool = False) -> nn.Conv2d:
    """A size-preserving convolution, with gates or plain."""
    return GatedConv2d(cin, cout, kernel, repeat, gate_in) if gated else nn.Conv2d(cin, cout, kernel, 1, kernel // 2)
