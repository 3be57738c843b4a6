"""Files of safetensors, read from one open file: the header first, and tensors only when they are asked for.

The library opens files by name and reads all of a tensor, however many bytes a sparse file of a few kilobytes claims.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

import torch

from basicsr_ssl.checkpoints.formats import file_size
from basicsr_ssl.checkpoints.stored import MOST_SIDES, StoredFile, StoredTensor

LARGEST_HEADER = 1 << 25  # far above any network's, and what its provenance may say
_DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
           'F8_E4M3': torch.float8_e4m3fn, 'F8_E5M2': torch.float8_e5m2, 'I64': torch.int64, 'I32': torch.int32,
           'I16': torch.int16, 'I8': torch.int8, 'U8': torch.uint8, 'BOOL': torch.bool}


def opened(path: str, stream: BinaryIO) -> tuple[dict[str, str], StoredFile]:
    """The metadata of an open file, and its tensors.

    Raises:
        ValueError: it is truncated, or corrupted; the message says which.
    """
    try:
        return _opened(path, stream)
    except _Damage as damage:
        raise ValueError(f'{path} is {damage}. Copy or download it again') from damage


class _Damage(Exception):
    """What is wrong with the file."""


def _opened(path: str, stream: BinaryIO) -> tuple[dict[str, str], StoredFile]:
    size = file_size(stream)
    length = int.from_bytes(stream.read(8), 'little')
    begin = 8 + length
    if begin > size:
        raise _Damage(f'truncated: a safetensors file of {size:,} bytes whose header alone takes {length:,}')
    if length > LARGEST_HEADER:
        raise _Damage(f'corrupted: a safetensors file whose header alone takes {length:,} bytes, at most '
                      f'{LARGEST_HEADER:,} are read')
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_once)
        metadata = header.pop('__metadata__', {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError
        places = {name: _place(name, **entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damage('corrupted: a safetensors file with a damaged header') from error
    end = 0  # tensors follow one another without gaps, in whatever order they are named
    for start, stop, _ in sorted(places.values(), key=lambda place: place[:2]):
        if start != end:
            raise _Damage('corrupted: a safetensors file whose header contradicts its contents')
        end = stop
    if begin + end > size:
        raise _Damage(f'truncated: {begin + end:,} bytes by its header, {size:,} in fact')
    if begin + end < size:
        raise _Damage('corrupted: a safetensors file whose header contradicts its contents')

    def read(name: str, count: int) -> bytes:
        stream.seek(begin + places[name][0])
        return stream.read(count)

    return metadata, StoredFile(path, {name: tensor for name, (_, _, tensor) in places.items()}, size, read)


def _place(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[int, int, StoredTensor]:
    """First byte and end of a tensor among the data, and the tensor."""
    start, stop = data_offsets
    if len(shape) > MOST_SIDES or not all(type(n) is int and 0 <= n < 1 << 48 for n in (start, stop, *shape)):
        raise ValueError
    count = math.prod(shape)
    if stop - start != count * _DTYPES[dtype].itemsize:
        raise ValueError
    strides = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
    return start, stop, StoredTensor(name, _DTYPES[dtype], count, 0, tuple(shape), strides)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError
    return found
