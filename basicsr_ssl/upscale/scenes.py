"""Where one scene ends and the next begins: recurrent networks must not carry their states across."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

# Measured on ten clips of 1,365 frames: within them the difference is 0.2 at most and rises by 0.06 at most; between
# the last frame of one and the first of another it is 0.53 at least, also with a tenth of the light.
CUT, CERTAIN = 0.2, 0.4
_THUMBNAIL = 18, 32
_NOISE = 0.01  # keeps frames of nearly one colour from differing by their noise
_BEFORE = 2  # differences that the last one is compared with; a frame that is shown twice makes one of them 0


def scenes(frames: Iterable[Tensor], detect: bool = True) -> Iterator[Iterator[Tensor]]:
    """Split a clip into scenes, reading no more than one frame ahead.

    A scene ends where the difference of two frames exceeds those of the two pairs before by ``CUT``, which it does at a
    cut, and not in fast but steady motion; or where it is ``CERTAIN``. The difference is that of thumbnails of luma,
    averaged over the pixels, relative to their contrast (mean distance from the mean), so that dark scenes count as
    bright ones. A new size is always a new scene.

    Args:
        frames: (3, h, w) in [0, 1], RGB.
        detect: False splits only where the size changes.

    Yields:
        The frames of each scene; they are to be taken before the next scene, as with ``itertools.groupby``.
    """
    return (map(itemgetter(1), scene) for _, scene in groupby(_numbered(frames, detect), itemgetter(0)))


def _numbered(frames: Iterable[Tensor], detect: bool) -> Iterator[tuple[int, Tensor]]:
    """Every frame with the number of its scene."""
    number, size, thumbnail = 0, None, None
    before: deque[float] = deque(maxlen=_BEFORE)
    for frame in frames:
        seen = _thumbnail(frame) if detect else None
        if size is not None and frame.shape != size:
            number, thumbnail = number + 1, None
            before.clear()
        if seen is not None and thumbnail is not None:
            change = _difference(thumbnail, seen)
            number += change > CERTAIN or change - max(before, default=0.0) > CUT
            before.append(change)
        size, thumbnail = frame.shape, seen
        yield number, frame
        del frame  # before the next one is made


def _thumbnail(frame: Tensor) -> Tensor:
    luma = torch.tensordot(frame.new_tensor((0.299, 0.587, 0.114)), frame, 1)
    return F.adaptive_avg_pool2d(luma[None], _THUMBNAIL)[0]


def _difference(one: Tensor, other: Tensor) -> float:
    contrast = 0.5 * sum((image - image.mean()).abs().mean() for image in (one, other))
    return float((one - other).abs().mean() / (contrast + _NOISE))
