"""Work on many files in parallel processes that end with the command, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar('T')
R = TypeVar('R')


def in_parallel(function: Callable[[T], R], items: Sequence[T], frames: Sequence[int], workers: int, what: str,
                frames_per_task: int) -> list[R]:
    """``[function(item) for item in items]`` in processes of their own, with a progress bar on a terminal.

    Args:
        function: importable, since the processes are new ones (forking beside torch's threads may hang).
        items: picklable.
        frames: number of frames that each item stands for, for the progress bar and to share out the work.
        workers: processes; 1 works in this one.
        what: what is done, for the progress bar.
        frames_per_task: what a process gets at a time; an interruption waits for as much.

    Raises:
        OSError: a process died. What ``function`` raises comes through, after all processes have ended.
    """
    tasks = list(_tasks(frames, frames_per_task))
    with tqdm(total=sum(frames), desc=what, unit='frame', disable=None, leave=False) as bar:
        if min(workers, len(tasks)) <= 1:
            results = []
            for item, count in zip(items, frames):
                results.append(function(item))
                bar.update(count)
            return results
        executor = ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context('spawn'), _start_worker)
        try:
            with _no_interrupts():
                futures = {executor.submit(_apply, function, items[task]): task for task in tasks}
            for future in as_completed(futures):
                future.result()
                bar.update(sum(frames[futures[future]]))
            return [result for future in futures for result in future.result()]
        except BrokenProcessPool as error:
            raise OSError('a worker process was killed, perhaps for lack of memory. Run again, which goes on from '
                          'here, with fewer --workers') from error
        finally:
            executor.shutdown(cancel_futures=True)


def _tasks(frames: Sequence[int], size: int) -> Iterator[slice]:
    """Runs of items with about ``size`` frames together."""
    start, count = 0, 0
    for end, number in enumerate(frames, 1):
        count += number
        if count >= size or end == len(frames):
            yield slice(start, end)
            start, count = end, 0


def _apply(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def _start_worker() -> None:
    """One thread each; and no process outlives the command, even when that is killed."""
    import torch
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Blocks Ctrl-C, also for good in processes started meanwhile: only the command itself reacts to it."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
