"""Image files and folders of frames: finding, sorting and reading them, with messages that say what to mend."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


class DatasetError(ValueError):
    """A dataset cannot be used as its options say. The message names the file, folder or key and how to mend it."""


class LazyFrames:
    """Frames of a clip, (3, h, w) uint8 RGB each, made when they are asked for, by any thread.

    Indexed and iterated over like a tensor (n, 3, h, w), which serves as well where a clip is small.

    Args:
        count: number of frames n.
        make: gives frame ``i``, 0 <= i < n.
        keep: keep each frame after it has been made.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor], keep: bool = False) -> None:
        self._count, self._make, self._keep = count, make, keep
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f'there are {self._count} frames, got index {index}')
        frame = self._kept.get(index)
        if frame is None:
            frame = self._make(index)
            if self._keep:
                self._kept[index] = frame
        return frame


def existing_folder(path: str | os.PathLike, key: str) -> Path:
    """``path`` as a Path, ``~`` expanded.

    Args:
        key: the option that names the folder, for the message.

    Raises:
        DatasetError: it does not exist or is no folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        state = 'is not a folder' if folder.exists() else 'does not exist'
        raise DatasetError(f'{key}: {folder} {state} (seen from {Path.cwd()}). Correct the option, or put the data '
                           'there as datasets/README.md describes')
    return folder


def list_images(folder: Path) -> tuple[str, ...]:
    """File names of the images directly inside ``folder``, in the order of their numbers: im2 before im10."""
    names = (entry.name for entry in os.scandir(folder) if entry.is_file())
    return _in_order(name for name in names if _is_image(name))


def find_clips(root: Path) -> dict[str, tuple[str, ...]]:
    """Every folder at or below ``root`` that holds images: its path relative to ``root`` (with ``/``), its images."""
    clips = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith('.')]
        if images := _in_order(name for name in names if _is_image(name)):
            clips[Path(folder).relative_to(root).as_posix()] = images
    return {name: clips[name] for name in sorted(clips, key=_natural)}


def read_image(path: Path) -> np.ndarray:
    """An 8-bit image file as (h, w, 3) uint8 RGB; grey becomes three equal channels, transparency is dropped.

    Pillow and not OpenCV: OpenCV silently fills the missing rest of a truncated JPEG with grey.

    Raises:
        DatasetError: missing, truncated, not an image, or more than 8 bits deep.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] not in 'IF':
                return np.array(image.convert('RGB'))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    raise DatasetError(f'{path} has more than 8 bits per channel, which no benchmark here uses: convert it to 8 bit')


def read_frame(path: Path) -> Tensor:
    """``read_image`` as a tensor (3, h, w) uint8, a view of pixels that lie together."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


def image_size(path: Path) -> tuple[int, int]:
    """(h, w) of an image file, from its header alone.

    Raises:
        DatasetError: missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def shortened(names: Sequence[str], limit: int = 8) -> str:
    """The names for a message: the first ``limit``, and how many more there are."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f'cannot read the image {path}: {error}. Copy or download it again, or take it out of the '
                        'dataset')


def _is_image(name: str) -> bool:
    return not name.startswith('.') and name.lower().endswith(EXTENSIONS)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in re.split(r'(\d+)', name)]


def _in_order(names) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (_natural(name), name)))
