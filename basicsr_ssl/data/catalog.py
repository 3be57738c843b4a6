"""What the benchmarks and training sets consist of, as data, and whether the frames on disk are just that.

The protocols are those of the published tables: a figure over fewer, other or damaged frames is not comparable.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from basicsr_ssl.data.frames import read_image, shortened

#: LR frames of every benchmark here are this much smaller than GT, in height and width.
SCALE = 4

_PNG_START = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'\x00\x00\x00\x00IEND\xaeB`\x82'  # an empty chunk and its check sum: the last bytes of every PNG file
_COLOURS = {0: 'grey', 2: 'RGB', 3: 'palette', 4: 'grey with alpha', 6: 'RGB with alpha'}


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """Clips of 8-bit RGB PNG frames, as published.

    Attributes:
        name: as in papers and results.
        folder: below the data root.
        gt: folder of the GT clips, below the data root.
        clips: frames of each clip by name; None where the names do not matter or stand in ``list_file``.
        clip_count: number of clips.
        frames: frames of every clip; None where clips differ.
        sizes: (h, w) of GT frames in pixels, of all clips or by clip.
        first_frame: number in the name of a clip's first frame; None where it is not fixed.
        list_file: text file with one clip name per line, below the data root.
        black_clips: whether frames of one colour may be the same byte for byte; otherwise that is a copying mistake.
    """
    name: str
    folder: str
    gt: str
    clips: Mapping[str, int] | None
    clip_count: int
    frames: int | None
    sizes: Mapping[str, tuple[int, int]] | tuple[int, int]
    first_frame: int | None = 0
    list_file: str | None = None
    black_clips: bool = False

    def frame_count(self, clip: str) -> int | None:
        """Frames that ``clip`` must have; None for a clip that is not of this set."""
        return self.frames if self.clips is None else self.clips.get(clip)

    def size(self, clip: str, scale: int = 1) -> tuple[int, int]:
        """(h, w) that the frames of ``clip`` must have, at ``scale`` times smaller than GT; rounded down, as LR is
        made from GT cropped to multiples of the scale."""
        height, width = self.sizes if isinstance(self.sizes, tuple) else self.sizes[clip]
        return height // scale, width // scale


@dataclass(frozen=True, kw_only=True)
class Benchmark(ClipSet):
    """A set of clips that networks are tested on, and the published protocol.

    Attributes:
        lr: folder of the LR clips below the data root, by degradation (BI, BD).
        lr_published: LR frames come with the data set, and are not quite those that ``degrade`` makes from GT.
        channel: what PSNR and SSIM are measured on, ``'RGB'`` or ``'Y'``; never cropped at the border.
        centre_frame_only: only the middle frame of each clip counts.
        flip_seq: the clip is followed by its mirror image in time when it is tested.
    """
    lr: Mapping[str, str]
    lr_published: bool = False
    channel: str
    centre_frame_only: bool = False
    flip_seq: bool = False

    scales = (SCALE,)
    crop_is_scale = False  # else PSNR and SSIM leave out a border of as many pixels as the scale


_REDS_SIZE, _VIMEO_SIZE = (720, 1280), (256, 448)
# Nine clips of Vimeo90K-T are said to be black (Haris et al., RBPN, CVPR 2019); not checked on the real set.
_VIMEO_BLACK = True

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (
    Benchmark(name='REDS4', folder='REDS', gt='REDS/train_sharp', lr={'BI': 'REDS/train_sharp_bicubic/X4'},
              lr_published=True,
              clips={'000': 100, '011': 100, '015': 100, '020': 100}, clip_count=4, frames=100, sizes=_REDS_SIZE,
              channel='RGB'),
    Benchmark(name='Vimeo90K-T', folder='vimeo90k', gt='vimeo90k/vimeo_septuplet/sequences',
              lr={'BI': 'vimeo90k/BIx4', 'BD': 'vimeo90k/BDx4'}, clips=None, clip_count=7824, frames=7,
              sizes=_VIMEO_SIZE, first_frame=1, list_file='vimeo90k/vimeo_septuplet/sep_testlist.txt',
              black_clips=_VIMEO_BLACK, channel='Y', centre_frame_only=True, flip_seq=True),
    Benchmark(name='Vid4', folder='Vid4', gt='Vid4/GT', lr={'BI': 'Vid4/BIx4', 'BD': 'Vid4/BDx4'},
              clips={'calendar': 41, 'city': 34, 'foliage': 49, 'walk': 47}, clip_count=4, frames=None,
              sizes={'calendar': (576, 720), 'city': (576, 704), 'foliage': (480, 720), 'walk': (480, 720)},
              channel='Y'),
    # distributed with the clips' names (archpeople ... polyflow) and with numbers: the names are not checked
    Benchmark(name='UDM10', folder='UDM10', gt='UDM10/GT', lr={'BD': 'UDM10/BDx4'}, clips=None, clip_count=10,
              frames=32, sizes=(720, 1272), first_frame=None, channel='Y'),
)}

#: Training sets by their name on the command line. REDS with its validation clips as 240 to 269, as BasicSR has it.
TRAINING_SETS: dict[str, ClipSet] = {
    'reds': ClipSet(name='REDS', folder='REDS', gt='REDS/train_sharp', clips={f'{i:03d}': 100 for i in range(270)},
                    clip_count=270, frames=100, sizes=_REDS_SIZE),
    'vimeo90k': ClipSet(name='Vimeo90K', folder='vimeo90k', gt='vimeo90k/vimeo_septuplet/sequences', clips=None,
                        clip_count=64612, frames=7, sizes=_VIMEO_SIZE, first_frame=1,
                        list_file='vimeo90k/vimeo_septuplet/sep_trainlist.txt', black_clips=_VIMEO_BLACK),
}


def check_clips(clip_set: ClipSet, clips: Mapping[str, Sequence[Path]], scale: int = 1, thorough: bool = False,
                map_clips: Callable[..., Iterable[list[str]]] = map) -> list[str]:
    """What makes these frames something else than the whole ``clip_set``.

    Found from names, the first and last bytes and the lengths of the files: missing and surplus clips and frames, wrong
    size, not 8-bit RGB PNG, truncated files, frames that are byte for byte another frame of their clip (in sets with
    ``black_clips`` but for those of one colour), and, in other sets, clips whose first frame is that of another clip.

    Args:
        clip_set: what is expected.
        clips: the frames found, by clip and in order; an empty list for a clip of which there are none.
        scale: how much smaller than GT the frames are.
        thorough: read the files whole, too, and compare the check sums inside: damage in the middle of a file.
        map_clips: like the built-in ``map``, over a list of (clip, frames); to check clips in parallel.

    Returns:
        One sentence per problem, naming the clip or file, what was expected and what was found; [] if there is none.
    """
    problems = []
    if clip_set.clips is None and len(clips) != clip_set.clip_count:
        problems.append(f'{clip_set.name} has {clip_set.clip_count} clips, but there are {len(clips)}')
    if missing := [clip for clip in {**(clip_set.clips or {}), **clips} if not clips.get(clip)]:
        problems.append(f'{clip_set.name}: there are no frames of {len(missing)} of the {clip_set.clip_count} clips: '
                        f'{shortened(missing)}')
    found = [(clip, frames) for clip, frames in clips.items() if frames]
    problems += chain.from_iterable(map_clips(partial(_check_clip, clip_set, scale, thorough), found))
    if not clip_set.black_clips:
        problems += check_distinct([frames[0] for clip, frames in found if clip_set.frame_count(clip) is not None
                                     and check_frame(frames[0], clip_set.size(clip, scale)) is None])
    return problems


def check_frame(path: Path, size: tuple[int, int] | None, thorough: bool = False,
                colours: Sequence[str] = ('RGB',)) -> str | None:
    """What is wrong with the file of a frame of (h, w) ``size``, as the rest of a sentence; None if nothing is.

    Args:
        size: None: any.
        thorough: see :func:`check_clips`.
        colours: kinds of pixels that it may have, each of 8 bits.
    """
    try:
        with open(path, 'rb') as stream:
            start = stream.read(33)  # up to the end of the first chunk, IHDR
            if not start:
                return 'is empty. Copy or download it again'
            if start[:8] != _PNG_START or start[12:16] != b'IHDR':
                return 'is not a PNG file'
            stream.seek(max(stream.seek(0, 2) - len(_PNG_END), 0))
            if stream.read() != _PNG_END:
                return 'is truncated: a PNG file ends with an IEND chunk. Copy or download it again'
            stream.seek(0)
            if thorough and not _intact(stream.read()):
                return 'is damaged: the check sums in the PNG file do not fit. Copy or download it again'
    except OSError as error:
        return f'cannot be read: {error.strerror}'
    depth, colour = start[24], _COLOURS.get(start[25], 'unknown')
    if depth != 8 or colour not in colours:
        return f'has {depth}-bit {colour} pixels, expected 8-bit {" or ".join(colours)}'
    found = int.from_bytes(start[20:24], 'big'), int.from_bytes(start[16:20], 'big')
    if size is not None and found != size:
        return f'is {found[1]}x{found[0]}, expected {size[1]}x{size[0]} (width x height)'
    return None


def _check_clip(clip_set: ClipSet, scale: int, thorough: bool, clip_frames: tuple[str, Sequence[Path]]) -> list[str]:
    clip, frames = clip_frames
    count = clip_set.frame_count(clip)
    if count is None:
        return [f"clip '{clip}' in {frames[0].parent} is not one of {clip_set.name}, which has "
                f'{shortened(list(clip_set.clips or ()))}']
    problems = _check_numbers(clip_set, clip, count, frames)
    sound = []
    for path in frames:
        problem = check_frame(path, clip_set.size(clip, scale), thorough)
        if problem:
            problems.append(f'{path} {problem}')
        else:
            sound.append(path)
    return problems + check_distinct(sound, clip_set.black_clips)


def _check_numbers(clip_set: ClipSet, clip: str, count: int, frames: Sequence[Path]) -> list[str]:
    """Frames missing and surplus, by the numbers in their names."""
    by_number: dict[int, Path] = {}
    problems = []
    for path in frames:
        digits = re.findall(r'\d+', path.stem)
        if not digits:
            problems.append(f"{path} has no number in its name, so it is no frame of clip '{clip}'")
        elif (number := int(digits[-1])) in by_number:
            problems.append(f"{path} has the same number as {by_number[number].name}: clip '{clip}' has frame {number} "
                            'twice')
        else:
            by_number[number] = path
    first = min(by_number, default=0) if clip_set.first_frame is None else clip_set.first_frame
    expected = range(first, first + count)
    if missing := [number for number in expected if number not in by_number]:
        problems.append(f"clip '{clip}' of {clip_set.name} must have {count} frames, numbered {first} to "
                        f'{expected[-1]}; missing in {frames[0].parent}: {_ranges(missing)}')
    problems += [f"{path} is surplus: clip '{clip}' of {clip_set.name} has the frames {first} to {expected[-1]}"
                 for number, path in by_number.items() if number not in expected]
    return problems


def _intact(png: bytes) -> bool:
    """Whether every chunk of a PNG file is there in its length and has its CRC-32."""
    position = len(_PNG_START)
    while position < len(png):
        end = position + 8 + int.from_bytes(png[position:position + 4], 'big')
        if end + 4 > len(png) or zlib.crc32(png[position + 4:end]) != int.from_bytes(png[end:end + 4], 'big'):
            return False
        position = end + 4
    return True


def _is_one_colour(path: Path) -> bool:
    pixels = read_image(path)
    return bool((pixels == pixels[0, 0]).all())


def check_distinct(frames: Sequence[Path], one_colour: bool = False) -> list[str]:
    """Files that are byte for byte one before them, with ``one_colour`` but for frames of one colour.

    Hardly any has to be read: only those of the same length can be.
    """
    same_length: dict[int, list[Path]] = {}
    for path in frames:
        same_length.setdefault(path.stat().st_size, []).append(path)
    problems = []
    for paths in same_length.values():
        seen: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else ():
            if (other := seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)) is path:
                continue
            if not (one_colour and _is_one_colour(path)):
                name = other.name if other.parent == path.parent else other
                problems.append(f'{path} is a copy of {name}, byte for byte: one was written over the other')
    return problems


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: ``3, 7 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return shortened([' to '.join(map(str, run)) for run in runs])
