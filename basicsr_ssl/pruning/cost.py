"""What a network costs: parameters and multiply-accumulates, counted from a table of its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

#: LR frame, (h, w), for which the literature counts MACs.
LR_SIZE = (180, 320)


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of a network, by the name of its module; every parameter of a network belongs to one.

    The kinds below say what it holds and what it computes; here stands where and how often.

    Attributes:
        name: the module's name.
        area: positions (pixels, tokens) of its output per pixel of the LR frame, e.g. 16 after x4 upsampling.
        times: how often it runs per frame.
        multiple: the LR frame is first resized or padded so that both sides are multiples of this.
        flow: whether it belongs to the flow network, which pruning leaves alone unless asked, and reports list apart.
    """

    name: str
    area: float = field(default=1, kw_only=True)
    times: int = field(default=1, kw_only=True)
    multiple: int = field(default=1, kw_only=True)
    flow: bool = field(default=False, kw_only=True)

    @abstractmethod
    def params(self) -> int:
        """Weights and biases."""

    @abstractmethod
    def work(self) -> int:
        """Multiply-accumulates per position of the output; additions of a bias are not counted."""

    def macs(self, lr_size: tuple[int, int]) -> float:
        """Multiply-accumulates per frame of ``lr_size`` (h, w)."""
        h, w = (-(-side // self.multiple) * self.multiple for side in lr_size)
        return self.work() * self.times * self.area * h * w


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution of stride 1 and 'same' padding.

    Attributes:
        cin, cout: channels.
        kernel: side of the square kernel.
        groups: blocks of channels that do not see each other; ``cin`` of a depthwise convolution.
        bias: whether it has one.
    """

    cin: int
    cout: int
    kernel: int
    groups: int = 1
    bias: bool = True

    def params(self) -> int:
        return self.work() + self.bias * self.cout

    def work(self) -> int:
        return self.cin * self.cout * self.kernel**2 // self.groups


@dataclass(frozen=True)
class Linear(Layer):
    """A linear layer, applied to every position: ``cin`` to ``cout`` features."""

    cin: int
    cout: int
    bias: bool = True

    def params(self) -> int:
        return self.work() + self.bias * self.cout

    def work(self) -> int:
        return self.cin * self.cout


@dataclass(frozen=True)
class Attention(Layer):
    """The two products of attention: queries with keys, and their weights with values. Projections are ``Linear``.

    Attributes:
        queries, values: features of queries (as many as of keys) and of values, all heads together.
        tokens: positions that each one attends to, e.g. 64 in windows of 8x8.
        weights: parameters of its own, such as a table of position biases.
    """

    queries: int
    values: int
    tokens: int
    weights: int = 0

    def params(self) -> int:
        return self.weights

    def work(self) -> int:
        return self.tokens * (self.queries + self.values)


@dataclass(frozen=True)
class Norm(Layer):
    """A normalisation with a factor and a shift per channel. Its work is not counted: it is linear in the channels."""

    channels: int

    def params(self) -> int:
        return 2 * self.channels

    def work(self) -> int:
        return 0


def params(layers: Iterable[Layer], flow: bool = True) -> int:
    """Parameters of all layers, with or without the flow network."""
    return sum(layer.params() for layer in layers if flow or not layer.flow)


def macs(layers: Iterable[Layer], lr_size: tuple[int, int], flow: bool = True) -> int:
    """Multiply-accumulates per frame of ``lr_size`` (h, w), with or without the flow network."""
    return round(sum(layer.macs(lr_size) for layer in layers if flow or not layer.flow))
