"""MATLAB's bicubic resizing, as 1-D weight matrices applied to rows and columns."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from basicsr.utils.matlab_functions import calculate_weights_indices
from torch import Tensor


def bicubic_resize(img: Tensor, scale_factor: float) -> Tensor:
    """MATLAB's ``imresize`` (bicubic, antialiased when shrinking, symmetric borders), not rounded and not clamped.

    Gives the numbers of ``basicsr.utils.matlab_functions.imresize`` for any leading dimensions and on any device,
    and is differentiable.

    Args:
        img: (..., h, w), floating point. Half precision is computed in float32.
        scale_factor: output size over input size, e.g. 4 or 0.25.

    Returns:
        (..., ceil(h * scale_factor), ceil(w * scale_factor)), of the type of ``img``.
    """
    dtype = computing_type(img)
    rows, columns = (bicubic_matrix(n, float(scale_factor), dtype, img.device) for n in img.shape[-2:])
    return apply_separably(img, rows, columns)


def computing_type(img: Tensor) -> torch.dtype:
    """The type to compute in: at least float32. Raises TypeError for integers."""
    if not img.is_floating_point():
        raise TypeError(f'expected a floating point image, got {img.dtype}: convert it first, e.g. img.float() / 255')
    return torch.promote_types(img.dtype, torch.float32)


def apply_separably(img: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., h, w) to (..., H, W) with ``rows`` (H, h) and ``columns`` (W, w)."""
    with torch.autocast(img.device.type, enabled=False):  # under mixed precision matmul would compute in 16 bit
        return (rows @ img.to(rows.dtype) @ columns.T).to(img.dtype)


@lru_cache(maxsize=64)
def bicubic_matrix(length: int, scale_factor: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(ceil(length * scale_factor), length): row i holds the weights of the inputs that make output i."""
    out_length = math.ceil(length * scale_factor)
    # a matrix first made in inference mode must still serve training later
    with torch.inference_mode(False), torch.no_grad():
        weights, indices, pad_start, _ = calculate_weights_indices(length, out_length, scale_factor, 'cubic', 4, True)
        # positions left and right of the image are mirrored into it, the border pixel included, as often as need be
        positions = (indices.long() - pad_start) % (2 * length)
        positions = torch.minimum(positions, 2 * length - 1 - positions)
        matrix = torch.zeros(out_length, length, dtype=torch.float64)
        return matrix.scatter_add_(1, positions, weights.double()).to(device, dtype)
