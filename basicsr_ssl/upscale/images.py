"""Images and folders of images."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from basicsr_ssl.data.frames import EXTENSIONS, list_images
from basicsr_ssl.files import Unfinished, cannot_save
from basicsr_ssl.upscale.colour import Coding, Planes
from basicsr_ssl.upscale.media import Picture

_JPEG = {'quality': 95, 'subsampling': 0}
#: What to write formats with that are not lossless.
LOSSY: dict[str, dict[str, Any]] = {'.jpg': _JPEG, '.jpeg': _JPEG, '.webp': {'quality': 95}}


def is_image(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() in EXTENSIONS


class ImageSource:
    """An image, or the images of a folder in the order of their numbers.

    Args:
        path: of either.
        start: images of the folder that are left out.
        most: images that are read at most.

    Raises:
        ValueError: the folder has no images, or none from ``start`` on.
    """

    def __init__(self, path: Path, start: int = 0, most: int | None = None) -> None:
        files = [path / name for name in list_images(path)] if path.is_dir() else [path]
        if not files:
            raise ValueError(f'{path} has no images ({", ".join(EXTENSIONS)}); name the folder in which they are')
        if start >= len(files):
            raise ValueError(f'{path} has {len(files)} images: --start {start} leaves none, they are counted from 0')
        self._files = list(enumerate(files))[start:][:most]
        self.count: int | None = len(self._files)

    def pictures(self) -> Iterator[Picture]:
        for number, file in self._files:
            pixels, tags = read(file)
            yield Picture((pixels,), Coding(), number, file.name, time=number, duration=1, tags=tags)


def read(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """An image as (3, h, w) uint8 RGB, upright, without its transparency; and its colour profile and EXIF.

    Raises:
        ValueError: it is missing, truncated, no image, or one that would not come out as it went in.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in 'IF':
                raise ValueError('it has more than 8 bits per channel; convert it to 8 bit')
            upright = ImageOps.exif_transpose(image)
            exif = upright.getexif()
            tags = {key: value for key, value in (('icc_profile', image.info.get('icc_profile')),
                                                  ('exif', exif.tobytes() if exif else None)) if value}
            pixels = np.array(upright.convert('RGB'))
    except Image.DecompressionBombError as error:
        raise ValueError(f'{path} is too large: {error}') from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f'cannot read the image {path}: {error}') from error
    return torch.from_numpy(pixels).permute(2, 0, 1), tags


def write(pixels: Tensor, path: Path, name: str, tags: dict[str, Any]) -> None:
    """Write (3, h, w) uint8 RGB to a file, in the format that the suffix of ``name`` says."""
    suffix = Path(name).suffix.lower()
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.save(path, Image.registered_extensions()[suffix], **LOSSY.get(suffix, {}), **tags)


class ImageSink:
    """Writes images as RGB: into a folder, under the names of those that they are made of and frames of a video under
    their number; or a single one.

    Args:
        place: the folder, or the file to write to, whatever its name.
        name: of the file, which decides its format; empty for a folder.
        lossless: write PNG into the folder, whatever the images were.
    """

    coding = Coding()
    notes: tuple[str, ...] = ()

    def __init__(self, place: Path, name: str = '', lossless: bool = False) -> None:
        self._place, self._name, self._lossless = place, name, lossless

    def write(self, planes: Planes, source: Picture) -> None:
        name = self._name or source.name or f'{source.number:08d}.png'
        if self._lossless and not self._name:
            name = str(Path(name).with_suffix('.png'))
        try:
            write(upright(planes[0], source.orientation), self._place if self._name else self._place / name, name,
                  source.tags)
        except OSError as error:
            raise cannot_save(name, error) from error

    def close(self, cut: bool) -> None:
        pass

    def abandon(self) -> None:
        pass


@contextlib.contextmanager
def unfinished_folder(path: Path) -> Iterator[Unfinished]:
    """``files.unfinished`` for a folder: one beside ``path``, which in the end is renamed, or its files are moved into
    the folder that is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Unfinished(tempfile.mkdtemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent), path)
    os.chmod(folder.name, 0o777 & ~_umask())
    try:
        yield folder
        if folder.target is not None and folder.target.is_dir():
            for name in os.listdir(folder.name):
                os.replace(os.path.join(folder.name, name), folder.target / name)
        elif folder.target is not None:
            os.rename(folder.name, folder.target)
    finally:
        shutil.rmtree(folder.name, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def upright(pixels: Tensor, orientation: tuple[int, ...]) -> Tensor:
    """An image (3, h, w) turned and flipped, by quarter turns, as a video's display matrix says."""
    if not orientation:
        return pixels
    a, b, c, d = (round(orientation[i] / (1 << 16)) for i in (0, 1, 3, 4))
    # (x, y) is shown at (a*x + c*y, b*x + d*y)
    if b and c:
        pixels, a, d = pixels.transpose(1, 2), c, b
    return pixels.flip([dim for dim, sign in ((2, a), (1, d)) if sign < 0])
