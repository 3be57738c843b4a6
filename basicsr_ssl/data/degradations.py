"""The two degradations of the benchmarks, BI and BD, as 1-D weight matrices applied to rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from basicsr_ssl.nn.resize import apply_separably, bicubic_matrix, computing_type

Degradation = Literal['BI', 'BD']

BD_SIGMA, BD_KERNEL = 1.6, 13

#: How LR frames are made, for those who read results: kernel, border, and where the sampled pixels lie.
DESCRIPTIONS: dict[Degradation, dict[str, str | int]] = {
    'BI': {'kernel': 'MATLAB bicubic, antialiased', 'border': 'symmetric', 'phase': 'centred'},
    'BD': {'kernel': f'Gaussian, sigma {BD_SIGMA}, {BD_KERNEL}x{BD_KERNEL}', 'border': 'replicate',
           'phase': 0},  # the first pixel of GT
}


def blur_downsample(img: Tensor, scale: int, sigma: float = BD_SIGMA, kernel: int = BD_KERNEL) -> Tensor:
    """Gaussian blur with replicated borders, then every ``scale``-th pixel from the first one on: BD.

    Papers differ in the borders and in the phase; these are those of DUF's published LR frames.

    Args:
        img: (..., h, w), floating point. Half precision is computed in float32.
        scale: step of the subsampling.
        sigma: standard deviation of the Gaussian, in pixels of ``img``.
        kernel: width of the kernel in pixels, odd; its weights sum to 1.

    Returns:
        (..., ceil(h / scale), ceil(w / scale)), of the type of ``img``.
    """
    dtype = computing_type(img)
    rows, columns = (_blur_matrix(n, scale, sigma, kernel, dtype, img.device) for n in img.shape[-2:])
    return apply_separably(img, rows, columns)


def degrade(clip: Tensor, kind: Degradation, scale: int, window: Sequence[int] | None = None,
            rounds_twice: bool = False) -> Tensor:
    """LR frames of 8-bit GT frames, rounded to 8 bit as LR files on disk are.

    Computed in float64 on the grey levels 0..255, which makes BI at x2 and x4 exact: the weights are binary fractions.
    Halves round up, as in MATLAB's conversion to uint8. So the result does not depend on the machine, and equals
    published LR frames bit for bit.

    Args:
        clip: (..., h, w), uint8, or floating point in [0, 1] (then first rounded to 8 bit, as GT files are).
        kind: ``'BI'`` (MATLAB bicubic) or ``'BD'`` (Gaussian blur and subsampling).
        scale: h and w must be multiples of it.
        window: (top, left, height, width) in LR pixels, to compute only this part of the LR frame: the same numbers as
            cutting it out of the whole one, borders included, at the cost of the part alone.
        rounds_twice: round after the rows, too, and again after the columns, as MATLAB's ``imresize`` does with 8-bit
            images: the LR images of the image benchmarks, bit for bit.

    Returns:
        (..., h / scale, w / scale) or the window's size; the type of ``clip``, floating point in multiples of 1/255.

    Raises:
        ValueError: unknown ``kind``, or a size that is no multiple of ``scale``.
    """
    height, width = clip.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f'frames of {height} x {width} cannot be degraded by {scale}: crop them to '
                         f'{height - height % scale} x {width - width % scale} first')
    if kind == 'BI':
        rows, columns = (bicubic_matrix(n, 1 / scale, torch.float64, clip.device) for n in (height, width))
    elif kind == 'BD':
        rows, columns = (_blur_matrix(n, scale, BD_SIGMA, BD_KERNEL, torch.float64, clip.device)
                         for n in (height, width))
    else:
        raise ValueError(f'unknown degradation {kind!r}: choose BI (MATLAB bicubic) or BD (Gaussian blur, subsampling)')
    if window is not None:
        top, left, h, w = window
        rows, used_rows = _trimmed(rows[top:top + h])
        columns, used_columns = _trimmed(columns[left:left + w])
        clip = clip[..., used_rows, used_columns]
    levels = clip.double() if clip.dtype == torch.uint8 else (clip.double() * 255).round()
    levels = rows @ levels
    levels = _rounded((_rounded(levels) if rounds_twice else levels) @ columns.T)
    return levels.to(torch.uint8) if clip.dtype == torch.uint8 else (levels / 255).to(clip.dtype)


def _rounded(levels: Tensor) -> Tensor:
    return levels.add(0.5).floor().clamp(0, 255)


def _trimmed(matrix: Tensor) -> tuple[Tensor, slice]:
    """The matrix without its outer all-zero columns, and the input positions that are left."""
    used = matrix.any(dim=0).nonzero()
    span = slice(int(used[0]), int(used[-1]) + 1)
    return matrix[:, span], span


@lru_cache(maxsize=64)
def _blur_matrix(length: int, scale: int, sigma: float, kernel: int, dtype: torch.dtype,
                 device: torch.device) -> Tensor:
    """(ceil(length / scale), length): row i holds the Gaussian around input i * scale."""
    if kernel % 2 == 0:
        raise ValueError(f'kernel must be odd to have a middle, got {kernel}')
    with torch.inference_mode(False), torch.no_grad():
        offsets = torch.arange(kernel) - kernel // 2
        weights = torch.exp(-offsets.double()**2 / (2 * sigma**2))
        weights /= weights.sum()
        centres = torch.arange(0, length, scale)
        positions = (centres[:, None] + offsets).clamp(0, length - 1)
        matrix = torch.zeros(len(centres), length, dtype=torch.float64)
        return matrix.scatter_add_(1, positions, weights.expand(len(centres), -1)).to(device, dtype)
