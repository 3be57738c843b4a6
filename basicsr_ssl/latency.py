"""Milliseconds per frame, measured on the clock."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Label = TypeVar('Label', bound=Hashable)


@torch.no_grad()
def measure_latency(nets: Mapping[str, nn.Module], lr_size: tuple[int, int], num_frame: int = 5,
                    device: str | torch.device = 'cpu', repeats: int = 5, warmup: int = 1,
                    clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Time networks in turn on the same random clip.

    Networks run as in inference: with ``stream``, if they have it.

    Args:
        nets: label to network; they are copied, not changed.
        lr_size: LR frame, (h, w).
        num_frame: frames of the clip.
        device: where to run.
        repeats: timed runs of each network.
        warmup: runs of each network before those, not timed.
        clock: gives seconds.

    Returns:
        Label to milliseconds per frame, the median over the repeats.

    Raises:
        ValueError: there are no frames or no repeats.
    """
    if num_frame < 1 or repeats < 1:
        raise ValueError(f'num_frame and repeats must be at least 1, got {num_frame} and {repeats}')
    clip = random_clip(lr_size, num_frame, device)
    copies = {label: copy.deepcopy(net).to(device).eval() for label, net in nets.items()}
    seconds = time_in_turn({label: lambda net=net: run_clip(net, clip) for label, net in copies.items()}, repeats,
                           warmup, clip.device, clock)
    return {label: 1000 * statistics.median(values) / num_frame for label, values in seconds.items()}


def random_clip(lr_size: tuple[int, int], num_frame: int, device: str | torch.device) -> Tensor:
    """A clip (1, n, 3, h, w), always the same."""
    return torch.rand(1, num_frame, 3, *lr_size, generator=torch.Generator().manual_seed(0)).to(device)


def run_clip(net: Any, clip: Tensor) -> None:
    """Run a network on a clip (1, n, 3, h, w) as in inference, and drop the frames."""
    if hasattr(net, 'stream'):
        deque(net.stream(clip.unbind(1)), maxlen=0)
    else:
        net(clip)


def time_in_turn(runs: Mapping[Label, Callable[[], object]], repeats: int, warmup: int,
                 device: str | torch.device = 'cpu', clock: Callable[[], float] = time.perf_counter
                 ) -> dict[Label, list[float]]:
    """Seconds of each run, ``repeats`` of them; run in turn, so that what else slows the machine slows all of them."""
    seconds: dict[Label, list[float]] = {label: [] for label in runs}
    for repeat in range(-warmup, repeats):
        for label, run in runs.items():
            _wait(device)
            start = clock()
            run()
            _wait(device)
            if repeat >= 0:
                seconds[label].append(clock() - start)
    return seconds


def least_ms(runs: Mapping[Label, Callable[[], object]], device: torch.device, repeats: int = 5) -> dict[Label, float]:
    """Milliseconds of each run: the least of some, since whatever disturbs adds to them."""
    return {label: 1000 * min(seconds)
            for label, seconds in time_in_turn(runs, repeats, 1, device, work_clock(device)).items()}


def work_clock(device: torch.device) -> Callable[[], float]:
    """The clock that others on a busy machine disturb least: of one CPU thread, the seconds that it works."""
    return time.thread_time if device.type == 'cpu' and torch.get_num_threads() == 1 else time.perf_counter


@contextmanager
def num_threads(number: int | None) -> Iterator[None]:
    """Let torch use this many threads of the CPU within; None: as many as it does."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: str | torch.device) -> None:
    """Until the device has done its queued work: CUDA calls return before that."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)
