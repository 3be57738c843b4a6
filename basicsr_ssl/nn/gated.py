"""Layers whose output units, and optionally input units, have gates, or whose weights have a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl.pruning.gates import mask_name, strength, unit_norms


class _Gated(nn.Module):
    """``g * (weight * (g_in * x) + bias)``, a factor per unit, made from its gate; or ``(mask * weight) * x + bias``.

    What a gate is, is told in ``pruning/gates.py``. The factors are applied to the weights instead of the features: the
    same function and the same gradients, for the price of a product over a few thousand weights instead of over every
    pixel. A fresh gated layer is the plain one.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_mask: Tensor

    def add_gates_(self, gates: str, outputs: int, inputs: int) -> None:
        """Give the layer gates for so many units of its outputs and its inputs (0: none there), or a mask."""
        self.gates, self.gate, self.gate_in = gates, None, None
        if gates == 'mask':
            self.register_buffer(mask_name('weight'), torch.ones_like(self.weight, dtype=torch.bool))
            return
        if outputs:
            self.gate = nn.Parameter(torch.ones(outputs))
        if inputs:
            self.gate_in = nn.Parameter(torch.ones(inputs))
        self.init_gates_()

    @torch.no_grad()
    def init_gates_(self) -> None:
        """Set the gates such that the layer is the plain one; to be called again if its weights start anew."""
        if self.gates == 'weight_norm':
            for gate, dim in ((self.gate, 0), (self.gate_in, 1)):
                if gate is not None:
                    gate.copy_(unit_norms([self._units(gate, dim)]))

    def gated(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with gates or mask multiplied in."""
        weight, bias = self.weight, self.bias
        if self.gates == 'mask':
            return weight * self.weight_mask, bias
        if self.gate is not None:
            factor = self._factors(self.gate, 0)
            weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
            bias = None if bias is None else bias * factor
        if self.gate_in is not None:
            weight = weight * self._factors(self.gate_in, 1).view(-1, *[1] * (weight.dim() - 2))
        return weight, bias

    def _factors(self, gate: Tensor, dim: int) -> Tensor:
        """What multiplies every index of a dimension of the weight."""
        return strength(self.gates, gate, [self._units(gate, dim)]).repeat_interleave(
            self.weight.shape[dim] // len(gate))

    def _units(self, gate: Tensor, dim: int) -> Tensor:
        """The weights of every unit along a dimension, (units, n)."""
        return self.weight.transpose(0, dim).reshape(len(gate), -1)


class GatedConv2d(_Gated, nn.Conv2d):
    """A size-preserving convolution with gates or a mask.

    Args:
        cin, cout: channels.
        kernel: side of the square kernel; the padding keeps the size.
        gates: ``'scale'``, ``'weight_norm'`` or ``'mask'``.
        repeat: consecutive filters that share a gate, r^2 before a pixel shuffle by r.
        gate_in: whether the input channels have gates too.
    """

    def __init__(self, cin: int, cout: int, kernel: int, gates: str = 'scale', repeat: int = 1,
                 gate_in: bool = False) -> None:
        super().__init__(cin, cout, kernel, 1, kernel // 2)
        self.add_gates_(gates, cout // repeat, cin if gate_in else 0)

    def forward(self, input: Tensor) -> Tensor:
        """(b, cin, h, w) to (b, cout, h, w)."""
        weight, bias = self.gated()
        return F.conv2d(input, weight, bias, 1, self.padding)


class GatedLinear(_Gated, nn.Linear):
    """A linear layer with gates of its output or its input units, or a mask.

    Args:
        cin, cout: features.
        gates: ``'scale'``, ``'weight_norm'`` or ``'mask'``.
        outputs, inputs: number of gates of either side; 0: none. Consecutive features share one, as those of a head do.
    """

    def __init__(self, cin: int, cout: int, gates: str = 'scale', outputs: int = 0, inputs: int = 0) -> None:
        super().__init__(cin, cout)
        self.add_gates_(gates, outputs, inputs)

    def forward(self, input: Tensor) -> Tensor:
        """(..., cin) to (..., cout)."""
        weight, bias = self.gated()
        return F.linear(input, weight, bias)


def conv(cin: int, cout: int, kernel: int = 3, *, gates: str = '', repeat: int = 1, gate_in: bool = False,
         units: bool = True) -> nn.Conv2d:
    """A size-preserving convolution, with gates or a mask or plain.

    Args:
        cin, cout, kernel, gates, repeat, gate_in: see ``GatedConv2d``; ``gates`` may be empty.
        units: whether its filters are units of a group; only masks are for all convolutions alike.
    """
    if not gates or (gates != 'mask' and not units):
        return nn.Conv2d(cin, cout, kernel, 1, kernel // 2)
    return GatedConv2d(cin, cout, kernel, gates, repeat, gate_in)


def linear(cin: int, cout: int, *, gates: str = '', outputs: int = 0, inputs: int = 0) -> nn.Linear:
    """A linear layer, with gates or a mask or plain; as ``conv``.

    Args:
        cin, cout, gates, outputs, inputs: see ``GatedLinear``; ``gates`` may be empty.
    """
    if not gates or (gates != 'mask' and not outputs + inputs):
        return nn.Linear(cin, cout)
    return GatedLinear(cin, cout, gates, outputs, inputs)
