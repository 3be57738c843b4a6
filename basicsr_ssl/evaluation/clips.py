"""Metrics over whole clips, shared out among the processes, and measured beside inference by threads."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn
from tqdm import tqdm

from basicsr_ssl.evaluation.inference import as_clip, as_image, super_resolve

# What a result holds beside the means of the metrics.
OTHER_KEYS = ('clips', 'seconds_per_frame', 'segment')
# Frames under way for each thread: enough that no thread waits for the next frame, and few 8-bit images in memory.
FRAMES_PER_THREAD = 2


def test_sets(datasets: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Options of the sets that a network is tested on: the entries ``test*``, or, without any, ``val*``."""
    by_phase: dict[str, list[dict[str, Any]]] = {'test': [], 'val': [], 'train': []}
    for phase, options in datasets.items():
        by_phase[phase.split('_')[0]].append(options)
    return by_phase['test'] or by_phase['val']


def validate_clips(net: nn.Module, dataset: Any, dataset_name: str, opt: dict[str, Any], device: torch.device,
                   save_img: bool = False, tb_logger: Any = None, current_iter: int = 0) -> dict[str, Any]:
    """Run a network over a test set and average its metrics: frames to clips, clips to the set.

    Every clip is run by one process, and frames are compared as 8-bit images by BasicSR's own functions, so the figures
    depend neither on the number of processes nor on that of threads. While the network runs, threads on all cores of
    the process measure and save the frames before, and read the LR frames of the next clip. In memory are at a time:
    what ``super_resolve`` holds, the LR frames of two clips, ``FRAMES_PER_THREAD`` 8-bit HR frames a thread, and a GT
    frame and the metrics' working memory a thread.

    Args:
        net: in eval mode, on ``device``.
        dataset: test items as in ``data.clips_dataset``.
        dataset_name: for folders, logs and TensorBoard.
        opt: options of the run (``val``, ``path``, ``name``).
        device: where ``net`` is.
        save_img: write frames to ``visualization/<dataset>/<clip>/<frame>_<suffix or name>.png``.
        tb_logger: TensorBoard writer for one sample frame, or None.
        current_iter: step for TensorBoard.

    Returns:
        On all processes the mean of the clip means (of those that are finite) of every metric by its name, and

        - ``clips``: ``{clip: {'frames': frames measured, metric: mean of the frames, ...}}``;
        - ``seconds_per_frame``: of inference alone, per LR frame of the clips, the device's work being waited for;
          the mean over the frames of all processes;
        - ``segment``: None, or, if a clip was run in segments, ``{'frames': length, 'overlap': shared frames}``.

    Raises:
        DatasetError: a frame cannot be read.
        OSError: a frame cannot be saved.
        ValueError: two clips of one name; output and GT of different sizes; a metric that is not defined.
        FloatingPointError: the network's output is not finite.
    """
    rank, world_size = get_dist_info()
    val = opt['val']
    metrics = {name: {key: value for key, value in options.items() if key != 'better'}
               for name, options in (val.get('metrics') or {}).items()}
    suffix = val.get('suffix') or os.path.basename(opt['name'])
    measured: dict[str, list[dict[str, float]]] = {}
    lengths: dict[str, int] = {}
    seconds = 0.0
    bar = tqdm(total=len(dataset), unit='clip', desc=f'Test {dataset_name}', leave=False,
               disable=rank != 0 or not val['pbar'] or not sys.stderr.isatty())
    with bar, _Threads() as threads:
        for index, item, lq in _clips_ahead(dataset, range(rank, len(dataset), world_size), threads):
            folder, names, gt, n = item['folder'], item['names'], item['gt'], len(lq)
            if folder in measured:
                raise ValueError(f'{dataset_name}: two clips are named {folder}; rename one, or leave it out')
            lengths[folder], scores = n, measured.setdefault(folder, [])
            lq = lq.to(device)
            start = _now(device)
            for i, frame in enumerate(super_resolve(net, lq, val['flip_seq'], val.get('segment'), val.get('overlap', 0),
                                                    val.get('keep_states', 'device'))):
                seconds += _now(device) - start
                if i == n // 2 or not val['center_frame_only']:
                    where = f'{dataset_name}: frame {names[i]} of {folder}'
                    if not frame.isfinite().all():
                        raise FloatingPointError(f'{where}: the output of the network is not finite')
                    image = as_image(frame)
                    file = os.path.join(opt['path']['visualization'], dataset_name, folder,
                                        f'{names[i]}_{suffix}.png') if save_img else None
                    threads.collect(scores, _measure, image, gt, i, metrics, file, where)
                    if tb_logger is not None and index == 0 and i == n // 2:
                        for label, shown in (('result', image), ('gt', as_image(gt[i]))):
                            tb_logger.add_image(f'{dataset_name}/{folder}/{label}', shown[..., ::-1].copy(),
                                                current_iter, dataformats='HWC')
                start = _now(device)
            bar.update(world_size)
        threads.finish()
    return _combine([(measured, lengths, seconds)] if world_size == 1 else _gather((measured, lengths, seconds)),
                    list(metrics), len(dataset), dataset_name, val)


def metric_means(result: Mapping[str, Any]) -> dict[str, float]:
    """The means of the metrics alone of what ``validate_clips`` returns."""
    return {name: value for name, value in result.items() if name not in OTHER_KEYS}


def log_metrics(result: dict[str, Any], dataset_name: str, current_iter: int, tb_logger: Any) -> None:
    """Write a validation's figures to the log and to TensorBoard (``metrics/REDS4/psnr``)."""
    lines = [f'Validation {dataset_name}']
    for name, mean in metric_means(result).items():
        clips = '  '.join(f'{clip}: {values[name]:.4f}' for clip, values in result['clips'].items()) \
            if len(result['clips']) <= 12 else f'mean of {len(result["clips"])} clips'
        lines.append(f'\t # {name}: {mean:.4f}\t{clips}')
        if tb_logger is not None:
            tb_logger.add_scalar(f'metrics/{dataset_name}/{name}', mean, current_iter)
    get_root_logger().info('\n'.join(lines))


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
                 threads: _Threads) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
    """Index, item and LR clip of ``indices``; while one is in use, threads read the LR frames of the next one."""
    def begin(index: int) -> tuple[int, dict[str, Any], list[Future[Tensor]]]:
        item = dataset[index]
        return index, item, [threads.submit(item['lq'].__getitem__, i) for i in range(len(item['lq']))]

    coming = deque([begin(indices[0])] if indices else [])
    for following in [*indices[1:], None]:
        if not coming:
            return
        index, item, lq = coming.popleft()
        if following is not None:
            coming.append(begin(following))
        yield index, item, as_clip(future.result() for future in lq)


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


_Part = tuple[dict[str, list[dict[str, float]]], dict[str, int], float]


def _gather(own: _Part) -> list[_Part]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _combine(parts: list[_Part], metrics: list[str], count: int, dataset_name: str,
             val: Mapping[str, Any]) -> dict[str, Any]:
    """The result of ``validate_clips`` from what each process measured: metrics and lengths by clip, and seconds."""
    frames = {clip: values for measured, _, _ in parts for clip, values in measured.items()}
    lengths = {clip: n for _, lengths, _ in parts for clip, n in lengths.items()}
    if len(frames) < count:
        raise ValueError(f'{dataset_name}: of {count} clips only {len(frames)} have names of their own; rename those '
                         'of the same name')
    clips = {clip: {'frames': len(frames[clip]),
                    **{name: sum(f[name] for f in frames[clip]) / len(frames[clip]) for name in metrics}}
             for clip in sorted(frames)}
    segment = val.get('segment')
    cut = segment is not None and any(n > segment for n in lengths.values())
    return {**{name: _mean([clip[name] for clip in clips.values()]) for name in metrics}, 'clips': clips,
            'seconds_per_frame': sum(seconds for _, _, seconds in parts) / sum(lengths.values()),
            'segment': {'frames': segment, 'overlap': val.get('overlap', 0)} if cut else None}


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite values; infinite if none is.

    PSNR is infinite where the output equals GT, as it may on the black clips of Vimeo90K-T: one of them would make all
    others count for nothing.
    """
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else values[0]
