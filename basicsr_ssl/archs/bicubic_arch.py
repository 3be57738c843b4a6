"""MATLAB's bicubic upsampling as a network without parameters: the yardstick of every table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_ssl.nn.resize import bicubic_resize
from basicsr_ssl.pruning.cost import Layer
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.spec import Spec


@ARCH_REGISTRY.register()
class BicubicUpsampler(nn.Module):
    """Enlarges every frame by ``scale`` with MATLAB's ``imresize``.

    Args:
        scale: factor, a positive integer.
    """

    task = 'clip'
    flow_network = None
    pruning_args = run_args = ()
    groups: list[Group] = []
    cost_table: list[Layer] = []

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.spec = Spec('BicubicUpsampler', {'scale': scale})

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, 3, h, w) in [0, 1] to (b, n, 3, scale*h, scale*w), clamped to [0, 1]."""
        return bicubic_resize(x, self.scale).clamp(0, 1)

    def stream(self, frames: Iterable[Tensor], keep: str = 'device') -> Iterator[Tensor]:
        """The frames of ``forward`` one by one, (b, 3, scale*h, scale*w); there are no states to ``keep``."""
        return (self(frame[:, None])[:, 0] for frame in (frames.unbind(1) if isinstance(frames, Tensor) else frames))
