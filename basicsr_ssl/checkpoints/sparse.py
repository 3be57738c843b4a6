"""Masked weights as a file holds them for their size: a bit for every weight, and the values of those that are left.

``<layer>.weight`` and ``<layer>.weight_mask`` of n weights, k of them left, become ``<layer>.weight_bits``, ceil(n / 8)
bytes with the first weight in the lowest bit of the first byte, and ``<layer>.weight_values``, k values in the order of
the weights; shapes stand in the metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr_ssl.checkpoints.stored import MOST_BYTES, MOST_SIDES
from basicsr_ssl.pruning.gates import mask_name

Shapes = dict[str, list[int]]


def to_sparse(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Shapes]:
    """A state dict with masks, encoded, and the shapes of what was. Weights that the mask removes are not kept.

    A layer that is removed altogether stays as it is, since safetensors of no values are refused.
    """
    encoded, shapes = dict(state), {}
    for name in state:
        mask = state.get(mask_name(name))
        if mask is None or not bool(mask.any()):
            continue
        shapes[name] = list(mask.shape)
        bits = np.packbits(mask.flatten().numpy(), bitorder='little')
        encoded |= {f'{name}_bits': torch.from_numpy(bits), f'{name}_values': encoded.pop(name)[mask]}
        del encoded[mask_name(name)]
    return encoded, shapes


def from_sparse(encoded: Mapping[str, Tensor], shapes: Any) -> dict[str, Tensor]:
    """Inverse of ``to_sparse``; weights that the mask removes are 0.

    Raises:
        ValueError: the tensors are not what the shapes say, or all together would be larger than any network.
    """
    if not isinstance(shapes, Mapping) or not all(map(_is_shape, shapes.values())):
        raise ValueError('the shapes of its sparse weights are damaged')
    # a few kilobytes may claim to be gigabytes
    if sum(math.prod(shape) for shape in shapes.values()) * torch.float64.itemsize > MOST_BYTES:
        raise ValueError('its sparse weights would take more memory than any network')
    state = dict(encoded)
    for name, shape in shapes.items():
        bits, values, count = state.pop(f'{name}_bits', None), state.pop(f'{name}_values', None), math.prod(shape)
        if bits is None or values is None or bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
            raise ValueError(f'its sparse weight {name} is not as its shape says')
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder='little')).bool()
        if values.dim() != 1 or int(flat.sum()) != len(values) or bool(flat[count:].any()):
            raise ValueError(f'its sparse weight {name} has not as many values as bits')
        mask = flat[:count].view(shape)
        state |= {name: torch.zeros(shape, dtype=values.dtype).masked_scatter_(mask, values), mask_name(name): mask}
    return state


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_SIDES and all(
        type(side) is int and 0 < side < 1 << 32 for side in value)
