"""A convolution whose output channels, and optionally input channels, have gates, or whose weights have a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl.pruning.gates import mask_name, strength, unit_norms


class GatedConv2d(nn.Conv2d):
    """``g * (weight * (g_in * x) + bias)``, a factor per unit, made from its gate; or ``(mask * weight) * x + bias``.

    What a gate is, is told in ``pruning/gates.py``. The factors are applied to the weights instead of the features: the
    same function and the same gradients, for the price of a product over a few thousand weights instead of over every
    pixel. A fresh gated convolution is the plain one.

    Args:
        cin, cout: channels.
        kernel: side of the square kernel; the padding keeps the size.
        gates: ``'scale'``, ``'weight_norm'`` or ``'mask'``.
        repeat: consecutive filters that share a gate, r^2 before a pixel shuffle by r.
        gate_in: whether the input channels have gates too.
    """

    weight_mask: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, gates: str = 'scale', repeat: int = 1,
                 gate_in: bool = False) -> None:
        super().__init__(cin, cout, kernel, 1, kernel // 2)
        self.gates, self.repeat, self.gate_in = gates, repeat, None
        if gates == 'mask':
            self.register_buffer(mask_name('weight'), torch.ones_like(self.weight, dtype=torch.bool))
            return
        self.gate = nn.Parameter(torch.ones(cout // repeat))
        if gate_in:
            self.gate_in = nn.Parameter(torch.ones(cin))
        self.init_gates_()

    @torch.no_grad()
    def init_gates_(self) -> None:
        """Set the gates such that the convolution is the plain one; to be called again if its weights start anew."""
        if self.gates == 'weight_norm':
            self.gate.copy_(unit_norms([self._filters()]))
            if self.gate_in is not None:
                self.gate_in.copy_(unit_norms([self._readers()]))

    def forward(self, input: Tensor) -> Tensor:
        """(b, cin, h, w) to (b, cout, h, w)."""
        if self.gates == 'mask':
            return F.conv2d(input, self.weight * self.weight_mask, self.bias, 1, self.padding)
        gate = strength(self.gates, self.gate, [self._filters()]).repeat_interleave(self.repeat)
        weight = self.weight * gate[:, None, None, None]
        if self.gate_in is not None:
            weight = weight * strength(self.gates, self.gate_in, [self._readers()])[None, :, None, None]
        assert self.bias is not None
        return F.conv2d(input, weight, self.bias * gate, 1, self.padding)

    def _filters(self) -> Tensor:
        """The weights of every output unit, (units, n)."""
        return self.weight.reshape(len(self.gate), -1)

    def _readers(self) -> Tensor:
        """The weights that read every input channel, (cin, n)."""
        return self.weight.transpose(0, 1).flatten(1)


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
