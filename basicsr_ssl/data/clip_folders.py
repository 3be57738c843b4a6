"""Clips as folders of frames: which there are, with which frames of GT and LR, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from basicsr_ssl.data.catalog import BENCHMARKS, Benchmark, check_clips
from basicsr_ssl.data.degradations import degrade
from basicsr_ssl.data.frames import (
    DatasetError,
    existing_folder,
    find_clips,
    image_size,
    list_images,
    read_frame,
    shortened,
)
from basicsr_ssl.data.options import (
    ClipFoldersTestOptions,
    ClipSourceOptions,
    FrameSourceOptions,
    ImageFolderTestOptions,
)

TestOptions = ClipFoldersTestOptions | ImageFolderTestOptions

_CHECKERS = 16  # threads that check the files of a benchmark; they wait for the disk or the network, hardly compute
_PROBLEMS = 4  # problems of a benchmark that a message quotes
_COMPARED = 10  # clips whose LR files are compared with what would be made from GT
# Grey levels by which LR files may differ from ours on average. The published ones of REDS, rounded twice, differ by
# 0.11 over the whole frame and at its edges; reflected instead of replicated borders by 0.4 and more at the edges; an
# offset of one frame, another blur or another sigma by more.
_TOLERANCE = 0.25
# Share of the values that must be ours, or one less, for LR files with fractions cut off, as DUF made BD.
_CUT_OFF = 0.99


class Clip(NamedTuple):
    """A clip: its name, its folder below the roots, and its file names in order (no LR names: LR is made from GT)."""
    name: str
    folder: str
    gt_frames: tuple[str, ...]
    lq_frames: tuple[str, ...] | None


def collect_clips(options: ClipSourceOptions) -> list[Clip]:
    """The clips that the options choose, with the frames of GT and LR paired by their order.

    Raises:
        DatasetError: folders, clips or frames that are missing or do not match.
    """
    root = existing_folder(options.dataroot_gt, 'dataroot_gt')
    wanted = _listed_clips(options)
    if wanted is None:
        found = find_clips(root)
        if not found:
            raise DatasetError(f'dataroot_gt: no folder in {root} holds images. It should hold one folder of frames '
                               'per clip, see datasets/README.md')
    else:
        found = _images_of(root, wanted)
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


def collect_benchmark(options: ClipFoldersTestOptions) -> tuple[list[Clip], list[str]]:
    """The clips of ``options.benchmark`` that are there, and what keeps them from being the whole benchmark.

    Returns:
        The clips, with the frames of which there are GT and, if it comes from files, LR; and a sentence for each
        problem, none if the frames are just those of the benchmark.

    Raises:
        DatasetError: there are problems and no ``allow_partial``, or no frames at all.
    """
    benchmark = BENCHMARKS[options.benchmark or '']
    root = existing_folder(options.dataroot_gt, 'dataroot_gt')
    names = [name for name in _listed_clips(options) or benchmark.clips or find_clips(root)
             if name not in options.exclude]
    gt, lq = _images_of(root, names), None
    problems = _check_benchmark('GT', benchmark, options, root, gt, 1)
    if options.dataroot_lq is not None:
        lq_root = existing_folder(options.dataroot_lq, 'dataroot_lq')
        lq = _images_of(lq_root, names)
        problems += _check_benchmark('LR', benchmark, options, lq_root, lq, options.scale)
    benchmark_problems(options, benchmark.name, 'frames', problems)
    if lq is not None:
        # of a whole benchmark the order counts: UDM10 may be numbered from 0 in one folder and from 1 in the other
        pairs = {name: _paired(gt[name], lq[name]) if problems else (gt[name], lq[name]) for name in names}
        gt, lq = {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
    clips = [Clip(root.resolve().name if name == '.' else name, name, files, None if lq is None else lq[name])
             for name, files in gt.items() if files]
    if not clips:
        raise DatasetError(f'{options.name}: nothing of the benchmark {benchmark.name} is in {root}'
                           + (f' and {options.dataroot_lq}' if lq is not None else '')
                           + '. datasets/README.md says where its frames come from and where they belong')
    return clips, problems


def benchmark_problems(options: TestOptions, name: str, what: str, problems: list[str]) -> list[str]:
    """The problems of a benchmark themselves.

    Raises:
        DatasetError: there are some, and no ``allow_partial``.
    """
    if problems and not options.allow_partial:
        more = f'; and {len(problems) - _PROBLEMS} more' if len(problems) > _PROBLEMS else ''
        raise DatasetError(
            f'{options.name}: the {what} are not the whole benchmark {name}: {"; ".join(problems[:_PROBLEMS])}{more}. '
            'Complete it as datasets/README.md describes, or go on with what there is, which marks the results as '
            'partial: --allow-partial for a test, allow_partial: true in the options of the test set for a training')
    return problems


def lr_difference(options: TestOptions, clips: Sequence[Clip]) -> str | None:
    """How LR files differ from what ``degradation`` makes of GT, as a sentence; None if in no more than rounding.

    Compares the middle frame of some clips; None, too, where LR is made from GT.

    Raises:
        DatasetError: a frame cannot be read.
    """
    for clip in clips[::max(1, len(clips) // _COMPARED)]:
        gt_path, lq_path = frame_files(options, clip, len(clip.gt_frames) // 2)
        if lq_path is None:
            continue
        gt, lq = read_frame(gt_path), read_frame(lq_path)
        check_pair(clip, options.scale, gt.shape[1:], lq.shape[1:])
        height, width = (n - n % options.scale for n in gt.shape[1:])
        made = degrade(gt[:, :height, :width], options.degradation, options.scale,
                       rounds_twice=options.rounds_twice)
        less = made.float() - lq.float()
        if ((less == 0) | (less == 1)).float().mean() >= _CUT_OFF:
            continue
        off = less.abs().mean(dim=0)
        edges = torch.cat((off[0], off[-1], off[:, 0], off[:, -1]))
        if max(off.mean(), edges.mean()) > _TOLERANCE:
            return (f'{lq_path} differs from {options.degradation} made from GT by {off.mean():.2f} grey levels on '
                    f'average, {edges.mean():.2f} at the edges: another kernel, border, phase, rounding or frame')
    return None


def _check_benchmark(kind: str, benchmark: Benchmark, options: ClipFoldersTestOptions, root: Path,
                     images: Mapping[str, tuple[str, ...]], scale: int) -> list[str]:
    """What makes the frames in use something else than the benchmark, at ``scale`` times smaller than its GT."""
    files = {clip: [root / clip / name for name in names[used_frames(options)]] for clip, names in images.items()}
    with ThreadPoolExecutor(_CHECKERS) as pool:
        return [f'{kind}: {problem}' for problem in check_clips(benchmark, files, scale, map_clips=pool.map)]


def _images_of(root: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The images of each clip, none for a clip that has no folder."""
    return {name: list_images(root / name) if (root / name).is_dir() else () for name in names}


def _paired(gt: tuple[str, ...], lq: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The frames that are in both, by their names; where no names agree, by their order if there are as many."""
    by_stem = {Path(name).stem: name for name in lq}
    both = tuple(name for name in gt if Path(name).stem in by_stem)
    if both:
        return both, tuple(by_stem[Path(name).stem] for name in both)
    return (gt, lq) if len(gt) == len(lq) else ((), ())


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


def used_frames(options: TestOptions) -> slice:
    """The frames of a clip that are used."""
    first = options.first_frame
    return slice(first, None if options.max_frames is None else first + options.max_frames)


def frame_files(options: FrameSourceOptions, clip: Clip, number: int) -> tuple[Path, Path | None]:
    """Files of the GT and the LR frame ``number`` of a clip."""
    gt = Path(options.dataroot_gt).expanduser() / clip.folder / clip.gt_frames[number]
    if options.dataroot_lq is None or clip.lq_frames is None:
        return gt, None
    return gt, Path(options.dataroot_lq).expanduser() / clip.folder / clip.lq_frames[number]


def common_size(clip: Clip, paths: list[Path]) -> tuple[int, int]:
    """(h, w) of all these files, from their headers."""
    sizes = [image_size(path) for path in paths]
    check_same_size(clip, paths, sizes)
    return sizes[0]


def check_same_size(clip: Clip, paths: Sequence[Path], sizes: Sequence[tuple[int, ...]]) -> None:
    """Raises DatasetError unless all files of a clip have one size (h, w)."""
    for path, size in zip(paths, sizes):
        if size != sizes[0]:
            raise DatasetError(f"clip '{clip.name}' has frames of different sizes: {paths[0]} is {sizes[0][0]} x "
                               f'{sizes[0][1]} and {path} is {size[0]} x {size[1]}. Mend or exclude it')


def check_pair(clip: Clip, scale: int, gt: tuple[int, ...], lq: tuple[int, ...] | None) -> None:
    """Raises DatasetError unless LR frames (h, w) fit GT frames (h, w), the latter cropped to multiples of scale."""
    expected = gt[0] // scale, gt[1] // scale
    if min(expected) < 1:
        raise DatasetError(f"clip '{clip.name}' has GT frames of {gt[0]} x {gt[1]}, smaller than scale {scale}")
    if lq is not None and tuple(lq) != expected:
        raise DatasetError(f"clip '{clip.name}': GT frames are {gt[0]} x {gt[1]} and LR frames {lq[0]} x {lq[1]}, but "
                           f'at scale {scale} LR must be {expected[0]} x {expected[1]}. Check scale and dataroot_lq')
