"""Photographs: those that scikit-image ships, by name, and those of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
from basicsr.utils import get_root_logger

from basicsr_ssl.data.frames import DatasetError, existing_folder, find_clips, list_images, read_image, shortened

_CACHE_BYTES = 512 << 20  # decoded photographs kept per process


class Photo(NamedTuple):
    """A photograph: its name in keys and results, and its file."""
    name: str
    path: Path


class Photographs:
    """The photographs that a dataset names; decoded when they are first asked for, and kept.

    Args:
        dataset_name: for the log.
        names: photographs that scikit-image ships.
        folder: of others, searched with its subfolders, or None.
        too_small: why a photograph cannot be used, or None; one that was asked for by name is an error then, those of
            the folder are left out, and the log says how many.
        size_key: the option that decides which are too small.

    Attributes:
        photos: those that can be used.

    Raises:
        DatasetError: no such photograph or folder, or none that can be used.
    """

    def __init__(self, dataset_name: str, names: Sequence[str], folder: str | None,
                 too_small: Callable[[Photo], str | None] = lambda photo: None, size_key: str = '') -> None:
        self._dataset_name, self._too_small, self._size_key = dataset_name, too_small, size_key
        self.photos = self._shipped(names) + ([] if folder is None else self._from_folder(folder))
        self._cache: dict[Path, np.ndarray] = {}
        self._cached_bytes = 0

    def pixels(self, photo: Photo) -> np.ndarray:
        """(h, w, 3) uint8 RGB."""
        if photo.path in self._cache:
            return self._cache[photo.path]
        pixels = read_image(photo.path)
        if self._cached_bytes + pixels.nbytes <= _CACHE_BYTES:
            self._cache[photo.path] = pixels
            self._cached_bytes += pixels.nbytes
        return pixels

    def _shipped(self, names: Sequence[str]) -> list[Photo]:
        folder = Path(skimage.__file__).parent / 'data'
        shipped = {Path(name).stem: folder / name for name in list_images(folder)}
        if missing := [name for name in names if name not in shipped]:
            raise DatasetError(f'photos: the installed scikit-image ships no {", ".join(missing)}; it has '
                               f'{", ".join(shipped)}')
        photos = [Photo(name, shipped[name]) for name in names]
        for photo in photos:
            if message := self._too_small(photo):
                raise DatasetError(f'photos: {message}. Take it out, or lower {self._size_key}')
        return photos

    def _from_folder(self, folder: str) -> list[Photo]:
        root = existing_folder(folder, 'dataroot_gt')
        photos = [Photo((Path(folder) / name).with_suffix('').as_posix(), root / folder / name)
                  for folder, names in find_clips(root).items() for name in names]
        if not photos:
            raise DatasetError(f'dataroot_gt: there is no image in {root}. Put photographs (PNG, JPEG) there')
        small = {photo: message for photo in photos if (message := self._too_small(photo))}
        if len(small) == len(photos):
            raise DatasetError(f'dataroot_gt: all {len(photos)} photographs in {root} are too small: '
                               f'{next(iter(small.values()))}. Lower {self._size_key}, or use larger photographs')
        if small:
            get_root_logger().info(f'{self._dataset_name}: {len(small)} of {len(photos)} photographs in {root} are '
                                   f'left out as too small: {shortened([photo.name for photo in small])}')
        return [photo for photo in photos if photo not in small]
