"""Residual connections that keep all channels around narrow layers: Residual Sparsity Connections (RSC)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from basicsr_ssl.nn.gated import conv


class Channels(nn.Module):
    """Some of the channels of a wider tensor.

    Args:
        units: which, ascending; None for all.
    """

    index: Tensor | None

    def __init__(self, units: Sequence[int] | None) -> None:
        super().__init__()
        # not in the state dict: which channels are kept is part of the spec, not of the weights
        self.register_buffer('index', None if units is None else torch.as_tensor(list(units), dtype=torch.long),
                             persistent=False)
        self.run = _run(units)

    def read(self, x: Tensor) -> Tensor:
        """These channels of ``x`` (b, c, h, w); a view of consecutive ones, a copy of others."""
        if self.run is not None:
            return x[:, self.run]
        return x if self.index is None else x.index_select(1, self.index)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """``x`` (b, c, h, w) with ``change`` (b, len(units), h, w) added onto these channels."""
        return x + change if self.index is None else x.index_add(1, self.index, change.to(x.dtype))

    def add_(self, x: Tensor, change: Tensor) -> Tensor:
        """The same in place, without gradients: ``x`` is overwritten and returned."""
        if self.run is not None:
            x[:, self.run] += change
            return x
        return x.add_(change) if self.index is None else x.index_add_(1, self.index, change.to(x.dtype))


class Residual(nn.Module, ABC):
    """Something that adds to some channels of its input: ``outputs.add(x, change(x))``.

    ``forward`` is a pure function. In inference nothing else needs the old features, and a second full-width tensor per
    block costs more time than a narrow block's arithmetic saves: there ``update_`` overwrites them.
    """

    outputs: Channels

    @abstractmethod
    def change(self, x: Tensor) -> Tensor:
        """What is added, (b, len(outputs), h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) to the same shape."""
        return self.outputs.add(x, self.change(x))

    def update_(self, x: Tensor) -> Tensor:
        """The same in place, without gradients: ``x`` is overwritten and returned."""
        return self.outputs.add_(x, self.change(x))


class ResidualBlock(Residual):
    """``x + scale * conv2(relu(conv1(x)))``, where ``conv1`` may read and ``conv2`` may write only some channels.

    The skip connection keeps all channels (SSL, section 3.2): the block gathers the channels in ``inputs``, runs two
    narrow convolutions and adds their result onto the channels in ``outputs``. With ``inputs`` and ``outputs`` None
    it is BasicSR's ``ResidualBlockNoBN``, with the same parameter names.

    Args:
        channels: channels of the skip connection.
        width: channels between the two convolutions.
        inputs: channels that ``conv1`` reads, ascending; None for all.
        outputs: channels that ``conv2`` adds to, ascending; None for all.
        gates: kind of the gates on the output of ``conv1`` and, as the next two say, on its input and the output of
            ``conv2``; empty: none. Masks are on both, whatever these say.
        gate_in, gate_out: which of these there are.
        scale: factor of what is added.
    """

    def __init__(self, channels: int, width: int, inputs: Sequence[int] | None = None,
                 outputs: Sequence[int] | None = None, gates: str = '', gate_in: bool = True, gate_out: bool = True,
                 scale: float = 1) -> None:
        super().__init__()
        self.conv1 = conv(channels if inputs is None else len(inputs), width, gates=gates, gate_in=gate_in)
        self.conv2 = conv(width, channels if outputs is None else len(outputs), gates=gates, units=gate_out)
        self.relu = nn.ReLU(inplace=True)
        self.inputs, self.outputs, self.scale = Channels(inputs), Channels(outputs), scale

    def change(self, x: Tensor) -> Tensor:
        change = self.conv2(self.relu(self.conv1(self.inputs.read(x))))
        return change if self.scale == 1 else self.scale * change


def update_(x: Tensor, residuals: Iterable[nn.Module]) -> Tensor:
    """Run residuals one after another in place: ``x`` is overwritten and returned."""
    for residual in residuals:
        assert isinstance(residual, Residual)
        x = residual.update_(x)
    return x


def _run(units: Sequence[int] | None) -> slice | None:
    """The units as a slice, if they are consecutive."""
    if not units or list(units) != list(range(units[0], units[0] + len(units))):
        return None
    return slice(units[0], units[0] + len(units))
