"""What a network costs: parameters and multiply-accumulates, counted from a table of its convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: LR frame, (h, w), for which the literature counts MACs.
LR_SIZE = (180, 320)


@dataclass(frozen=True)
class Conv:
    """One convolution of a network (stride 1, 'same' padding, with bias).

    Attributes:
        name: the module's name.
        cin, cout: channels.
        kernel: side of the square kernel.
        area: output pixels per pixel of the LR frame, e.g. 16 after x4 upsampling.
        times: how often it runs per frame.
        multiple: the LR frame is first resized so that both sides are multiples of this.
        flow: whether it belongs to the flow network, which pruning leaves alone and reports list apart.
    """

    name: str
    cin: int
    cout: int
    kernel: int
    area: float = 1
    times: int = 1
    multiple: int = 1
    flow: bool = False

    def params(self) -> int:
        """Weights and biases."""
        return (self.cin * self.kernel**2 + 1) * self.cout

    def macs(self, lr_size: tuple[int, int]) -> float:
        """Multiply-accumulates per frame of ``lr_size`` (h, w); the bias is not counted."""
        h, w = (-(-side // self.multiple) * self.multiple for side in lr_size)
        return self.cin * self.cout * self.kernel**2 * self.times * self.area * h * w


def params(convs: Iterable[Conv], flow: bool = True) -> int:
    """Parameters of all convolutions, with or without the flow network."""
    return sum(conv.params() for conv in convs if flow or not conv.flow)


def macs(convs: Iterable[Conv], lr_size: tuple[int, int], flow: bool = True) -> int:
    """Multiply-accumulates per frame of ``lr_size`` (h, w), with or without the flow network."""
    return round(sum(conv.macs(lr_size) for conv in convs if flow or not conv.flow))
