"""Tensors as records of where they lie in a file: read only when asked for, and checked against the bytes there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl.terminal import shortened

# bounds far above any network's
MOST_SIDES = 16  # of a tensor's shape
MOST_TENSORS = 10_000
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: a view of a storage of ``count`` elements, with ``offset`` and ``strides`` in elements."""

    storage: str
    dtype: torch.dtype
    count: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class StoredFile:
    """An open network file.

    Attributes:
        content: what was saved. Of ``torch.save``, as ``read_pickle`` gives it; of safetensors, a ``StoredTensor`` by
            name.
        size: of the file, in bytes.
        read_storage: bytes of a storage, from its key and its size in bytes.
    """

    path: str
    content: Any
    size: int
    read_storage: Callable[[str, int], bytes]

    def tensors(self, state: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors themselves, contiguous, on the CPU.

        Raises:
            ValueError: a tensor reaches beyond its storage, a storage is not in the file as described, or all together
                would be larger than the file.
        """
        if len(state) > MOST_TENSORS:
            raise ValueError(f'{self.path} holds {len(state):,} tensors, which no network does')
        claimed = sum(math.prod(view.shape) * view.dtype.itemsize for view in state.values())
        if claimed > self.size:
            raise ValueError(f'{self.path} is corrupted: its tensors would take {claimed:,} bytes, the file has '
                             f'{self.size:,}')
        if claimed > MOST_BYTES:  # a sparse file costs its maker nothing
            raise ValueError(f'{self.path} holds {claimed:,} bytes of tensors, which no network does')
        buffers: dict[str, bytearray] = {}
        result = {}
        for name, view in state.items():
            last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides))
            if 0 in view.shape or last >= view.count:
                raise ValueError(f'{self.path} is corrupted: {shortened(name)} is empty or reaches beyond its storage')
            if view.storage not in buffers:
                # bytearray, since torch shares the memory and wants to be able to write
                buffers[view.storage] = bytearray(self.read_storage(view.storage, view.count * view.dtype.itemsize))
            if len(buffers[view.storage]) != view.count * view.dtype.itemsize:
                raise ValueError(f'{self.path} is corrupted: {shortened(name)} describes its storage unlike other '
                                 'tensors')
            flat = torch.frombuffer(buffers[view.storage], dtype=view.dtype)
            result[name] = flat.as_strided(view.shape, view.strides, view.offset).contiguous()
        return result
