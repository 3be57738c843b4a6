"""Residual block with the Residual Sparsity Connection (RSC)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from basicsr_ssl.nn.gated import conv


class ResidualBlock(nn.Module):
    """``x + conv2(relu(conv1(x)))``, where ``conv1`` may read and ``conv2`` may write only some of the channels.

    The skip connection keeps all channels (SSL, section 3.2): the block gathers the channels in ``inputs``, runs two
    narrow convolutions and adds their result onto the channels in ``outputs``. With ``inputs`` and ``outputs`` None
    it is BasicSR's ``ResidualBlockNoBN``, with the same parameter names.

    Args:
        channels: channels of the skip connection.
        width: channels between the two convolutions.
        inputs: channels that ``conv1`` reads, ascending; None for all.
        outputs: channels that ``conv2`` adds to, ascending; None for all.
        gates: kind of the gates on the input and output of ``conv1`` and the output of ``conv2``; empty: none.
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def __init__(self, channels: int, width: int, inputs: Sequence[int] | None = None,
                 outputs: Sequence[int] | None = None, gates: str = '') -> None:
        super().__init__()
        self.conv1 = conv(channels if inputs is None else len(inputs), width, gates=gates, gate_in=True)
        self.conv2 = conv(width, channels if outputs is None else len(outputs), gates=gates)
        self.relu = nn.ReLU(inplace=True)
        # not in the state dict: which channels are kept is part of the spec, not of the weights
        self.register_buffer('inputs', _as_index(inputs), persistent=False)
        self.register_buffer('outputs', _as_index(outputs), persistent=False)
        self.input_run, self.output_run = _run(inputs), _run(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) to the same shape. Without gradients ``x`` itself is updated and returned."""
        if self.input_run is not None:  # consecutive channels are a view, not a copy
            read = x[:, self.input_run]
        else:
            read = x if self.inputs is None else x.index_select(1, self.inputs)
        change = self.conv2(self.relu(self.conv1(read)))
        if torch.is_grad_enabled():
            return x + change if self.outputs is None else x.index_add(1, self.outputs, change.to(x.dtype))
        # In inference nothing else needs the old features, and a second full-width tensor per block costs more time
        # than a narrow block's arithmetic saves.
        if self.output_run is not None:
            x[:, self.output_run] += change
            return x
        return x.add_(change) if self.outputs is None else x.index_add_(1, self.outputs, change.to(x.dtype))


def _as_index(units: Sequence[int] | None) -> Tensor | None:
    return None if units is None else torch.as_tensor(list(units), dtype=torch.long)


def _run(units: Sequence[int] | None) -> slice | None:
    """The units as a slice, if they are consecutive."""
    if not units or list(units) != list(range(units[0], units[0] + len(units))):
        return None
    return slice(units[0], units[0] + len(units))
