"""LR frames as files, made from GT frames, continued where they were interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from basicsr_ssl.data.catalog import SCALE, check_frame
from basicsr_ssl.data.degradations import DESCRIPTIONS, Degradation, degrade
from basicsr_ssl.data.frames import DatasetError, read_frame
from basicsr_ssl.files import write_text

#: Says beside LR frames how they were made; a folder of LR frames without it comes from elsewhere.
RECORD = 'made_from_gt.json'


#: Where LR frames go, by degradation; frames have the same names below each of them.
Folders = Mapping[Degradation, Path]


class LrFrame(NamedTuple):
    """A GT frame, its (h, w), and what is to be made of it; no more paths than needed, as there are half a million."""
    gt: Path
    size: tuple[int, int]
    name: str
    """Of the LR files, below each of the folders, e.g. ``00001/0001/im1.png``."""
    degradations: tuple[Degradation, ...]


def is_own(folder: Path, kind: Degradation, scale: int = SCALE, record: str = RECORD) -> bool:
    """Whether the LR frames in ``folder`` were made here, so that they may be completed; False if it has no record.

    Raises:
        DatasetError: they were made here, but not this way.
    """
    path = folder / record
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        made = {key: found[key] for key in _made(kind, scale)}
    except (ValueError, KeyError, TypeError):
        made = 'nothing of that'
    if made != _made(kind, scale):
        raise DatasetError(f'{path} should say how the frames there were made, {_made(kind, scale)}, but says {made}. '
                           f'Move or delete {folder}, and they are made anew')
    return True


def start(folder: Path, kind: Degradation, scale: int = SCALE, record: str = RECORD) -> None:
    """Make ``folder`` one of LR frames made here."""
    if not (folder / record).exists():
        write_text(folder / record, json.dumps({**_made(kind, scale), **DESCRIPTIONS[kind]}, indent=2) + '\n')


def to_make(folders: Folders, frames: Sequence[LrFrame]) -> list[LrFrame]:
    """Those frames, and of each those degradations, whose LR files are missing, broken or older than GT."""
    pending = [frame._replace(degradations=tuple(kind for kind in frame.degradations
                                                 if not _is_made(frame, folders[kind] / frame.name)))
               for frame in frames]
    return [frame for frame in pending if frame.degradations]


def make(folders: Folders, frame: LrFrame) -> None:
    """Make the LR files of one frame.

    Raises:
        DatasetError: GT cannot be read.
        OSError: LR cannot be written.
    """
    gt = _read_gt(frame.gt)
    for kind in frame.degradations:
        save(folders[kind] / frame.name, degrade(gt, kind, SCALE))


def save(path: Path, frame: Tensor) -> None:
    """Write a frame (3, h, w) uint8 as PNG; it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # not flushed to the disk one by one, which would take longer than all else: a broken file is seen, and made
    # again; always the same temporary name, so that a killed run leaves nothing that the next does not replace
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(temporary, format='PNG')
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f'cannot save {path}: {error}. Mend it and run again, which goes on from here') from error
    finally:
        temporary.unlink(missing_ok=True)


def difference(gt: Path, lq: Path, kind: Degradation) -> int:
    """Largest difference in grey levels between an LR file and the one that would be made from GT."""
    return int((degrade(_read_gt(gt), kind, SCALE).int() - read_frame(lq).int()).abs().max())


def _read_gt(path: Path) -> Tensor:
    """(3, h, w) uint8, cropped to multiples of the scale at the right and at the bottom."""
    gt = read_frame(path)
    height, width = gt.shape[1:]
    return gt[:, :height - height % SCALE, :width - width % SCALE]


def _made(kind: Degradation, scale: int) -> dict[str, object]:
    """``version`` goes up should the same degradation ever give other numbers."""
    return {'degradation': kind, 'scale': scale, 'version': 1}


def _is_made(frame: LrFrame, path: Path) -> bool:
    size = frame.size[0] // SCALE, frame.size[1] // SCALE
    try:
        return path.stat().st_mtime_ns >= frame.gt.stat().st_mtime_ns and check_frame(path, size) is None
    except FileNotFoundError:
        return False
