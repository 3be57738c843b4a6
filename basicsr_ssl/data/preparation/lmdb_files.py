"""LMDB as BasicSR reads them: PNG files by key, and a list of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lmdb
from tqdm import tqdm

from basicsr_ssl.data.frames import DatasetError

_BATCH = 64  # frames read ahead, in parallel, and written in one transaction
_PAGE = 4096  # bytes; LMDB gives every value whole pages


class LmdbFrame(NamedTuple):
    """A frame in an LMDB: its key, as ``000/00000000``, its PNG file, and its (h, w)."""
    key: str
    path: Path
    size: tuple[int, int]


def is_built(path: Path, keys: Sequence[str]) -> bool:
    """Whether the LMDB ``path`` holds these keys; False if there is none.

    Raises:
        DatasetError: it holds others.
    """
    if not path.exists():
        return False
    try:
        lines = (path / 'meta_info.txt').read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise DatasetError(f'{path} is there, but its meta_info.txt cannot be read: {error.strerror}. Move or delete '
                           f'{path}, and it is built anew') from error
    found = {line.split('.')[0] for line in lines}
    if found != set(keys):
        raise DatasetError(f'{path} holds {len(found)} frames, and not the {len(keys)} that it should. Move or delete '
                           'it, and it is built anew')
    return True


def bytes_needed(file_bytes: Sequence[int]) -> int:
    """Size of an LMDB of files of these lengths, at most."""
    return sum((length // _PAGE + 2) * _PAGE for length in file_bytes) + (1 << 20)


def build(path: Path, frames: Sequence[LmdbFrame]) -> None:
    """Build an LMDB of the frames' files, as they are: disk and LMDB give the same pixels. It appears when it is whole.

    Raises:
        OSError: a frame cannot be read, or the LMDB not written; nothing is left of it then.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    frames = sorted(frames, key=lambda frame: frame.key.encode())  # LMDB appends in this order
    room = bytes_needed([frame.path.stat().st_size for frame in frames])
    try:
        temporary.mkdir(parents=True)
        with (ThreadPoolExecutor(8) as threads,
              lmdb.open(str(temporary), map_size=2 * room, sync=False) as env,
              tqdm(total=len(frames), desc=path.name, unit='frame', disable=None, leave=False) as bar):
            for begin in range(0, len(frames), _BATCH):
                batch = frames[begin:begin + _BATCH]
                files = list(threads.map(lambda frame: frame.path.read_bytes(), batch))
                with env.begin(write=True) as transaction:
                    for frame, content in zip(batch, files):
                        transaction.put(frame.key.encode(), content, append=True)
                bar.update(len(batch))
            env.sync(True)
        # the third word is a compression level, which nothing reads: the files are taken as they are
        lines = [f'{frame.key}.png ({frame.size[0]},{frame.size[1]},3) 1\n' for frame in frames]
        (temporary / 'meta_info.txt').write_text(''.join(lines), encoding='utf-8')
        temporary.rename(path)
    except lmdb.Error as error:
        raise OSError(f'cannot build {path}: {error}. Nothing of it is left; mend it and run again') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
