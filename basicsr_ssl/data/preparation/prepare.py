"""``basicsr-ssl prepare``: from the frames as downloaded to what training and testing read.

Checks GT against the catalogue, regroups REDS, makes LR frames and the meta files, and builds LMDB. What is there and
whole is left alone, so an interrupted run goes on and a second one does nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from basicsr_ssl.data.catalog import BENCHMARKS, SCALE, TRAINING_SETS, ClipSet, check_clips, check_frame
from basicsr_ssl.data.degradations import Degradation
from basicsr_ssl.data.frames import DatasetError, existing_folder, find_clips, list_images
from basicsr_ssl.data.preparation import image_sets, lmdb_files, lr_frames, reds
from basicsr_ssl.data.preparation.lmdb_files import LmdbFrame
from basicsr_ssl.data.preparation.lr_frames import LrFrame
from basicsr_ssl.data.preparation.parallel import in_parallel
from basicsr_ssl.files import write_text

_SHOWN_PROBLEMS = 20
_COMPARED = 10  # LR frames made elsewhere that are compared with ours
_BLOCK = 4096  # bytes; a file takes whole blocks of the disk

Clips = dict[str, list[Path]]


@dataclass(frozen=True)
class _Dataset:
    """What is prepared under one name: its sets of clips, and the degradations that it is tested on."""
    clip_sets: tuple[ClipSet, ...]
    degradations: tuple[Degradation, ...]

    @property
    def folder(self) -> str:
        return self.clip_sets[0].folder


_DATASETS = {
    'reds': _Dataset((TRAINING_SETS['reds'], BENCHMARKS['REDS4']), ('BI',)),
    'vimeo90k': _Dataset((TRAINING_SETS['vimeo90k'], BENCHMARKS['Vimeo90K-T']), ('BI', 'BD')),
    'vid4': _Dataset((BENCHMARKS['Vid4'],), ('BI', 'BD')),
    'udm10': _Dataset((BENCHMARKS['UDM10'],), ('BD',)),
}
# names as in BasicSR and in the projects built on it
_META_FILES = {'REDS': 'meta_info_REDS_GT', 'REDS4': 'meta_info_REDS4_test_GT',
               'Vimeo90K': 'meta_info_Vimeo90K_train_GT', 'Vimeo90K-T': 'meta_info_Vimeo90K_test_GT'}
_GT_LMDB = {'reds': 'train_sharp_with_val.lmdb', 'vimeo90k': 'vimeo90k_train_GT_all.lmdb'}
_LR_LMDB = {'reds': {'BI': 'train_BIx4_with_val.lmdb', 'BD': 'train_BDx4_with_val.lmdb'},
            'vimeo90k': {'BI': 'vimeo90k_train_LR7frames.lmdb', 'BD': 'vimeo90k_train_BDLR7frames.lmdb'}}
_PUBLISHED_LR_LMDB = 'train_sharp_bicubic_with_val.lmdb'
_REDS_GT, _REDS_LR = 'train_sharp', 'train_sharp_bicubic/X4'


@dataclass(frozen=True)
class _Part:
    """GT clips of a data set: what they should be, and those there are."""
    clip_set: ClipSet
    clips: Clips
    partial: bool = False


@dataclass(frozen=True)
class _Lmdb:
    """An LMDB to be built, and its size in bytes, at most."""
    path: Path
    frames: list[LmdbFrame]
    size: int


@dataclass(frozen=True)
class _Plan:
    """What is missing."""
    links: dict[Path, Path]  # target to place
    lr_frames: list[LrFrame]
    lr_folders: dict[Degradation, Path]
    meta_files: dict[Path, str]
    lmdbs: list[_Lmdb]


def prepare(dataset: str, root: str | os.PathLike, degradation: Sequence[Degradation] | None = None,
            lmdb: bool = False, check: bool = False, allow_partial: bool = False, workers: int | None = None,
            scales: Sequence[int] | None = None) -> None:
    """Make the frames of a data set ready for training and testing, as datasets/README.md describes.

    Args:
        dataset: ``'reds'``, ``'vimeo90k'``, ``'vid4'``, ``'udm10'``, or one of single images, see ``image_sets``.
        root: folder of all data sets.
        degradation: LR frames to make; None: those that the data set is tested on, except BI of REDS where the
            published LR frames are there.
        lmdb: build LMDB, too, of a set that is trained on.
        check: only check, and say what would be made.
        allow_partial: go on with what there is: the clips whose frames, be they all or not, are whole.
        workers: processes; None: one per core that this process may use.
        scales: of LR images; None: 2, 3 and 4. LR frames of video are always made at 4.

    Raises:
        DatasetError: frames are missing, damaged or not those of the data set, or something is in the way.
        ValueError: ``lmdb`` for a set that is only tested on, or fewer than one process.
        OSError: too little space on the disk, or files that cannot be read or written.
    """
    if workers is not None and workers < 1:
        raise ValueError(f'--workers must be at least 1, got {workers}')
    if lmdb and dataset not in (*TRAINING_SETS, 'div2k', 'df2k'):
        raise ValueError(f'--lmdb: {dataset} is only tested on, and BasicSR reads test frames from folders')
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    root = existing_folder(root, '--root')
    if dataset in image_sets.DATASETS:
        with _alone(image_sets.home(dataset, root)):
            image_sets.prepare_images(dataset, root, degradation or ('BI',), scales or image_sets.SCALES, lmdb, check,
                                      allow_partial, workers)
        return
    if scales is not None:
        raise ValueError(f'--scale is of single images; LR frames of {dataset} are made at {SCALE}')
    with _alone(existing_folder(root / _DATASETS[dataset].folder, dataset)):
        plan = _plan(dataset, root, degradation, lmdb, allow_partial, workers)
        steps = _steps(plan, workers)
        if not steps:
            print('Nothing to do: all is there.')
        elif check:
            print(f'To be done: {"; ".join(steps)}.')
        else:
            _check_disk(plan)
            for text, run in steps.items():
                run()
                print(f'Done: {text}.')


def _plan(dataset: str, root: Path, degradation: Sequence[Degradation] | None, lmdb: bool, allow_partial: bool,
          workers: int) -> _Plan:
    """What there is to do, from what is there; writes nothing.

    Raises:
        DatasetError: see :func:`prepare`.
    """
    parts = [_checked(part, allow_partial, workers) for part in _find_parts(dataset, root, for_training=lmdb)]
    home = root / _DATASETS[dataset].folder
    kinds = _DATASETS[dataset].degradations if degradation is None else tuple(dict.fromkeys(degradation))
    links: dict[Path, Path] = {}
    published: Clips = {}
    if dataset == 'reds':
        links = {home / subset / clip: place for subset in (_REDS_GT, _REDS_LR)
                 for clip, place in reds.locate_clips(home, subset).items() if place != home / subset / clip}
        published = {clip: _frames(place) for clip, place in reds.locate_clips(home, _REDS_LR).items()}
        if published:
            _check_lr(home / _REDS_LR, 'BI', parts, published, workers)
            kinds = () if degradation is None else kinds
    folders: dict[Degradation, Path] = {kind: home / f'{kind}x{SCALE}' for kind in kinds}
    own: dict[Degradation, Path] = {kind: folder for kind, folder in folders.items()
                                    if _is_own(folder, kind, parts, workers)}
    return _Plan(links, _missing_lr(parts, own, workers), own, _missing_meta_files(root, parts),
                 list(_missing_lmdbs(dataset, home, parts[0], folders, published)) if lmdb else [])


def _steps(plan: _Plan, workers: int) -> dict[str, Callable[[], object]]:
    """What is to be done, in words, and how, in order."""
    steps: dict[str, Callable[[], object]] = {}
    for folder in dict.fromkeys(target.parent for target in plan.links):
        links = {target: place for target, place in plan.links.items() if target.parent == folder}
        steps[f'{len(links)} clips linked into {folder}'] = partial(_link, links)
    if plan.lr_frames:
        counts = Counter(plan.lr_folders[kind] for frame in plan.lr_frames for kind in frame.degradations)
        text = ' and '.join(f'{count} LR frames made in {folder}' for folder, count in counts.items())
        steps[text] = partial(_make_lr, plan, workers)
    for path, text in plan.meta_files.items():
        steps[f'{path} written'] = partial(write_text, path, text)
    for lmdb in plan.lmdbs:
        steps[f'{lmdb.path} built of {len(lmdb.frames)} frames'] = partial(lmdb_files.build, lmdb.path, lmdb.frames)
    return steps


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises OSError where another run is at work in the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f'another `basicsr-ssl prepare` is at work in {folder}: wait until it has ended') from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _find_parts(dataset: str, root: Path, for_training: bool) -> list[_Part]:
    """The clip sets of which there are any frames, the training set first.

    Raises:
        DatasetError: there are none, or only such as nobody trains on, ``for_training``.
    """
    clip_sets = _DATASETS[dataset].clip_sets
    folder = root / clip_sets[0].gt
    if dataset == 'reds':
        clips = {clip: _frames(place) for clip, place in reds.locate_clips(root / 'REDS', _REDS_GT).items()}
        # who only wants to test needs no more than four clips
        only_tested = clips.keys() <= (clip_sets[1].clips or {}).keys() and not for_training
        parts = [_Part(clip_sets[only_tested], clips)]
    elif lists := [clip_set for clip_set in clip_sets if clip_set.list_file and (root / clip_set.list_file).exists()]:
        parts = [_Part(clip_set, {name: _frames(folder / name) for name in _names(root / str(clip_set.list_file))})
                 for clip_set in lists]
    else:
        parts = [_Part(clip_sets[0], _all_clips(folder))]
        if list_file := clip_sets[0].list_file:
            print(f'There is no {root / list_file}: all septuplets are taken for training ones.')
    parts = [part for part in parts if any(part.clips.values())]
    if not parts:
        raise DatasetError(f'there are no frames in {folder}. Put GT there as datasets/README.md describes')
    if for_training and parts[0].clip_set != clip_sets[0]:
        raise DatasetError(f'--lmdb: of {clip_sets[0].name}, which is trained on, there are no clips in {folder}')
    return parts


def _names(list_file: Path) -> list[str]:
    return [words[0] for line in list_file.read_text(encoding='utf-8-sig').splitlines() if (words := line.split())]


def _frames(folder: Path) -> list[Path]:
    return [folder / name for name in list_images(folder)] if folder.is_dir() else []


def _all_clips(folder: Path) -> Clips:
    return {clip: [folder / clip / name for name in names] for clip, names in find_clips(folder).items()}


def _checked(part: _Part, allow_partial: bool, workers: int) -> _Part:
    """The part if it is whole; else, if that is allowed, its clips whose frames can all be used."""
    clip_set = part.clip_set
    problems = check_clips(clip_set, part.clips, thorough=True, map_clips=partial(_map_clips, workers))
    if not problems:
        print(f'{clip_set.name}: all {len(part.clips)} clips, {_count(part.clips)} frames, are there and whole.')
        return part
    if not allow_partial:
        raise DatasetError(_listing(f'these are not the published frames of {clip_set.name}', problems,
                                    'Complete the data, or go on with what there is by --allow-partial'))
    items = [(clip, frames) for clip, frames in part.clips.items() if frames and clip_set.frame_count(clip)]
    are_usable = _map_clips(workers, partial(_is_usable, clip_set), items)
    usable = {clip: list(frames) for (clip, frames), is_usable in zip(items, are_usable) if is_usable}
    if not usable:
        raise DatasetError(_listing(f'no clip of {clip_set.name} can be used', problems, 'Complete the data'))
    print(_listing(f'{clip_set.name}: only a part of it, {_count(usable)} frames of {len(usable)} clips, can be used',
                   problems))
    return replace(part, clips=usable, partial=True)


def _is_usable(clip_set: ClipSet, clip_frames: tuple[str, Sequence[Path]]) -> bool:
    clip, frames = clip_frames
    return not any(check_frame(path, clip_set.size(clip), thorough=True) for path in frames)


def _map_clips(workers: int, function: Callable, items: Sequence[tuple[str, Sequence[Path]]]) -> list:
    counts = [len(frames) for _, frames in items]
    # to start processes takes longer than to read some hundreds of frames
    return in_parallel(function, items, counts, workers if sum(counts) > 2000 else 1, 'checking', frames_per_task=500)


def _count(clips: Clips) -> int:
    return sum(map(len, clips.values()))


def _listing(title: str, problems: Sequence[str], hint: str = '') -> str:
    lines = [f'{title}:', *(f'  {problem}' for problem in problems[:_SHOWN_PROBLEMS])]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f'  and {len(problems) - _SHOWN_PROBLEMS} problems more')
    return '\n'.join(lines + [hint] * bool(hint))


def _is_own(folder: Path, kind: Degradation, parts: Sequence[_Part], workers: int) -> bool:
    """Whether the LR frames in ``folder`` are for this command to make; False for whole ones from elsewhere."""
    if lr_frames.is_own(folder, kind) or not (found := _all_clips(folder)):
        return True
    _check_lr(folder, kind, parts, found, workers)
    return False


def _check_lr(folder: Path, kind: Degradation, parts: Sequence[_Part], found: Clips, workers: int) -> None:
    """Raises DatasetError unless these LR frames, made elsewhere, are as many as GT's and of the right size.

    Border, phase or rounding may be others than ours, and figures with them: how much is said.
    """
    problems = []
    for part in parts:
        items = [(clip, found.get(clip, [])) for clip in part.clips]
        problems += [f"clip '{clip}' has {len(part.clips[clip])} GT frames, but {len(frames)} LR frames"
                     for clip, frames in items if len(frames) != len(part.clips[clip])]
        for found_problems in _map_clips(workers, partial(_lr_problems, part.clip_set), items):
            problems += found_problems
    if problems:
        raise DatasetError(_listing(f'the LR frames in {folder}, which this command did not make, do not fit GT',
                                    problems, 'Complete them, or move them away: then they are made from GT'))
    firsts = [(frames[0], found[clip][0]) for part in parts for clip, frames in part.clips.items()][:_COMPARED]
    most = max(lr_frames.difference(gt, lq, kind) for gt, lq in firsts)
    compared = (f'differ from {kind} made from GT by up to {most} grey levels' if most else
                f'are what would be made from GT as {kind}')
    print(f'{folder}: LR frames for all of GT are there, made elsewhere; they are used as they are. The first frames '
          f'of the clips {compared}.')


def _lr_problems(clip_set: ClipSet, clip_frames: tuple[str, Sequence[Path]]) -> list[str]:
    clip, frames = clip_frames
    return [f'{path} {problem}' for path in frames
            if (problem := check_frame(path, clip_set.size(clip, SCALE), thorough=True))]


def _missing_lr(parts: Sequence[_Part], folders: Mapping[Degradation, Path], workers: int) -> list[LrFrame]:
    if not folders:
        return []
    frames = [LrFrame(path, part.clip_set.size(clip), f'{clip}/{path.name}', tuple(folders))
              for part in parts for clip, paths in part.clips.items() for path in paths]
    groups = [frames[begin:begin + 500] for begin in range(0, len(frames), 500)]
    found = in_parallel(partial(lr_frames.to_make, folders), groups, [len(group) for group in groups],
                        workers if len(frames) > 10000 else 1, 'looking for LR frames', frames_per_task=500)
    return [frame for group in found for frame in group]


def _make_lr(plan: _Plan, workers: int) -> None:
    for kind, folder in plan.lr_folders.items():
        lr_frames.start(folder, kind)
    in_parallel(partial(lr_frames.make, plan.lr_folders), plan.lr_frames, [1] * len(plan.lr_frames), workers,
                'making LR frames', frames_per_task=4)


def _link(links: Mapping[Path, Path]) -> None:
    for target, place in links.items():
        reds.link_clip(place, target)


def _missing_meta_files(root: Path, parts: Sequence[_Part]) -> dict[Path, str]:
    """BasicSR's lists of clips, by file. That of a part of a set has a name of its own and is kept up to date."""
    files = {}
    for part in parts:
        name = _META_FILES.get(part.clip_set.name)
        if name is None:
            continue
        path = root / 'meta_info' / f'{name}{"_partial" if part.partial else ""}.txt'
        lines = []
        for clip, frames in part.clips.items():
            height, width = part.clip_set.size(clip)
            lines.append(f'{clip} {len(frames)} ({height},{width},3)\n')
        found = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.exists() else []
        if found and not part.partial and sorted(found) != sorted(lines):
            raise DatasetError(f'{path} does not list the clips of {part.clip_set.name}. Move or delete it, and it is '
                               'written anew')
        if sorted(found) != sorted(lines):
            files[path] = ''.join(lines)
    return files


def _missing_lmdbs(dataset: str, home: Path, part: _Part, folders: Mapping[Degradation, Path],
                   published: Clips) -> Iterator[_Lmdb]:
    """The LMDB that are not there yet; the LR frames in them may still have to be made."""
    contents = {_GT_LMDB[dataset]: (part.clips, 1)}
    if published:
        contents[_PUBLISHED_LR_LMDB] = (published, SCALE)
    for kind, folder in folders.items():
        lq = {clip: [folder / clip / path.name for path in paths] for clip, paths in part.clips.items()}
        contents[_LR_LMDB[dataset][kind]] = (lq, SCALE)
    for name, (clips, scale) in contents.items():
        frames = [LmdbFrame(f'{clip}/{gt.stem}', path, part.clip_set.size(clip, scale))
                  for clip, paths in part.clips.items() for gt, path in zip(paths, clips[clip])]
        if not lmdb_files.is_built(home / name, [frame.key for frame in frames]):
            lengths = [frame.path.stat().st_size if frame.path.exists() else _most_bytes(frame.size)
                       for frame in frames]
            yield _Lmdb(home / name, frames, lmdb_files.bytes_needed(lengths))


def _most_bytes(size: tuple[int, int]) -> int:
    """What a PNG file of an (h, w) frame takes on the disk if it does not compress at all."""
    return (size[0] * size[1] * 3 // _BLOCK + 2) * _BLOCK


def _check_disk(plan: _Plan) -> None:
    """Raises OSError where what is to be made might not fit on its disk."""
    needed: dict[int, int] = defaultdict(int)  # by disk
    folders: dict[int, Path] = {}
    sizes = [(plan.lr_folders[kind], _most_bytes((frame.size[0] // SCALE, frame.size[1] // SCALE)))
             for frame in plan.lr_frames for kind in frame.degradations]
    for folder, size in sizes + [(lmdb.path.parent, lmdb.size) for lmdb in plan.lmdbs]:
        existing = folder if folder.exists() else folder.parent
        disk = existing.stat().st_dev
        needed[disk] += size
        folders[disk] = existing
    for disk, folder in folders.items():
        free = shutil.disk_usage(folder).free
        if needed[disk] > free:
            raise OSError(f'up to {needed[disk] / 1e9:.2f} GB may be needed in {folder}, but only {free / 1e9:.2f} GB '
                          'are free. Nothing was made; free some space, or make less (--degradation, no --lmdb)')
