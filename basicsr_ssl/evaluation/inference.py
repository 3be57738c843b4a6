"""From the LR frames of a clip to its HR frames, one by one and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice, starmap, tee
from operator import itemgetter
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar('T')

TRANSFORMS = 8  # of the square: with and without transposition and either flip


def task_of(net: nn.Module) -> str:
    """What a network does: ``'clip'``, also where it does not say so, ``'image'`` or ``'flow'``."""
    return getattr(net, 'task', 'clip')


def segments(frames: Iterable[T], length: int, overlap: int = 0) -> Iterator[tuple[list[T], int, int]]:
    """Cut a clip of unknown length into segments of equal length that overlap; twice ``length`` is held at most.

    Args:
        frames: of the clip. One that has no more than ``length`` is left whole.
        length: of a segment.
        overlap: frames that neighbouring segments share, 0 <= overlap < length; the last two may share more, so that
            the last one has its full length. Each segment gives its result up to the middle of what it shares.

    Yields:
        The frames of a segment, which a network sees at once, and those that are its result: from which, and up to
        which, counted within the segment.
    """
    coming = iter(frames)
    seen, first = list(islice(coming, length)), 0
    while new := list(islice(coming, length - overlap)):
        last = (length + len(new)) // 2
        yield seen, first, last
        seen, first = (seen + new)[len(new):], last - len(new)
    yield seen, first, len(seen)


def transformed(number: int, frame: Tensor) -> Tensor:
    """A frame (..., h, w) flipped and turned in one of the ``TRANSFORMS`` ways; number 0 leaves it as it is."""
    frame = frame.transpose(-2, -1) if number & 4 else frame
    return frame.flip([dim for bit, dim in ((1, -1), (2, -2)) if number & bit])


def restored(number: int, frame: Tensor) -> Tensor:
    """Inverse of ``transformed``."""
    frame = frame.flip([dim for bit, dim in ((1, -1), (2, -2)) if number & bit])
    return frame.transpose(-2, -1) if number & 4 else frame


@torch.no_grad()
def super_resolve(net: Any, frames: Iterable[Tensor], flip_seq: bool = False, segment: int | None = None,
                  overlap: int = 0, keep_states: Literal['device', 'host'] = 'device',
                  self_ensemble: bool = False) -> Iterator[Tensor]:
    """Super-resolve one clip, frame by frame.

    Args:
        net: the network. One for images runs frame by frame, whatever the other arguments say. One that has ``stream``
            (see ``PrunableBasicVSR.stream``) takes frames as it needs them, and no more of the clip is in memory than
            that. Any other runs the clip, or the segment, as a whole.
        frames: (3, h, w) in [0, 1], on the network's device; a tensor (n, 3, h, w) serves as well.
        flip_seq: append the reversed clip and average both halves of the output (the Vimeo90K protocol). The whole
            clip, or segment, and all its HR frames are then in memory, as the first one needs the last output.
        segment: run the clip in segments of this many frames, see ``segments``; None runs it whole. It bounds the
            memory of any network, and changes the result near the cuts.
        overlap: frames that neighbouring segments share.
        keep_states: where hidden states wait, on the device or in host memory.
        self_ensemble: run the clip in its ``TRANSFORMS`` side by side, and average the outputs, turned back (Lim et
            al., CVPR workshops 2017, section 3.4). Each of them has its own hidden states.

    Yields:
        Frames (3, s*h, s*w), in order, not clamped.
    """
    if self_ensemble:
        outputs = [super_resolve(net, map(partial(transformed, number), copy), flip_seq, segment, overlap, keep_states)
                   for number, copy in enumerate(tee(frames, TRANSFORMS))]
        for versions in zip(*outputs):
            yield torch.stack([restored(number, frame) for number, frame in enumerate(versions)]).mean(0)
    elif task_of(net) == 'image':
        images = map(itemgetter(None), frames)
        yield from map(itemgetter(0), net.stream(images) if hasattr(net, 'stream') else map(net, images))
    elif segment is None:
        yield from _run(net, frames, flip_seq, keep_states)
    else:
        def run(seen: list[Tensor], first: int, last: int) -> Iterator[Tensor]:
            return islice(_run(net, seen, flip_seq, keep_states), first, last)

        # not a loop, whose variable would keep one segment alive while the next one is read
        yield from chain.from_iterable(starmap(run, segments(frames, segment, overlap)))


def _run(net: Any, frames: Iterable[Tensor], flip_seq: bool, keep_states: Literal['device', 'host']
         ) -> Iterator[Tensor]:
    """Frames of one clip that the network sees as a whole."""
    if flip_seq:
        clip = list(frames)
        output = list(_run(net, [*clip, *reversed(clip)], False, keep_states))
        yield from (0.5 * (one + other) for one, other in zip(output[:len(clip)], output[:len(clip) - 1:-1]))
    elif hasattr(net, 'stream'):
        # map and not a loop, whose variable would keep one frame alive while the next one is made
        yield from map(itemgetter(0), net.stream(map(itemgetter(None), frames), keep_states))
    else:
        yield from net(torch.stack(list(frames))[None])[0]


def as_frame(pixels: Tensor) -> Tensor:
    """A frame (3, h, w) uint8 as float32 in [0, 1].

    On the CPU: there 1/255 is not a factor but a divisor, and the numbers are those of BasicSR's datasets.
    """
    return pixels.contiguous().float().div_(255)


def as_image(frame: Tensor) -> np.ndarray:
    """A frame (3, h, w), RGB, uint8 or floating point in [0, 1], as BasicSR's metrics take it: (h, w, 3) uint8 BGR.

    Clamps and rounds (halves to even) as BasicSR's ``tensor2img``, but on the frame's device, so that a quarter of the
    bytes has to leave a GPU.
    """
    if frame.is_floating_point():
        frame = frame.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return frame.permute(1, 2, 0).flip(2).contiguous().cpu().numpy()
