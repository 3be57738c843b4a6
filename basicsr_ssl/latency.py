"""Milliseconds per frame, measured on the clock."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def measure_latency(nets: Mapping[str, nn.Module], lr_size: tuple[int, int], num_frame: int = 5,
                    device: str | torch.device = 'cpu', repeats: int = 5, warmup: int = 1, channels_last: bool = False,
                    clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Time networks in turn on the same random clip, so that whatever else slows the machine slows all of them.

    Networks run as in inference: with ``stream``, if they have it.

    Args:
        nets: label to network; they are copied, not changed.
        lr_size: LR frame, (h, w).
        num_frame: frames of the clip.
        device: where to run.
        repeats: timed runs of each network.
        warmup: runs of each network before those, not timed.
        channels_last: whether weights and frames lie in memory channel by channel within each pixel.
        clock: gives seconds.

    Returns:
        Label to milliseconds per frame, the median over the repeats.

    Raises:
        ValueError: there are no frames or no repeats.
    """
    if num_frame < 1 or repeats < 1:
        raise ValueError(f'num_frame and repeats must be at least 1, got {num_frame} and {repeats}')
    device = torch.device(device)
    frames = torch.rand(num_frame, 3, *lr_size, generator=torch.Generator().manual_seed(0)).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    clip = frames.contiguous(memory_format=layout)[None]
    copies = {label: copy.deepcopy(net).to(device).to(memory_format=layout).eval()  # type: ignore[call-overload]
              for label, net in nets.items()}
    seconds: dict[str, list[float]] = {label: [] for label in nets}
    for repeat in range(-warmup, repeats):
        for label, net in copies.items():
            elapsed = _time(net, clip, clock)
            if repeat >= 0:
                seconds[label].append(elapsed)
    return {label: 1000 * statistics.median(values) / num_frame for label, values in seconds.items()}


def _time(net: Any, clip: Tensor, clock: Callable[[], float]) -> float:
    _wait(clip.device)
    start = clock()
    if hasattr(net, 'stream'):
        deque(net.stream(clip.unbind(1)), maxlen=0)
    else:
        net(clip)
    _wait(clip.device)
    return clock() - start


def _wait(device: torch.device) -> None:
    """Until the device has done its queued work: CUDA calls return before that."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
