"""An endless training stream whose every sample depends on the seed and its position only: resuming is exact."""

from __future__ import annotations

import atexit
import random
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.reds_dataset import REDSRecurrentDataset
from basicsr.utils import FileClient
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from basicsr_ssl.data.frames import DatasetError
from basicsr_ssl.data.options import DatasetOptions

REDS_FRAMES = 100  # of every whole clip of REDS


class PositionSampler(Sampler):
    """Yields ``(position, index)`` of one rank for ever.

    The stream of all ranks together has the positions 0, 1, 2, ...; rank r takes those from ``start`` on with
    ``(position - start) % world_size == r``. Epoch ``position // length`` visits every index once, in an order drawn
    from ``(seed, epoch)``. So the stream is the same for any number of ranks, and can begin anywhere.

    Args:
        length: length of the dataset.
        rank, world_size: this process and their number.
        seed: at least 0.
        start: first position of all ranks together.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1, seed: int = 0, start: int = 0) -> None:
        if length < 1:
            raise DatasetError('the training dataset is empty: check its dataroot_gt and the lists of clips')
        self.length, self.rank, self.world_size, self.seed, self.start = length, rank, world_size, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.arange(0)
        position = self.start + self.rank
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            yield position, int(order[position % self.length])
            position += self.world_size


class _LastRead:
    """BasicSR's file client, which also remembers what it read last."""

    def __init__(self, backend: dict[str, Any]) -> None:
        options = dict(backend)
        self.client = FileClient(options.pop('type'), **options)
        self.file: object = None

    def get(self, file: object, key: str = 'default') -> bytes:
        self.file = file
        return self.client.get(file, key)


class FreshLists(Dataset):
    """A dataset whose list attributes are as they were at first whenever an item is made.

    BasicSR's Vimeo90K datasets reverse ``self.neighbor_list`` in place at random and keep it so: an item would depend
    on how many reversals that worker did before, which a resumed run cannot know. BasicSR's datasets do not say either
    which file they fail at; here they do, in a DatasetError.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        if isinstance(dataset, REDSRecurrentDataset):
            dataset.keys = _reds_starts(dataset.keys, dataset.num_frame * max(dataset.interval_list))
        if isinstance(dataset, PairedImageDataset):  # found in the order of the disk, which may be another elsewhere
            dataset.paths.sort(key=lambda pair: pair['gt_path'])
        # datasets of this package, which declare their Options, change nothing; their lists may be long
        ours = hasattr(dataset, 'Options')
        self._lists = {} if ours else {name: tuple(value) for name, value in vars(dataset).items()
                                       if isinstance(value, list)}

    def __getitem__(self, index: int) -> Any:
        for name, values in self._lists.items():
            setattr(self.dataset, name, list(values))
        if getattr(self.dataset, 'file_client', self) is None:  # BasicSR's, before its first item
            self.dataset.file_client = _LastRead(self.dataset.io_backend_opt)
        reads = getattr(self.dataset, 'file_client', None)
        try:
            return self.dataset[index]
        except Exception as error:
            if not isinstance(reads, _LastRead):
                raise
            reason = getattr(error, 'strerror', None) or ''.join(map(str, error.args)).rstrip('.')
            if isinstance(error, AttributeError):  # OpenCV gives None for what it cannot decode, and BasicSR goes on
                reason = 'it is damaged, or no image'
            remedy = 'Copy or download it again, or take its clip out of meta_info_file' \
                if isinstance(error, (OSError, AttributeError)) else 'Check scale, gt_size, dataroot_gt and dataroot_lq'
            if isinstance(error, TypeError) and 'NoneType' in str(error):  # what FileClient gives for an absent key
                reason = 'it is not in the LMDB'
                remedy = 'Build the LMDB again from all frames, or take the clip out of meta_info_file'
            raise DatasetError(f'cannot use {reads.file}: {reason}. {remedy}') from error

    def __len__(self) -> int:
        return len(self.dataset)


def _reds_starts(keys: list[str], span: int) -> list[str]:
    """First frames, as ``clip/number``, from which on a clip has ``span`` frames.

    BasicSR's REDS dataset takes every clip for 100 frames long, and draws another first frame itself where these end.
    """
    lengths = Counter(key.split('/')[0] for key in keys)
    starts = [key for key in keys for clip, number in [key.split('/')]
              if lengths[clip] == REDS_FRAMES or int(number) + span <= lengths[clip]]
    if keys and not starts:
        raise DatasetError(f'no clip in meta_info_file has the {span} frames that num_frame and interval_list need; '
                           f'the longest has {max(lengths.values())}. Lower num_frame')
    return starts


class Failure(NamedTuple):
    """A DatasetError on its way from a worker: PyTorch would wrap its message in a worker's traceback."""
    message: str


class SeededDataset(Dataset):
    """Makes items from ``(position, index)``, with Python's, NumPy's and PyTorch's CPU generators seeded by position.

    In the main process (no workers) the generators are put back afterwards, so that loading does not disturb whatever
    else draws from them.

    Args:
        dataset: draws only from the three global generators.
        seed: at least 0; the generators' seeds are mixed from it and the position.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = FreshLists(dataset)
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        position, index = place
        if get_worker_info() is not None:
            self._seed(position)
            try:
                return self.dataset[index]
            except DatasetError as error:
                return Failure(str(error))
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            self._seed(position)
            return self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __len__(self) -> int:
        return len(self.dataset)

    def _seed(self, position: int) -> None:
        words = np.random.SeedSequence([self.seed, position]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])
        torch.default_generator.manual_seed(int(words[2]))  # not torch.manual_seed, which would seed the GPUs as well


def train_loader(dataset: Any, dataset_opt: dict[str, Any] | DatasetOptions, seed: int, rank: int = 0,
                 world_size: int = 1, start_iter: int = 0, accumulate: int = 1) -> Generator[dict[str, Any]]:
    """Endless batches of ``batch_size_per_gpu * accumulate`` items, from iteration ``start_iter`` (from 0) on.

    With B items per batch, iteration i of rank r holds the positions ``i*B*world_size + r + [0, world_size, ...]``:
    the ranks together see what one process with B * world_size items a batch sees. What a batch holds depends neither
    on the workers nor on where the run began. Closing the generator ends the workers.

    Args:
        dataset: a training dataset; its items are dicts of tensors and strings.
        dataset_opt: its options; used are ``batch_size_per_gpu``, ``num_worker_per_gpu`` and ``pin_memory``.
        seed: at least 0.

    Raises:
        DatasetError: the dataset is empty, or, while iterating, what the dataset raised, with its own message also
            when a worker raised it.
    """
    if isinstance(dataset_opt, DatasetOptions):
        dataset_opt = dataset_opt.model_dump()
    batch_size = dataset_opt.get('batch_size_per_gpu', 1) * accumulate
    seeded = SeededDataset(dataset, seed)
    sampler = PositionSampler(len(seeded), rank, world_size, seed, start_iter * batch_size * world_size)
    loader = DataLoader(seeded, batch_size=batch_size, sampler=sampler, drop_last=True,
                        num_workers=dataset_opt.get('num_worker_per_gpu', 0), collate_fn=_collate,
                        worker_init_fn=_init_worker,
                        generator=torch.Generator(),  # else starting it would draw from the global generator
                        pin_memory=dataset_opt.get('pin_memory', False) and torch.cuda.is_available())
    return _batches(loader)


def _batches(loader: DataLoader) -> Generator[dict[str, Any]]:
    batches = iter(loader)
    end_workers = getattr(batches, '_shutdown_workers', lambda: None)  # not there without workers
    # At exit Python asks such processes with a SIGTERM to end, which ours ignore, and waits for them for ever. PyTorch
    # ends them when nothing refers to the iterator any more, but the traceback of an error does until the very end.
    atexit.register(end_workers)
    try:
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if not str(error).startswith('DataLoader worker'):
                    raise
                raise DatasetError(f'{error}. A worker is killed when memory runs out: lower num_worker_per_gpu; in a '
                                   'container, shared memory (/dev/shm) may be what is too small') from error
            if isinstance(batch, Failure):
                raise DatasetError(batch.message)
            yield batch
    finally:
        end_workers()
        atexit.unregister(end_workers)


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, Failure)), None) or default_collate(items)


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # PyTorch gives each worker one thread; OpenCV would take all cores in each
    # Ctrl-C and torchrun's or SLURM's SIGTERM reach the whole process group. The training process alone answers them:
    # it still needs its workers while it saves its state, and ends them itself. An orphaned worker ends by PyTorch's
    # own watch on its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
