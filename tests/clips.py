"""Generated benchmarks: PNG files of any size and kind, written chunk by chunk, so that a whole set takes no time."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from basicsr_ssl.data.catalog import ClipSet

_CHANNELS = {0: 1, 2: 3, 6: 4}


def png(size: tuple[int, int], number: int = 0, depth: int = 8, colour: int = 2) -> bytes:
    """A black PNG file of (h, w) pixels; another ``number`` gives other bytes with the same pixels.

    Args:
        depth: bits per channel.
        colour: PNG's number of the colour type: 0 grey, 2 RGB, 6 RGB with alpha.
    """
    header = struct.pack('>IIBBBBB', size[1], size[0], depth, colour, 0, 0, 0)
    chunks = {b'IHDR': header, b'tEXt': b'number\0%05d' % number, b'IDAT': _pixels(size, depth, colour), b'IEND': b''}
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks.items())


@lru_cache(maxsize=8)
def _pixels(size: tuple[int, int], depth: int, colour: int) -> bytes:
    row = 1 + size[1] * _CHANNELS[colour] * depth // 8  # each row begins with the number of its filter
    return zlib.compress(bytes(row * size[0]))


def write_set(clip_set: ClipSet, folder: Path, names: list[str] | None = None, scale: int = 1,
              pattern: str = '{:08d}.png') -> dict[str, list[Path]]:
    """All frames of ``clip_set``, ``scale`` times smaller, below ``folder``; ``names`` where the set fixes none."""
    clips = {}
    for index, clip in enumerate(clip_set.clips or names or []):
        count, first = clip_set.frame_count(clip) or 0, clip_set.first_frame or 0
        (folder / clip).mkdir(parents=True)
        clips[clip] = [folder / clip / pattern.format(first + i) for i in range(count)]
        for number, path in enumerate(clips[clip]):
            path.write_bytes(png(clip_set.size(clip, scale), 100 * index + number))
    return clips


def write_noise(folder: Path, names: list[str], size: tuple[int, int], seed: int = 0) -> None:
    """Frames of random (h, w) RGB pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
