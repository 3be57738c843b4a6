"""Datasets of clips: a camera moving over photographs, and folders of frames; for training and for testing.

Training items are ``{'lq': (t, 3, h, w), 'gt': (t, 3, scale*h, scale*w), 'key': str}``, float32 RGB in [0, 1], in steps
of 1/255. All their randomness comes from Python's ``random``, so that a seed before the call fixes the item.

Test items are whole clips, ``{'lq', 'gt', 'folder': str, 'names': list of n frame names}``. A hundred GT frames of
720x1280 would be 1.1 GB of float32, so ``lq`` and ``gt`` are sequences (``len``, index, iteration) of n frames as files
hold them: (3, h, w) and (3, scale*h, scale*w), uint8 RGB. Frames of folders are read, and LR made from GT, when a frame
is asked for, which several threads may do at once; the sizes in the headers of all files are checked with the item.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data.transforms import augment
from basicsr.utils import img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_ssl.data.camera import Uniform, camera_path, render, size_needed
from basicsr_ssl.data.clip_folders import (
    Clip,
    check_pair,
    check_same_size,
    collect_benchmark,
    collect_clips,
    common_size,
    frame_files,
    lr_difference,
    used_frames,
)
from basicsr_ssl.data.degradations import Degradation, degrade
from basicsr_ssl.data.frames import (
    DatasetError,
    LazyFrames,
    image_size,
    read_frame,
    read_image,
)
from basicsr_ssl.data.loader import FreshLists
from basicsr_ssl.data.options import (
    ClipFoldersOptions,
    ClipFoldersTestOptions,
    ClipSourceOptions,
    MixedOptions,
    MovingPhotosOptions,
    MovingPhotosTestOptions,
    PhotoSourceOptions,
)
from basicsr_ssl.data.photographs import Photo, Photographs


class _PhotoClips:
    """Clips of the photographs that the options name."""

    def __init__(self, options: PhotoSourceOptions, window: tuple[int, int]) -> None:
        self.options = options
        self.window = window
        self.library = Photographs(options.name, options.photos, options.dataroot_gt, self._too_small, 'gt_size')
        self.photos = self.library.photos

    def clip(self, photo: Photo, uniform: Uniform) -> np.ndarray:
        """(t, h, w, 3) uint8 RGB frames along a random path."""
        options, pixels = self.options, self.library.pixels(photo)
        maps = camera_path(options.num_frame, self.window, (pixels.shape[0], pixels.shape[1]), options.max_speed,
                           options.max_rotation, (options.zoom[0], options.zoom[1]), uniform)
        return render(pixels, maps, self.window)

    def _too_small(self, photo: Photo) -> str | None:
        height, width = image_size(photo.path)
        least = size_needed(self.window, self.options.zoom[0])
        if height >= least[0] and width >= least[1]:
            return None
        return (f'{photo.name} has {height} x {width} pixels, and a camera that moves over it with a window of '
                f'{self.window[0]} x {self.window[1]} needs {least[0]} x {least[1]}')


@DATASET_REGISTRY.register()  # type: ignore[misc]
class MovingPhotosDataset(Dataset):
    """Training clips of a camera that moves over photographs; one item per photograph, another path each time.

    Args:
        opt: keys of :class:`MovingPhotosOptions`.

    Raises:
        DatasetError: no such photograph or folder, or photographs too small for ``gt_size``.
    """

    Options = MovingPhotosOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.source = _PhotoClips(self.options, (self.options.gt_size, self.options.gt_size))

    def __getitem__(self, index: int) -> dict[str, Any]:
        photo = self.source.photos[index]
        frames = list(self.source.clip(photo, random.uniform))
        # before degrading, so that BD samples from the first pixel on in mirrored clips too, as in the test frames
        frames = augmented(frames, self.options.use_hflip, self.options.use_rot)
        lq = degraded(np.stack(frames), self.options.degradation, self.options.scale)
        return {'lq': to_tensor(lq), 'gt': to_tensor(frames), 'key': photo.name}

    def __len__(self) -> int:
        return len(self.source.photos)


@DATASET_REGISTRY.register()  # type: ignore[misc]
class MovingPhotosTestDataset(Dataset):
    """Clips of a camera that moves over photographs: ``clips_per_photo`` each, the same in every run.

    Args:
        opt: keys of :class:`MovingPhotosTestOptions`.

    Raises:
        DatasetError: no such photograph or folder, or photographs too small for ``gt_size``.
    """

    Options = MovingPhotosTestOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        size = self.options.gt_size
        self.source = _PhotoClips(self.options, (size, size) if isinstance(size, int) else (size[0], size[1]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        photo_index, number = divmod(_in_range(index, len(self)), self.options.clips_per_photo)
        photo = self.source.photos[photo_index]
        # by name, so that a clip stays the same when photographs are added
        generator = random.Random(f'{self.options.seed}/{photo.name}/{number}')
        gt = torch.from_numpy(self.source.clip(photo, generator.uniform)).permute(0, 3, 1, 2)
        lq = degrade(gt, self.options.degradation, self.options.scale)
        return {'lq': lq, 'gt': gt, 'folder': f'{photo.name}_{number}', 'names': [f'{i:08d}' for i in range(len(gt))]}

    def __len__(self) -> int:
        return len(self.source.photos) * self.options.clips_per_photo


@DATASET_REGISTRY.register()  # type: ignore[misc]
class ClipFoldersDataset(Dataset):
    """Training clips cut from folders of frames: one item per clip and first frame.

    Without ``dataroot_lq``, LR is cut from the degraded whole frame (only the part needed is computed), hence the same
    numbers as with LR files made beforehand.

    Args:
        opt: keys of :class:`ClipFoldersOptions`.

    Raises:
        DatasetError: folders, clips or frames that are missing, too few, too small or do not match.
    """

    Options = ClipFoldersOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.clips = collect_clips(self.options)
        longest = (self.options.num_frame - 1) * max(self.options.interval_list) + 1
        for clip in self.clips:
            if len(clip.gt_frames) < longest:
                raise DatasetError(f"clip '{clip.name}' has {len(clip.gt_frames)} frames, and num_frame "
                                   f'{self.options.num_frame} with interval_list {self.options.interval_list} needs '
                                   f'{longest}. Lower num_frame, or add the clip to exclude')
        self._starts = np.cumsum([len(clip.gt_frames) - self.options.num_frame + 1 for clip in self.clips])
        # the first clip shows a wrong scale or folder at once; the others are checked as they are read
        sizes = [image_size(path) for path in frame_files(self.options, self.clips[0], 0) if path is not None]
        self._check_sizes(self.clips[0], sizes[0], sizes[1] if len(sizes) > 1 else None)

    def __getitem__(self, index: int) -> dict[str, Any]:
        options = self.options
        clip_index = int(np.searchsorted(self._starts, _in_range(index, len(self)), side='right'))
        clip = self.clips[clip_index]
        start = index - (int(self._starts[clip_index - 1]) if clip_index else 0)
        interval = random.choice(options.interval_list)
        span = (options.num_frame - 1) * interval + 1
        if start + span > len(clip.gt_frames):
            start = random.randint(0, len(clip.gt_frames) - span)
        order = list(range(start, start + span, interval))
        if options.random_reverse and random.random() < 0.5:
            order.reverse()

        gt, lq = _read_frames(options, clip, order)
        self._check_sizes(clip, gt.shape[1:3], None if lq is None else lq.shape[1:3])
        gt = mod_crop(gt, options.scale)
        size = options.gt_size // options.scale
        top = random.randint(0, gt.shape[1] // options.scale - size)
        left = random.randint(0, gt.shape[2] // options.scale - size)
        if lq is None:
            lq = degraded(gt, options.degradation, options.scale, (top, left, size, size))
        else:
            lq = lq[:, top:top + size, left:left + size]
        top, left = top * options.scale, left * options.scale
        gt = gt[:, top:top + options.gt_size, left:left + options.gt_size]

        frames = augmented([*lq, *gt], options.use_hflip, options.use_rot)
        tensors = {'lq': to_tensor(frames[:len(order)]), 'gt': to_tensor(frames[len(order):])}
        if options.flip_sequence:
            tensors = {name: torch.cat([x, x.flip(0)]) for name, x in tensors.items()}
        return {**tensors, 'key': f'{clip.name}/{Path(clip.gt_frames[start]).stem}'}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _check_sizes(self, clip: Clip, gt: tuple[int, ...], lq: tuple[int, ...] | None) -> None:
        check_pair(clip, self.options.scale, gt, lq)
        if min(gt) < self.options.gt_size:
            raise DatasetError(f"clip '{clip.name}' has GT frames of {gt[0]} x {gt[1]}, smaller than gt_size "
                               f'{self.options.gt_size}. Lower gt_size, or add the clip to exclude')


@DATASET_REGISTRY.register()  # type: ignore[misc]
class ClipFoldersTestDataset(Dataset):
    """Whole clips from folders of frames, for validation and testing; GT is cropped to multiples of ``scale``.

    With ``benchmark`` the frames must be those of a published benchmark: GT, and LR where it comes from files.

    Args:
        opt: keys of :class:`ClipFoldersTestOptions`.

    Attributes:
        clips: those found, in the order of the items.
        partial: what makes the frames something else than the whole ``benchmark``, a sentence each; empty when they
            are that, or without ``benchmark``. Only ``allow_partial`` lets a dataset with such problems come to be: it
            has the frames of which there are GT and LR.

    Raises:
        DatasetError: folders, clips or frames that are missing, too few, of other sizes, or that do not match; frames
            that are not the whole ``benchmark``, without ``allow_partial``.
    """

    Options = ClipFoldersTestOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.clips, self.partial = self._collect()
        for clip in self.clips:
            if len(clip.gt_frames) <= self.options.first_frame:
                raise DatasetError(f"clip '{clip.name}' has {len(clip.gt_frames)} frames, so none is left from "
                                   f'first_frame {self.options.first_frame} on. Lower first_frame, or exclude the clip')
        self._cache: dict[int, dict[str, Any]] = {}

    def _collect(self) -> tuple[list[Clip], list[str]]:
        """Clips, and what makes them something else than the whole benchmark."""
        return (collect_clips(self.options), []) if self.options.benchmark is None else collect_benchmark(self.options)

    def lr_difference(self) -> str | None:
        """See :func:`clip_folders.lr_difference`."""
        return lr_difference(self.options, self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _in_range(index, len(self))
        if index in self._cache:
            return dict(self._cache[index])
        options, clip, scale, keep = self.options, self.clips[index], self.options.scale, self.options.cache_data
        paths = [frame_files(options, clip, number) for number in range(len(clip.gt_frames))[used_frames(options)]]
        gt_paths, lq_paths = [gt for gt, _ in paths], [lq for _, lq in paths if lq is not None]
        height, width = common_size(clip, gt_paths)
        check_pair(clip, scale, (height, width), common_size(clip, lq_paths) if lq_paths else None)
        height, width = height - height % scale, width - width % scale
        gt = LazyFrames(len(paths), lambda i: read_frame(gt_paths[i])[:, :height, :width], keep)
        lq = LazyFrames(len(paths), lambda i: read_frame(lq_paths[i]) if lq_paths
                        else degrade(gt[i], options.degradation, scale, rounds_twice=options.rounds_twice), keep)
        item = {'lq': lq, 'gt': gt, 'folder': clip.name, 'names': [path.stem for path in gt_paths]}
        if keep:
            self._cache[index] = item
        return dict(item)

    def __len__(self) -> int:
        return len(self.clips)


@DATASET_REGISTRY.register()  # type: ignore[misc]
class MixedDataset(Dataset):
    """Several training datasets as one, in the proportion of their weights.

    An epoch is as long as it takes for the part that is slowest to be seen whole; the other parts repeat meanwhile.

    Args:
        opt: keys of :class:`MixedOptions`.
    """

    Options = MixedOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.parts, weights = [], []
        for part in self.options.parts:
            part = dict(part)
            weights.append(part.pop('weight'))
            self.parts.append(FreshLists(DATASET_REGISTRY.get(part['type'])(part)))
        rounds = max(len(part) / weight for part, weight in zip(self.parts, weights))
        self._ends = np.cumsum([round(rounds * weight) or 1 for weight in weights])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._ends, _in_range(index, len(self)), side='right'))
        part = self.parts[number]
        return part[(index - (int(self._ends[number - 1]) if number else 0)) % len(part)]

    def __len__(self) -> int:
        return int(self._ends[-1])


def _read_frames(options: ClipSourceOptions, clip: Clip, order: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(t, h, w, 3) uint8 RGB of GT, and of LR where there are files of it."""
    paths = [frame_files(options, clip, number) for number in order]
    gt = _stack(clip, [gt for gt, _ in paths])
    lq_paths = [lq for _, lq in paths if lq is not None]
    return gt, _stack(clip, lq_paths) if lq_paths else None


def _stack(clip: Clip, paths: list[Path]) -> np.ndarray:
    frames = [read_image(path) for path in paths]
    check_same_size(clip, paths, [frame.shape[:2] for frame in frames])
    return np.stack(frames)


def mod_crop(frames: np.ndarray, scale: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    return frames[:, :height - height % scale, :width - width % scale]


def degraded(frames: np.ndarray, kind: Degradation, scale: int,
              window: tuple[int, int, int, int] | None = None, rounds_twice: bool = False) -> np.ndarray:
    """LR of (t, h, w, 3) uint8 frames, or a window of it in LR pixels, in the same form."""
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return degrade(clip, kind, scale, window, rounds_twice).permute(0, 2, 3, 1).numpy()


def augmented(frames: list[np.ndarray], hflip: bool, rotation: bool) -> list[np.ndarray]:
    """The same random flips and transposition of all frames."""
    # copies, since augment flips in place and these may be views
    frames = augment([np.ascontiguousarray(frame).copy() for frame in frames], hflip, rotation)
    return frames if isinstance(frames, list) else [frames]  # augment unpacks a list of one


def to_tensor(frames: list[np.ndarray] | np.ndarray) -> Tensor:
    """(t, 3, h, w) float32 in [0, 1] of (h, w, 3) uint8 frames."""
    return torch.stack([*img2tensor(list(frames), bgr2rgb=False)]) / 255


def _in_range(index: int, length: int) -> int:
    """The index itself; IndexError beyond the end, which also ends ``for item in dataset``."""
    if not 0 <= index < length:
        raise IndexError(f'there are {length} items, got index {index}')
    return index
