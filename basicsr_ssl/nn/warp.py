"""Backward warping by optical flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flow_warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample ``x`` bilinearly at ``position + flow``; outside the frame it is zero.

    The same numbers as BasicSR's ``flow_warp``, except that the sampling positions are kept in at least float32:
    BasicSR casts them to the features' type, and bfloat16 cannot tell neighbouring pixels apart beyond 256.

    Args:
        x: features (b, c, h, w).
        flow: displacement in pixels, x then y (b, 2, h, w).

    Returns:
        Warped features (b, c, h, w), of the type of ``x``.
    """
    h, w = x.shape[-2:]
    dtype = torch.promote_types(flow.dtype, torch.float32)
    flow = flow.to(dtype)
    columns = torch.arange(w, device=x.device, dtype=dtype) + flow[:, 0]
    rows = torch.arange(h, device=x.device, dtype=dtype)[:, None] + flow[:, 1]
    grid = torch.stack((2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1), dim=-1)
    return F.grid_sample(x.to(dtype), grid, mode='bilinear', padding_mode='zeros', align_corners=True).to(x.dtype)
