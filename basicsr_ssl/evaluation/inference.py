"""From the LR frames of a clip to its HR frames, one by one and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Segment(NamedTuple):
    """Frames ``start`` to ``stop`` that a network sees at once; those from ``first`` to ``last`` are its result."""
    start: int
    stop: int
    first: int
    last: int


def segments(frames: int, length: int | None, overlap: int = 0) -> list[Segment]:
    """Cut a clip into segments of equal length that overlap.

    Args:
        frames: of the clip.
        length: of a segment; None, or as many as the clip has, leaves the clip whole.
        overlap: frames that neighbouring segments share, 0 <= overlap < length; the last two may share more, so that
            the last one has its full length. Each segment gives its result up to the middle of what it shares.
    """
    if length is None or length >= frames:
        return [Segment(0, frames, 0, frames)]
    starts = [*range(0, frames - length, length - overlap), frames - length]
    cuts = [0, *((before + length + start) // 2 for before, start in pairwise(starts)), frames]
    return [Segment(start, start + length, first, last) for start, first, last in zip(starts, cuts, cuts[1:])]


@torch.no_grad()
def super_resolve(net: nn.Module, lq: Tensor, flip_seq: bool = False, segment: int | None = None, overlap: int = 0,
                  keep_states: Literal['device', 'host'] = 'device') -> Iterator[Tensor]:
    """Super-resolve one clip, frame by frame.

    Args:
        net: the network. If it has ``stream`` (see ``PrunableBasicVSR.stream``), no more of the clip is in memory than
            that needs; otherwise it runs the clip, or the segment, as a whole.
        lq: frames (n, 3, h, w) in [0, 1], on the network's device.
        flip_seq: append the reversed clip and average both halves of the output (the Vimeo90K protocol). All HR frames
            are then in memory, as the first one needs the last output.
        segment: run the clip in segments of this many frames, see ``segments``; None runs it whole. It bounds the
            memory of any network, and changes the result near the cuts.
        overlap: frames that neighbouring segments share.
        keep_states: where hidden states wait, on the device or in host memory.

    Yields:
        Frames (3, s*h, s*w), in order, not clamped.
    """
    for start, stop, first, last in segments(len(lq), segment, overlap):
        yield from islice(_run(net, lq[start:stop], flip_seq, keep_states), first - start, last - start)


def _run(net: Any, lq: Tensor, flip_seq: bool, keep_states: Literal['device', 'host']) -> Iterator[Tensor]:
    """Frames of one clip that the network sees as a whole."""
    if flip_seq:
        frames = list(_run(net, torch.cat((lq, lq.flip(0))), False, keep_states))
        yield from (0.5 * (one + other) for one, other in zip(frames[:len(lq)], frames[:len(lq) - 1:-1]))
    elif hasattr(net, 'stream'):
        # map and not a loop, whose variable would keep one frame alive while the next one is made
        yield from map(itemgetter(0), net.stream(lq[None], keep_states))
    else:
        yield from net(lq[None])[0]


def as_clip(frames: Iterable[Tensor]) -> Tensor:
    """Frames (3, h, w) uint8 as a clip (n, 3, h, w) float32 in [0, 1].

    On the CPU: there 1/255 is not a factor but a divisor, and the numbers are those of BasicSR's datasets.
    """
    return torch.stack(list(frames)).contiguous().float().div_(255)


def as_image(frame: Tensor) -> np.ndarray:
    """A frame (3, h, w), RGB, uint8 or floating point in [0, 1], as BasicSR's metrics take it: (h, w, 3) uint8 BGR.

    Clamps and rounds (halves to even) as BasicSR's ``tensor2img``, but on the frame's device, so that a quarter of the
    bytes has to leave a GPU.
    """
    if frame.is_floating_point():
        frame = frame.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return frame.permute(1, 2, 0).flip(2).contiguous().cpu().numpy()
