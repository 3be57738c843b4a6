"""Datasets of clips: a camera moving over photographs, and folders of frames; for training and for testing.

Training items are ``{'lq': (t, 3, h, w), 'gt': (t, 3, scale*h, scale*w), 'key': str}``, test items whole clips
``{'lq', 'gt', 'folder': str, 'names': list of t frame names}``; float32 RGB in [0, 1], in steps of 1/255.
All randomness of training items comes from Python's ``random``, so that a seed before the call fixes the item.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage
import torch
from basicsr.data.transforms import augment
from basicsr.utils import get_root_logger, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_ssl.data.camera import Uniform, camera_path, render, size_needed
from basicsr_ssl.data.degradations import Degradation, degrade
from basicsr_ssl.data.frames import (
    DatasetError,
    existing_folder,
    find_clips,
    image_size,
    list_images,
    read_image,
    shortened,
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

_PHOTO_CACHE_BYTES = 512 << 20  # decoded photographs kept per process


class Photo(NamedTuple):
    """A photograph: its name in keys and results, and its file."""
    name: str
    path: Path


class Clip(NamedTuple):
    """A clip: its name, its folder below the roots, and its file names in order (no LR names: LR is made from GT)."""
    name: str
    folder: str
    gt_frames: tuple[str, ...]
    lq_frames: tuple[str, ...] | None


class _PhotoClips:
    """The photographs that the options name, and clips of them."""

    def __init__(self, options: PhotoSourceOptions, window: tuple[int, int]) -> None:
        self.options = options
        self.window = window
        self.photos = self._shipped() + self._from_folder()
        self._cache: dict[Path, np.ndarray] = {}
        self._cached_bytes = 0

    def clip(self, photo: Photo, uniform: Uniform) -> np.ndarray:
        """(t, h, w, 3) uint8 RGB frames along a random path."""
        options, pixels = self.options, self._pixels(photo.path)
        maps = camera_path(options.num_frame, self.window, (pixels.shape[0], pixels.shape[1]), options.max_speed,
                           options.max_rotation, (options.zoom[0], options.zoom[1]), uniform)
        return render(pixels, maps, self.window)

    def _pixels(self, path: Path) -> np.ndarray:
        if path in self._cache:
            return self._cache[path]
        pixels = read_image(path)
        if self._cached_bytes + pixels.nbytes <= _PHOTO_CACHE_BYTES:
            self._cache[path] = pixels
            self._cached_bytes += pixels.nbytes
        return pixels

    def _shipped(self) -> list[Photo]:
        """Those of ``photos``; one that is too small is an error, since it was asked for by name."""
        folder = Path(skimage.__file__).parent / 'data'
        shipped = {Path(name).stem: folder / name for name in list_images(folder)}
        if missing := [name for name in self.options.photos if name not in shipped]:
            raise DatasetError(f'photos: the installed scikit-image ships no {", ".join(missing)}; it has '
                               f'{", ".join(shipped)}')
        photos = [Photo(name, shipped[name]) for name in self.options.photos]
        for photo in photos:
            if message := self._too_small(photo):
                raise DatasetError(f'photos: {message}. Take it out, or lower gt_size')
        return photos

    def _from_folder(self) -> list[Photo]:
        """Those of ``dataroot_gt``; the small ones are left out, and the log says how many."""
        if self.options.dataroot_gt is None:
            return []
        root = existing_folder(self.options.dataroot_gt, 'dataroot_gt')
        photos = [Photo((Path(folder) / name).with_suffix('').as_posix(), root / folder / name)
                  for folder, names in find_clips(root).items() for name in names]
        if not photos:
            raise DatasetError(f'dataroot_gt: there is no image in {root}. Put photographs (PNG, JPEG) there')
        small = {photo: message for photo in photos if (message := self._too_small(photo))}
        if len(small) == len(photos):
            raise DatasetError(f'dataroot_gt: all {len(photos)} photographs in {root} are too small: '
                               f'{next(iter(small.values()))}. Lower gt_size, or use larger photographs')
        if small:
            get_root_logger().info(f'{self.options.name}: {len(small)} of {len(photos)} photographs in {root} are left '
                                   f'out as too small: {shortened([photo.name for photo in small])}')
        return [photo for photo in photos if photo not in small]

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
        frames = _augmented(frames, self.options.use_hflip, self.options.use_rot)
        lq = _degraded(np.stack(frames), self.options.degradation, self.options.scale)
        return {'lq': _to_tensor(lq), 'gt': _to_tensor(frames), 'key': photo.name}

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
        frames = self.source.clip(photo, generator.uniform)
        lq = _degraded(frames, self.options.degradation, self.options.scale)
        return {'lq': _to_tensor(lq), 'gt': _to_tensor(list(frames)), 'folder': f'{photo.name}_{number}',
                'names': [f'{i:08d}' for i in range(len(frames))]}

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
        self.clips = _collect_clips(self.options)
        longest = (self.options.num_frame - 1) * max(self.options.interval_list) + 1
        for clip in self.clips:
            if len(clip.gt_frames) < longest:
                raise DatasetError(f"clip '{clip.name}' has {len(clip.gt_frames)} frames, and num_frame "
                                   f'{self.options.num_frame} with interval_list {self.options.interval_list} needs '
                                   f'{longest}. Lower num_frame, or add the clip to exclude')
        self._starts = np.cumsum([len(clip.gt_frames) - self.options.num_frame + 1 for clip in self.clips])
        # the first clip shows a wrong scale or folder at once; the others are checked as they are read
        sizes = [image_size(path) for path in _paths(self.options, self.clips[0], 0) if path is not None]
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
        gt = _mod_crop(gt, options.scale)
        size = options.gt_size // options.scale
        top = random.randint(0, gt.shape[1] // options.scale - size)
        left = random.randint(0, gt.shape[2] // options.scale - size)
        if lq is None:
            lq = _degraded(gt, options.degradation, options.scale, (top, left, size, size))
        else:
            lq = lq[:, top:top + size, left:left + size]
        top, left = top * options.scale, left * options.scale
        gt = gt[:, top:top + options.gt_size, left:left + options.gt_size]

        frames = _augmented([*lq, *gt], options.use_hflip, options.use_rot)
        tensors = {'lq': _to_tensor(frames[:len(order)]), 'gt': _to_tensor(frames[len(order):])}
        if options.flip_sequence:
            tensors = {name: torch.cat([x, x.flip(0)]) for name, x in tensors.items()}
        return {**tensors, 'key': f'{clip.name}/{Path(clip.gt_frames[start]).stem}'}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _check_sizes(self, clip: Clip, gt: tuple[int, ...], lq: tuple[int, ...] | None) -> None:
        _check_pair(clip, self.options.scale, gt, lq)
        if min(gt) < self.options.gt_size:
            raise DatasetError(f"clip '{clip.name}' has GT frames of {gt[0]} x {gt[1]}, smaller than gt_size "
                               f'{self.options.gt_size}. Lower gt_size, or add the clip to exclude')


@DATASET_REGISTRY.register()  # type: ignore[misc]
class ClipFoldersTestDataset(Dataset):
    """Whole clips from folders of frames, for validation and testing; GT is cropped to multiples of ``scale``.

    Frames are read when a clip is asked for.

    Args:
        opt: keys of :class:`ClipFoldersTestOptions`.

    Raises:
        DatasetError: folders, clips or frames that are missing, too few or do not match.
    """

    Options = ClipFoldersTestOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.clips = _collect_clips(self.options)
        for clip in self.clips:
            if len(clip.gt_frames) <= self.options.first_frame:
                raise DatasetError(f"clip '{clip.name}' has {len(clip.gt_frames)} frames, so none is left from "
                                   f'first_frame {self.options.first_frame} on. Lower first_frame, or exclude the clip')
        self._cache: dict[int, dict[str, Any]] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _in_range(index, len(self))
        if index in self._cache:
            return dict(self._cache[index])
        options, clip = self.options, self.clips[index]
        end = len(clip.gt_frames)
        if options.max_frames is not None:
            end = min(end, options.first_frame + options.max_frames)
        order = list(range(options.first_frame, end))
        gt, lq = _read_frames(options, clip, order)
        _check_pair(clip, options.scale, gt.shape[1:3], None if lq is None else lq.shape[1:3])
        gt = _mod_crop(gt, options.scale)
        if lq is None:
            lq = _degraded(gt, options.degradation, options.scale)
        item = {'lq': _to_tensor(list(lq)), 'gt': _to_tensor(list(gt)), 'folder': clip.name,
                'names': [Path(clip.gt_frames[i]).stem for i in order]}
        if options.cache_data:
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


def _collect_clips(options: ClipSourceOptions) -> list[Clip]:
    """The clips that the options choose, with the frames of GT and LR paired by their order."""
    root = existing_folder(options.dataroot_gt, 'dataroot_gt')
    wanted = _listed_clips(options)
    if wanted is None:
        found = find_clips(root)
        if not found:
            raise DatasetError(f'dataroot_gt: no folder in {root} holds images. It should hold one folder of frames '
                               'per clip, see datasets/README.md')
    else:
        found = {name: list_images(root / name) if (root / name).is_dir() else () for name in wanted}
        if missing := [name for name, frames in found.items() if not frames]:
            raise DatasetError(f'dataroot_gt: {root} has no frames of the clips {shortened(missing)}. Correct '
                               f'{"meta_info_file" if options.meta_info_file else "clips"}; the folder holds '
                               f'{shortened(sorted(entry.name for entry in root.iterdir())) or "nothing"}')
    if unknown := [name for name in options.exclude if name not in found]:
        raise DatasetError(f'exclude: there is no clip {shortened(unknown)} in {root}; there are '
                           f'{shortened(list(found))}. Correct the name, or take it out')
    found = {name: frames for name, frames in found.items() if name not in options.exclude}
    if not found:
        raise DatasetError(f'exclude leaves no clip of {root}')

    lq_root = None if options.dataroot_lq is None else existing_folder(options.dataroot_lq, 'dataroot_lq')
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # the 64,612 clips of Vimeo90K share one list of names
    clips = []
    for folder, frames in found.items():
        name = root.resolve().name if folder == '.' else folder
        lq_frames = None if lq_root is None else _lq_frames(name, lq_root / folder, frames, root / folder)
        clips.append(Clip(name, folder, shared.setdefault(frames, frames),
                          lq_frames and shared.setdefault(lq_frames, lq_frames)))
    return clips


def _listed_clips(options: ClipSourceOptions) -> list[str] | None:
    if options.meta_info_file is None:
        return options.clips
    path = Path(options.meta_info_file).expanduser()
    try:
        names = [line.split()[0] for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    except OSError as error:
        raise DatasetError(f'meta_info_file: cannot read {path}: {error.strerror}. datasets/README.md says where such '
                           'files come from') from error
    if not names:
        raise DatasetError(f'meta_info_file: {path} names no clip; each line should begin with one')
    return names


def _lq_frames(name: str, folder: Path, gt_frames: tuple[str, ...], gt_folder: Path) -> tuple[str, ...]:
    frames = list_images(folder) if folder.is_dir() else ()
    if len(frames) != len(gt_frames):
        raise DatasetError(f"clip '{name}' has {len(gt_frames)} GT frames in {gt_folder} but {len(frames)} LR frames "
                           f'in {folder}. Complete it, exclude it, or leave dataroot_lq out to make LR from GT')
    return frames


def _paths(options: ClipSourceOptions, clip: Clip, number: int) -> tuple[Path, Path | None]:
    """Files of the GT and the LR frame ``number`` of a clip."""
    gt = Path(options.dataroot_gt).expanduser() / clip.folder / clip.gt_frames[number]
    if options.dataroot_lq is None or clip.lq_frames is None:
        return gt, None
    return gt, Path(options.dataroot_lq).expanduser() / clip.folder / clip.lq_frames[number]


def _read_frames(options: ClipSourceOptions, clip: Clip, order: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(t, h, w, 3) uint8 RGB of GT, and of LR where there are files of it."""
    paths = [_paths(options, clip, number) for number in order]
    gt = _stack(clip, [gt for gt, _ in paths])
    lq_paths = [lq for _, lq in paths if lq is not None]
    return gt, _stack(clip, lq_paths) if lq_paths else None


def _stack(clip: Clip, paths: list[Path]) -> np.ndarray:
    frames = [read_image(path) for path in paths]
    for path, frame in zip(paths, frames):
        if frame.shape != frames[0].shape:
            raise DatasetError(f"clip '{clip.name}' has frames of different sizes: {paths[0]} is "
                               f'{frames[0].shape[0]} x {frames[0].shape[1]} and {path} is {frame.shape[0]} x '
                               f'{frame.shape[1]}. Mend or exclude it')
    return np.stack(frames)


def _check_pair(clip: Clip, scale: int, gt: tuple[int, ...], lq: tuple[int, ...] | None) -> None:
    """Raises DatasetError unless LR frames (h, w) fit GT frames (h, w), the latter cropped to multiples of scale."""
    expected = gt[0] // scale, gt[1] // scale
    if min(expected) < 1:
        raise DatasetError(f"clip '{clip.name}' has GT frames of {gt[0]} x {gt[1]}, smaller than scale {scale}")
    if lq is not None and tuple(lq) != expected:
        raise DatasetError(f"clip '{clip.name}': GT frames are {gt[0]} x {gt[1]} and LR frames {lq[0]} x {lq[1]}, but "
                           f'at scale {scale} LR must be {expected[0]} x {expected[1]}. Check scale and dataroot_lq')


def _mod_crop(frames: np.ndarray, scale: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    return frames[:, :height - height % scale, :width - width % scale]


def _degraded(frames: np.ndarray, kind: Degradation, scale: int,
              window: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """LR of (t, h, w, 3) uint8 frames, or a window of it in LR pixels, in the same form."""
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return degrade(clip, kind, scale, window).permute(0, 2, 3, 1).numpy()


def _augmented(frames: list[np.ndarray], hflip: bool, rotation: bool) -> list[np.ndarray]:
    """The same random flips and transposition of all frames."""
    # copies, since augment flips in place and these may be views
    frames = augment([np.ascontiguousarray(frame).copy() for frame in frames], hflip, rotation)
    return frames if isinstance(frames, list) else [frames]  # augment unpacks a list of one


def _to_tensor(frames: list[np.ndarray] | np.ndarray) -> Tensor:
    """(t, 3, h, w) float32 in [0, 1] of (h, w, 3) uint8 frames."""
    return torch.stack([*img2tensor(list(frames), bgr2rgb=False)]) / 255


def _in_range(index: int, length: int) -> int:
    """The index itself; IndexError beyond the end, which also ends ``for item in dataset``."""
    if not 0 <= index < length:
        raise IndexError(f'there are {length} items, got index {index}')
    return index
