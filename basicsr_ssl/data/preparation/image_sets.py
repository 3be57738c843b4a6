"""Single images: sub-images, LR images, lists and LMDB of DIV2K and DF2K, and LR images of the benchmarks.

What is there and whole is left alone, so an interrupted run goes on and a second one does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from basicsr_ssl.data.catalog import check_distinct, check_frame
from basicsr_ssl.data.degradations import Degradation, degrade
from basicsr_ssl.data.frames import DatasetError, existing_folder, image_size, list_images, read_frame
from basicsr_ssl.data.image_catalog import IMAGE_BENCHMARKS, check_images
from basicsr_ssl.data.preparation import lmdb_files, lr_frames
from basicsr_ssl.data.preparation.lmdb_files import LmdbFrame
from basicsr_ssl.data.preparation.parallel import in_parallel
from basicsr_ssl.files import write_text

# As BasicSR cuts them: large enough for any patch, small enough to be read quickly; neighbours share a half. Both are
# multiples of all scales.
SUB_IMAGE, STEP = 480, 240
SCALES = (2, 3, 4)
#: See ``lr_frames.RECORD``; hidden, as BasicSR takes every other file of the folder for an image.
RECORD = '.made_from_gt.json'
# Of all scales: images are cropped to it, so that the last sub-image of a row begins at a whole LR pixel.
_MULTIPLE = 12


#: By degradation and scale, the GT sub-images at None and 1.
_Folders = dict[tuple[Degradation | None, int], Path]


@dataclass(frozen=True)
class _TrainingSet:
    """Images that are trained on.

    Attributes:
        folder: what is made goes there, below the data root.
        parts: folder below the data root, how names are numbered, and number of images.
        prefix: of what is made, as BasicSR names it; ``list_name``: of the list of sub-images.
    """
    folder: str
    parts: tuple[tuple[str, str, int], ...]
    prefix: str
    list_name: str


_DIV2K = ('DIV2K/DIV2K_train_HR', '{:04d}', 800)
_TRAINING: dict[str, _TrainingSet] = {
    'div2k': _TrainingSet('DIV2K', (_DIV2K,), 'DIV2K_train', 'meta_info_DIV2K800sub_GT'),
    'df2k': _TrainingSet('DF2K', (_DIV2K, ('Flickr2K/Flickr2K_HR', '{:06d}', 2650)), 'DF2K_train',
                         'meta_info_DF2K3450sub_GT')}
_TESTED = {name.lower(): benchmark for name, benchmark in IMAGE_BENCHMARKS.items()}
#: Names on the command line.
DATASETS = (*_TRAINING, *_TESTED)


def home(dataset: str, root: Path) -> Path:
    """The folder that a data set is made in; that of a training set is created."""
    if dataset in _TRAINING:
        folder = root / _TRAINING[dataset].folder
        folder.mkdir(exist_ok=True)
        return folder
    return existing_folder(root / Path(_TESTED[dataset].gt).parent, dataset)


def prepare_images(dataset: str, root: Path, degradations: Sequence[Degradation], scales: Sequence[int], lmdb: bool,
                   check: bool, allow_partial: bool, workers: int) -> None:
    """See ``prepare.prepare``; ``dataset`` is one of ``DATASETS``.

    Raises:
        DatasetError: images are missing, damaged or not those of the set.
        OSError: files cannot be read or written.
    """
    images = _checked(dataset, root, allow_partial)
    folder, training = home(dataset, root), _TRAINING.get(dataset)
    folders: _Folders = {(None, 1): folder / f'{training.prefix}_HR_sub'} if training else {}
    for kind in degradations:
        for scale in scales:
            bicubic = f'{training.prefix}_LR_bicubic/X{scale}_sub' if training else f'BIx{scale}'
            folders[kind, scale] = folder / (bicubic if kind == 'BI' else f'BDx{scale}{"_sub" if training else ""}')
    for (kind, scale), target in folders.items():
        if kind is None or lr_frames.is_own(target, kind, scale, RECORD) or not target.is_dir():
            continue
        if list_images(target):
            raise DatasetError(f'{target} holds images that this command did not make. Move them away, and they are '
                               'made from GT; or name the folder as dataroot_lq and leave this out')
    pending = [path for path, done in zip(images, in_parallel(
        partial(_is_done, folders, bool(training)), images, [1] * len(images), workers if len(images) > 500 else 1,
        'looking for images', 50)) if not done]
    keys = {f'{path.stem}{suffix}': tuple(end - begin for begin, end in (rows, columns)) for path in images
            for suffix, rows, columns in _pieces(_cropped(image_size(path)), bool(training))}
    lists = {root / 'meta_info' / f'{training.list_name}.txt': ''.join(
        f'{key}.png ({height},{width},3)\n' for key, (height, width) in keys.items())} if training else {}
    stale = {path: text for path, text in lists.items() if not path.exists() or path.read_text('utf-8') != text}
    databases = {path: target for target in (folders.values() if lmdb and training else ())
                 if not lmdb_files.is_built(path := folder / f'{"_".join(target.relative_to(folder).parts)}.lmdb',
                                            list(keys))}
    steps = [f'{len(pending)} images to be {"cut and " if training else ""}made smaller'] * bool(pending)
    steps += [f'{path} to be written' for path in [*stale, *databases]]
    print('; '.join(steps) + '.' if steps else 'Nothing to do: all is there.')
    if check or not steps:
        return
    for (kind, scale), target in folders.items():
        target.mkdir(parents=True, exist_ok=True)
        if kind is not None:
            lr_frames.start(target, kind, scale, RECORD)
    in_parallel(partial(_make, folders, bool(training)), pending, [1] * len(pending), workers, 'making images', 2)
    for path, text in stale.items():
        write_text(path, text)
    for path, target in databases.items():
        scale = next(scale for (_, scale), place in folders.items() if place == target)
        lmdb_files.build(path, [LmdbFrame(key, target / f'{key}.png', (height // scale, width // scale))
                                for key, (height, width) in keys.items()])
    print('Done.')


def _checked(dataset: str, root: Path, allow_partial: bool) -> list[Path]:
    """The GT images; without ``allow_partial`` all of the set, else the sound ones."""
    if dataset in _TESTED:
        folder = existing_folder(root / _TESTED[dataset].gt, dataset)
        images = [folder / name for name in list_images(folder)]
        problems = list(dict.fromkeys(problem for scale in SCALES for problem in check_images(
            _TESTED[dataset], images, scale, thorough=True)))
    else:
        images, problems = [], []
        for place, pattern, count in _TRAINING[dataset].parts:
            folder = existing_folder(root / place, dataset)
            found = {Path(name).stem: folder / name for name in list_images(folder)}
            names = [pattern.format(number) for number in range(1, count + 1)]
            if missing := [name for name in names if name not in found]:
                problems.append(f'{folder} should hold {names[0]} to {names[-1]}; {len(missing)} are missing, '
                                f'{missing[0]} for example')
            images += [found[name] for name in names if name in found]
        problems += [f'{path} {problem}' for path in images if (problem := check_frame(path, None, thorough=True))]
        problems += check_distinct(images)
    if problems and not allow_partial:
        raise DatasetError('\n  '.join([f'these are not the published images of {dataset}:', *problems[:20]])
                           + f'\nComplete the data{" (see more than 20 problems)" * (len(problems) > 20)}, or go on '
                           'with what there is by --allow-partial')
    images = [path for path in images if check_frame(path, None, True, ('RGB', 'grey', 'palette')) is None]
    if not images:
        raise DatasetError(f'no image of {dataset} can be used. Complete the data as datasets/README.md describes')
    print(f'{dataset}: {len(images)} images are there and whole' + (
        f', but they are not the set: {problems[0]}.' if problems else '.'))
    return images


def _cropped(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // _MULTIPLE * _MULTIPLE, size[1] // _MULTIPLE * _MULTIPLE


def _pieces(size: tuple[int, int], cut: bool) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Ending of the name, rows and columns (begin, end) of each sub-image; without ``cut`` the one whole image."""
    if not cut:
        return [('', (0, size[0]), (0, size[1]))]
    rows, columns = (_spans(side) for side in size)
    spans = [(row, column) for row in rows for column in columns]
    return [(f'_s{number:03d}', row, column) for number, (row, column) in enumerate(spans, 1)]


def _spans(side: int) -> list[tuple[int, int]]:
    length = min(side, SUB_IMAGE)
    begins = list(range(0, side - length + 1, STEP))
    if begins[-1] + length < side:
        begins.append(side - length)
    return [(begin, begin + length) for begin in begins]


def _is_done(folders: _Folders, cut: bool, path: Path) -> bool:
    """Whether all that is made of an image is there, whole, and not older than it."""
    size, changed = image_size(path), path.stat().st_mtime_ns
    for (_, scale), folder in folders.items():
        for suffix, (top, bottom), (left, right) in _pieces(_cropped(size) if cut else size, cut):
            made = folder / f'{path.stem}{suffix}.png'
            expected = (bottom - top) // scale, (right - left) // scale
            if not made.exists() or made.stat().st_mtime_ns < changed or check_frame(made, expected):
                return False
    return True


def _make(folders: _Folders, cut: bool, path: Path) -> None:
    """Cut an image, and make LR of the pieces: what is cut out of the LR of the whole image."""
    whole = read_frame(path)
    size = (int(whole.shape[1]), int(whole.shape[2]))
    for (kind, scale), folder in folders.items():
        height, width = (side // scale * scale for side in (_cropped(size) if cut else size))
        image: Tensor = whole[:, :height, :width]
        if kind is not None:
            image = degrade(image, kind, scale, rounds_twice=True)
        for suffix, rows, columns in _pieces((height, width), cut):
            (top, bottom), (left, right) = (torch.tensor(span) // scale for span in (rows, columns))
            lr_frames.save(folder / f'{path.stem}{suffix}.png', image[:, top:bottom, left:right])
