"""What goes in and comes out: pictures one after the other, from wherever and to wherever."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from basicsr_ssl.upscale.colour import Coding, Planes


class BrokenInputError(ValueError):
    """The input breaks off; what was read before it is good."""


class Picture(NamedTuple):
    """A picture, and what belongs to it.

    Attributes:
        planes: its samples.
        coding: what they mean.
        number: in the input, counted from 0.
        name: of its file; empty for a frame of a video.
        time, duration: in units of the video; of images, in pictures.
        orientation: display matrix of a video, row by row in fixed point, as FFmpeg has it; empty if there is none.
        tags: what an image file says beside its samples, as Pillow takes it for writing.
    """

    planes: Planes
    coding: Coding
    number: int
    name: str = ''
    time: int = 0
    duration: int = 0
    orientation: tuple[int, ...] = ()
    tags: dict[str, Any] = {}


class Source(Protocol):
    """What is upscaled.

    Attributes:
        count: pictures that there seem to be, for the time left; None if nothing says it.
    """

    count: int | None

    def pictures(self) -> Iterator[Picture]:
        """All pictures in order. Raises BrokenInputError where it breaks off."""
        ...


class Sink(Protocol):
    """What is written.

    Attributes:
        coding: of the planes that it takes.
        notes: what of the input could not be kept, a sentence each.
    """

    coding: Coding

    @property
    def notes(self) -> Sequence[str]:
        ...

    def write(self, planes: Planes, source: Picture) -> None:
        """Append a picture, made of ``source``."""
        ...

    def close(self, cut: bool) -> None:
        """Write what is still to be written; ``cut``: nothing that comes after the last picture."""
        ...

    def abandon(self) -> None:
        """Let go of the file, whatever is in it."""
        ...


@dataclass(frozen=True)
class Encoding:
    """How a video is to be encoded.

    Attributes:
        codec: an encoder of FFmpeg, such as libx264, libx265, libvpx-vp9, libsvtav1, ffv1; None: by the suffix.
        crf: constant quality, on the encoder's own scale; None: high.
        pix_fmt: a pixel format of FFmpeg, such as yuv420p10le; None: that of the input, as near as the encoder has it.
        lossless: decoding gives the very samples that were encoded.
        rate: frames per second of what is made of images.
    """

    codec: str | None = None
    crf: float | None = None
    pix_fmt: str | None = None
    lossless: bool = False
    rate: Fraction = Fraction(25)


def partial_name(path: Path) -> Path:
    """Where a part of what was to stand at ``path`` goes: ``film.partial.mp4``, if taken ``film.partial-2.mp4``."""
    number, name = 1, path
    while name == path or os.path.lexists(name):
        name = path.with_name(f'{path.stem}.partial{f"-{number}" if number > 1 else ""}{path.suffix}')
        number += 1
    return name
