"""The loss that a small network is held to a larger one's output with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

TAPS = (1, 4, 6, 4, 1)  # Burt and Adelson's binomial, a Gaussian of deviation 1


@LOSS_REGISTRY.register()
class MultiLaplacianLoss(nn.Module):
    """Distance between Laplacian pyramids, of the images and of their high frequencies (CDISM, arXiv 2401.00523)::

        L = loss_weight * (Lap(a, b) + Lap(a - G * a, b - G * b)),     Lap(a, b) = sum_i 2^i * mean |P_i(a) - P_i(b)|

    G is a 5x5 Gaussian. P_0 is the finest level of the pyramid of Burt and Adelson (1983): every level but the last is
    what the next coarser image, enlarged, lacks of its own; the last is the coarsest image itself.

    The paper gives neither G's deviation nor the treatment of borders and of the last level. Ours: G is the binomial
    (1, 4, 6, 4, 1) / 16 in either direction, that of the pyramid too; images are mirrored at their borders; and the
    coarsest image counts, so that only equal images have a distance of 0.

    Args:
        loss_weight: factor of the whole term.
        levels: of the pyramid.

    Raises:
        ValueError: ``levels`` is below 1.
    """

    def __init__(self, loss_weight: float = 1.0, levels: int = 5) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f'levels must be at least 1, got {levels}')
        self.loss_weight, self.levels = loss_weight, levels

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            student, teacher: images (b, c, h, w) or clips (b, n, c, h, w).

        Raises:
            ValueError: a side is too short for so many levels.
        """
        least = 2**(self.levels - 1) + 1
        if min(student.shape[-2:]) < least:
            raise ValueError(f'a Laplacian pyramid of {self.levels} levels needs images of at least {least} pixels a '
                             f'side, got {student.shape[-2]}x{student.shape[-1]}')
        with torch.autocast(student.device.type, enabled=False):  # differences of near equals, which 16 bit do not show
            difference = (student - teacher).flatten(0, -4)  # the pyramid is linear in its image
            value = self._distance(difference) + self._distance(difference - blur(difference))
        return self.loss_weight * value

    def _distance(self, difference: Tensor) -> Tensor:
        return torch.stack([2**i * level.abs().mean()
                            for i, level in enumerate(laplacian_pyramid(difference, self.levels))]).sum()


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """From fine to coarse: (b, c, h, w), (b, c, h/2, w/2), ..., odd sides rounded up."""
    pyramid = []
    for _ in range(levels - 1):
        smaller = blur(x)[..., ::2, ::2]
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = smaller
        pyramid.append(x - 4 * blur(spread))
        x = smaller
    return [*pyramid, x]


def blur(x: Tensor) -> Tensor:
    """``x`` (b, c, h, w) under the 5x5 Gaussian, mirrored at its borders, whose pixels are not repeated."""
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device) / sum(TAPS)
    channels = x.shape[1]
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), 'reflect'), taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(F.pad(x, (0, 0, 2, 2), 'reflect'), taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
