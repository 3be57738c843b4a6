"""Metrics over whole clips, shared out among the processes, and measured beside inference by threads."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from basicsr.metrics import calculate_metric
from basicsr.utils import imwrite
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn
from tqdm import tqdm

from basicsr_ssl.evaluation.inference import as_frame, as_image, super_resolve, task_of
from basicsr_ssl.evaluation.result import Figures
from basicsr_ssl.runtime import Run

T = TypeVar('T')

# Frames under way for each thread, of those read and of those measured: enough that no thread waits for the next frame,
# and few 8-bit images in memory.
FRAMES_PER_THREAD = 2


def measure_clips(net: nn.Module, dataset: Any, dataset_name: str, val: Mapping[str, Any], run: Run,
                  tb_logger: Any = None, current_iter: int = 0) -> Figures:
    """Run a network over a test set and average its metrics: frames to clips, clips to the set.

    Every clip is run by one process, and frames are compared as 8-bit images by BasicSR's own functions, so the figures
    depend neither on the number of processes nor on that of threads. While the network runs, threads on all cores of
    the process measure and save the frames before, and read LR frames ahead. In memory are at a time: what
    ``super_resolve`` holds, ``FRAMES_PER_THREAD`` LR frames and as many 8-bit HR frames a thread, and a GT frame and
    the metrics' working memory a thread. So a unidirectional network tests a clip of any length in bounded memory.

    Args:
        net: in eval mode, on the device of ``run``.
        dataset: test items as in ``data.clips_dataset``; images are clips of one frame.
        dataset_name: for folders, logs and TensorBoard.
        val: the section of the options; with ``save_img``, frames are written to
            ``visualization/<dataset>/<clip>/<frame>_<suffix or name>.png``.
        run: processes, name and folders.
        tb_logger: TensorBoard writer for one sample frame, or None.
        current_iter: step for TensorBoard.

    Returns:
        The figures, on all processes.

    Raises:
        DatasetError: a frame cannot be read.
        OSError: a frame cannot be saved.
        ValueError: two clips of one name; output and GT of different sizes; a metric that is not defined.
        FloatingPointError: the network's output is not finite.
    """
    rank, world_size, device = run.processes.rank, run.processes.world_size, run.processes.device
    metrics = {name: {key: value for key, value in options.items() if key != 'better'}
               for name, options in (val.get('metrics') or {}).items()}
    suffix = val.get('suffix') or os.path.basename(run.name)
    segment = None if task_of(net) == 'image' else val.get('segment')
    measured: dict[str, list[dict[str, float]]] = {}
    lengths: dict[str, int] = {}
    watch = Stopwatch(device)
    bar = tqdm(total=len(dataset), unit='clip', desc=f'Test {dataset_name}', leave=False,
               disable=rank != 0 or not val['pbar'] or not sys.stderr.isatty())
    with bar, _Threads() as threads:
        for index, item, lq in _clips_ahead(dataset, range(rank, len(dataset), world_size), threads):
            folder, names, gt, n = item['folder'], item['names'], item['gt'], len(item['lq'])
            if folder in measured:
                raise ValueError(f'{dataset_name}: two clips are named {folder}; rename one, or leave it out')
            lengths[folder], scores = n, measured.setdefault(folder, [])
            given = watch.paused(as_frame(pixels).to(device) for pixels in lq)
            output = super_resolve(net, given, val['flip_seq'], segment, val.get('overlap', 0),
                                   val.get('keep_states', 'device'), val.get('self_ensemble', False))
            for i, frame in enumerate(watch.running(output)):
                if i == n // 2 or not val['center_frame_only']:
                    where = f'{dataset_name}: frame {names[i]} of {folder}'
                    if not frame.isfinite().all():
                        raise FloatingPointError(f'{where}: the output of the network is not finite')
                    image = as_image(frame)
                    file = os.path.join(run.visualization, dataset_name, folder,
                                        f'{names[i]}_{suffix}.png') if val['save_img'] else None
                    threads.collect(scores, _measure, image, gt, i, metrics, file, where)
                    if tb_logger is not None and index == 0 and i == n // 2:
                        for label, shown in (('result', image), ('gt', as_image(gt[i]))):
                            tb_logger.add_image(f'{dataset_name}/{folder}/{label}', shown[..., ::-1].copy(),
                                                current_iter, dataformats='HWC')
            bar.update(world_size)
        threads.finish()
    return combine(Part(measured, lengths, watch.seconds), list(metrics), len(dataset), dataset_name,
                   {'frames': segment, 'overlap': val.get('overlap', 0)} if segment else None)


class _Threads:
    """A thread for each core of this process, and a bound on the results that wait.

    Leaving the context cancels what has not begun, so that an error or Ctrl-C ends within the time of one frame.
    """

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        self.count = max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))  # torchrun's processes share them
        self._pool = ThreadPoolExecutor(self.count)
        self.submit = self._pool.submit
        self._waiting: deque[tuple[list[Any], Future[Any]]] = deque()

    def collect(self, results: list[Any], function: Any, *args: Any) -> None:
        """Append ``function(*args)`` to ``results`` some time until ``finish``, in the order of the calls.

        Waits while ``FRAMES_PER_THREAD`` calls a thread are under way; raises what an earlier one raised.
        """
        while len(self._waiting) >= FRAMES_PER_THREAD * self.count:
            self._take()
        self._waiting.append((results, self.submit(function, *args)))

    def finish(self) -> None:
        """Wait for all results."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        results, future = self._waiting.popleft()
        results.append(future.result())

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _clips_ahead(dataset: Any, indices: Sequence[int],
                 threads: _Threads) -> Iterator[tuple[int, dict[str, Any], Iterator[Tensor]]]:
    """Index, item and LR frames of ``indices``; all frames of one clip are to be taken before the next clip.

    Threads read ``FRAMES_PER_THREAD`` frames each ahead, beyond the end of a clip too.
    """
    begun: deque[tuple[int, dict[str, Any]]] = deque()
    reading: deque[Future[Tensor]] = deque()

    def begin() -> Iterator[None]:
        for index in indices:
            item = dataset[index]
            begun.append((index, item))
            for i in range(len(item['lq'])):
                reading.append(threads.submit(item['lq'].__getitem__, i))
                yield

    steps = begin()

    def read_ahead() -> None:
        for _ in islice(steps, FRAMES_PER_THREAD * threads.count - len(reading)):
            pass

    def frames(count: int) -> Iterator[Tensor]:
        for _ in range(count):
            read_ahead()
            yield reading.popleft().result()

    for _ in indices:
        read_ahead()
        index, item = begun.popleft()
        yield index, item, frames(len(item['lq']))


class Stopwatch:
    """Seconds that a network takes: those of its output's iterator, without those of the iterator it draws from."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    def running(self, items: Iterable[T]) -> Iterator[T]:
        return self._timed(iter(items), 1)

    def paused(self, items: Iterable[T]) -> Iterator[T]:
        return self._timed(iter(items), -1)

    def _timed(self, items: Iterator[T], sign: int) -> Iterator[T]:
        while True:
            start = _now(self._device)
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds += sign * (_now(self._device) - start)
            yield item


def _now(device: torch.device) -> float:
    """Seconds, after the device has done its queued work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _measure(image: np.ndarray, gt: Sequence[Tensor], number: int, metrics: Mapping[str, dict[str, Any]],
             file: str | None, where: str) -> dict[str, float]:
    """Metrics of an output frame, (h, w, 3) uint8 BGR, against frame ``number`` of GT; saves it to ``file``."""
    if file is not None:
        try:
            imwrite(image, file)
        except OSError as error:
            raise OSError(f'cannot save {file}: {error}. Free some space, correct the permissions, or set val: '
                          'save_img: false') from error
    if not metrics:
        return {}
    truth = as_image(gt[number])
    if image.shape != truth.shape:
        raise ValueError(f'{where}: the network makes frames of {image.shape[0]} x {image.shape[1]}, but GT has '
                         f'{truth.shape[0]} x {truth.shape[1]}. Check scale, and which network is tested')
    return {name: _metric(name, image, truth, options, where) for name, options in metrics.items()}


def _metric(name: str, image: np.ndarray, truth: np.ndarray, options: dict[str, Any], where: str) -> float:
    size = f'{image.shape[0]} x {image.shape[1]}'
    border = options.get('crop_border', 0)
    if 2 * border >= min(image.shape[:2]):
        raise ValueError(f'{where}: val: metrics: {name}: crop_border {border} leaves nothing of {size} pixels; '
                         'lower it')
    value = float(calculate_metric({'img': image, 'img2': truth}, options))
    if math.isnan(value):
        raise ValueError(f'{where}: val: metrics: {name} is not defined for {size} pixels with crop_border {border}; '
                         'SSIM needs at least 11 x 11')
    return value


class Part(NamedTuple):
    """What one process measured: figures of the frames and number of frames, by clip, and seconds of inference."""
    scores: dict[str, list[dict[str, float]]]
    lengths: dict[str, int]
    seconds: float


def combine(own: Part, metrics: Sequence[str], count: int, dataset_name: str,
            segment: Mapping[str, int] | None = None) -> Figures:
    """The figures of a test set of ``count`` clips, on all processes, from what each of them measured.

    Args:
        own: of this process.
        metrics: their names.
        segment: length and overlap by which clips were cut, if they were longer.

    Raises:
        ValueError: clips of the same name.
    """
    parts = _gather(own)
    frames = {clip: values for part in parts for clip, values in part.scores.items()}
    lengths = {clip: n for part in parts for clip, n in part.lengths.items()}
    if len(frames) < count:
        raise ValueError(f'{dataset_name}: of {count} clips only {len(frames)} have names of their own; rename those '
                         'of the same name')
    clips = {clip: {'frames': len(frames[clip]),
                    **{name: sum(f[name] for f in frames[clip]) / len(frames[clip]) for name in metrics}}
             for clip in sorted(frames)}
    cut = {**segment} if segment and any(n > segment['frames'] for n in lengths.values()) else None
    return Figures({name: _mean([clip[name] for clip in clips.values()]) for name in metrics}, clips,
                   sum(part.seconds for part in parts) / sum(lengths.values()), cut,
                   {clip: {name: [f[name] for f in frames[clip]] for name in metrics} for clip in sorted(frames)})


def _gather(own: Part) -> list[Part]:
    if get_dist_info()[1] == 1:
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite values; infinite if none is.

    PSNR is infinite where the output equals GT, as it may on the black clips of Vimeo90K-T: one of them would make all
    others count for nothing.
    """
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else values[0]
