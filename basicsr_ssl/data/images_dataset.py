"""Datasets of single images: folders of photographs for training, and the benchmarks, as sets of one-frame clips.

Training items are ``{'lq': (3, h, w), 'gt': (3, scale*h, scale*w), 'key': str}``, float32 RGB in [0, 1], in steps of
1/255, whose randomness comes from Python's ``random`` alone. Test items are those of ``clips_dataset``, with one frame.
LR is made as image papers make it, by MATLAB's ``imresize`` of 8-bit images, which rounds twice (see ``degrade``).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from basicsr_ssl.data.clip_folders import Clip, benchmark_problems
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset, augmented, degraded, mod_crop, to_tensor
from basicsr_ssl.data.frames import (
    DatasetError,
    existing_folder,
    find_clips,
    image_size,
    list_images,
    read_image,
    shortened,
)
from basicsr_ssl.data.image_catalog import IMAGE_BENCHMARKS, ImageBenchmark, check_images, usual_name
from basicsr_ssl.data.options import ImageFolderOptions, ImageFolderTestOptions


@DATASET_REGISTRY.register()  # type: ignore[misc]
class ImageFolderDataset(Dataset):
    """Training patches of the photographs in a folder, one item per photograph, another patch each time.

    LR is cut from the degraded whole image (only the part needed is computed), hence the same numbers as with LR files
    made beforehand. Reading an image takes longer than all else: large ones are better cut to sub-images first
    (``basicsr-ssl prepare div2k``), and few ones kept in memory by ``cache_data``.

    Args:
        opt: keys of :class:`ImageFolderOptions`.

    Raises:
        DatasetError: no such folder, no image in it, or one smaller than ``gt_size``.
    """

    Options = ImageFolderOptions
    task = 'image'

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        root = existing_folder(self.options.dataroot_gt, 'dataroot_gt')
        self.paths = [root / folder / name for folder, names in find_clips(root).items() for name in names
                      if Path(name).stem not in self.options.exclude]
        if not self.paths:
            raise DatasetError(f'dataroot_gt: there is no image in {root}'
                               + (' but those in exclude' if self.options.exclude else '')
                               + '. Put photographs there, see datasets/README.md')
        self._root, self._cache = root, {}
        small = [path for path in self.paths if min(image_size(path)) < self.options.gt_size]
        if small:
            raise DatasetError(f'dataroot_gt: {len(small)} of {len(self.paths)} images in {root} are smaller than '
                               f'gt_size {self.options.gt_size}: {shortened([path.name for path in small])}. Lower '
                               'gt_size, or name them, without suffix, in exclude')

    def __getitem__(self, index: int) -> dict[str, Any]:
        options, path = self.options, self.paths[index]
        gt = mod_crop(self._pixels(path)[None], options.scale)
        size = options.gt_size // options.scale
        top = random.randint(0, gt.shape[1] // options.scale - size)
        left = random.randint(0, gt.shape[2] // options.scale - size)
        lq = degraded(gt, options.degradation, options.scale, (top, left, size, size), rounds_twice=True)
        top, left = top * options.scale, left * options.scale
        gt = gt[:, top:top + options.gt_size, left:left + options.gt_size]
        frames = augmented([lq[0], gt[0]], options.use_hflip, options.use_rot)
        return {'lq': to_tensor(frames[:1])[0], 'gt': to_tensor(frames[1:])[0],
                'key': path.relative_to(self._root).with_suffix('').as_posix()}

    def __len__(self) -> int:
        return len(self.paths)

    def _pixels(self, path: Path) -> np.ndarray:
        if path not in self._cache:
            pixels = read_image(path)
            if not self.options.cache_data:
                return pixels
            self._cache[path] = pixels
        return self._cache[path]


@DATASET_REGISTRY.register()  # type: ignore[misc]
class ImageFolderTestDataset(ClipFoldersTestDataset):
    """The images of a folder, each whole and as a clip of one frame; GT is cropped to multiples of ``scale``.

    Grey images have three equal channels. With ``benchmark`` the images must be those of a published one.

    Args:
        opt: keys of :class:`ImageFolderTestOptions`.

    Raises:
        DatasetError: as :class:`ClipFoldersTestDataset`.
    """

    Options = ImageFolderTestOptions
    task = 'image'

    def _collect(self) -> tuple[list[Clip], list[str]]:
        options: Any = self.options
        root, lq_root = existing_folder(options.dataroot_gt, 'dataroot_gt'), None
        names = [name for name in list_images(root) if Path(name).stem not in options.exclude]
        by_stem: dict[str, str] = {}
        if options.dataroot_lq is not None:
            lq_root = existing_folder(options.dataroot_lq, 'dataroot_lq')
            by_stem = {Path(name).stem: name for name in list_images(lq_root)}
        lq_stems = {name: options.filename_tmpl.format(Path(name).stem) for name in names}
        unpaired = [name for name in names if lq_root is not None and lq_stems[name] not in by_stem]
        problems = []
        if options.benchmark is not None:
            problems = self._check(IMAGE_BENCHMARKS[options.benchmark], root, names, lq_root, by_stem)
        elif unpaired:
            raise DatasetError(f'dataroot_lq: {lq_root} has no LR images for {shortened(unpaired)}: they should be '
                               f'named {lq_stems[unpaired[0]]}. Correct filename_tmpl, or leave dataroot_lq out to '
                               'make LR from GT')
        clips = [Clip(usual_name(Path(name).stem) if options.benchmark else Path(name).stem, '.', (name,),
                      None if lq_root is None else (by_stem[lq_stems[name]],))
                 for name in names if name not in unpaired]
        if not clips:
            raise DatasetError(f'{options.name}: there are no images in {root}'
                               + (f' that {lq_root} has LR images for' if unpaired else '')
                               + '. Put them there as datasets/README.md describes')
        return clips, problems

    def _check(self, benchmark: ImageBenchmark, root: Path, names: list[str], lq_root: Path | None,
               by_stem: dict[str, str]) -> list[str]:
        scale = self.options.scale
        problems = [f'GT: {problem}' for problem in check_images(benchmark, [root / name for name in names], scale)]
        if lq_root is not None:
            lq = [lq_root / name for name in by_stem.values()]
            problems += [f'LR: {problem}' for problem in check_images(benchmark, lq, scale, are_lr=True)]
        return benchmark_problems(self.options, benchmark.name, 'images', problems)
