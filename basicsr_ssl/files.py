"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from basicsr_ssl.terminal import shortened

_GRACE = 60  # seconds within which a temporary file may not be locked yet
_LONGEST_STEM = 200  # bytes: file systems take 255, and the temporary name has 22 more
_REMEDIES = {
    errno.ENOSPC: 'free some space or choose another folder',
    errno.EDQUOT: 'free some space or choose another folder',
    errno.EFBIG: 'free some space or choose another folder',
    errno.ENAMETOOLONG: 'choose a shorter name',
}


class Unfinished:
    """A file that is being written, see ``unfinished``.

    Attributes:
        name: where to write it.
        target: what it is to be called; None: it is removed.
    """

    def __init__(self, name: str, target: Path) -> None:
        self.name: str = name
        self.target: Path | None = target


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: see ``unfinished``.

    Args:
        path: the file to appear.
        write: gets the temporary name and writes to it.

    Raises:
        OSError: the file could not be written (disk full, no permission), or ``path`` is no regular file. What stood at
            ``path`` is untouched, and no temporary file is left.
    """
    try:
        with unfinished(path) as file:
            write(file.name)
    except Exception as error:
        raise cannot_save(path, error) from error


def cannot_save(path: str | os.PathLike, error: Exception) -> OSError:
    """The error that says why a file could not be written, and how to mend it."""
    # torch reports a full disk as an error of its own
    remedy = _REMEDIES.get(getattr(error, 'errno', None) or errno.ENOSPC, 'choose another folder')
    return OSError(f'cannot save {shortened(os.path.normpath(path))}: {shortened(error)}. Nothing was changed there; '
                   f'{remedy}, then run again')


@contextlib.contextmanager
def unfinished(path: str | os.PathLike) -> Iterator[Unfinished]:
    """A temporary file beside ``path``, renamed in the end; after an error it is removed. Folders are made as needed.

    A new file gets the mode that the umask leaves; one that is replaced keeps its mode and, as far as this process may
    give it, its owner and group. A symbolic link is followed. Temporary files that killed processes have left of this
    file are removed.

    Yields:
        The temporary name, and ``path`` as what it is to be renamed to, which may be changed within its folder.

    Raises:
        OSError: there can be no such file, or ``path`` is no regular file.
    """
    temporary = None
    try:
        target = Path(os.path.realpath(path))
        _regular(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        stem = f'.{_cut(target.name)}.'
        _remove_abandoned(target.parent, stem)
        # opened here and not by tempfile, whose files nobody else may read: this way the umask decides
        name = str(target.with_name(f'{stem}{secrets.token_hex(8)}.tmp'))
        with os.fdopen(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), 'rb+') as stream:
            temporary = name
            _lock(stream)  # as long as this process lives
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            yield (file := Unfinished(name, target))
            if file.target is not None:
                before = _regular(file.target)
                _finish(temporary, mode if before is None else stat.S_IMODE(before.st_mode), before)
                os.replace(temporary, file.target)
    finally:  # after an interruption too
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with open(path, 'rb') as stream:
        return stream_sha256(stream)


def stream_sha256(stream: BinaryIO) -> str:
    """SHA-256 of what an open file holds from here on, as hex digits."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _regular(path: Path) -> os.stat_result | None:
    """What stands at a path; None if nothing does."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f'it is {kind_of(found.st_mode)}, which a file must not replace')
    return found


def kind_of(mode: int) -> str:
    """What stands at a path if it is no ordinary file, in words, from its ``st_mode``."""
    return ('a folder' if stat.S_ISDIR(mode) else 'a pipe' if stat.S_ISFIFO(mode) else
            'a socket' if stat.S_ISSOCK(mode) else 'a device')


def _finish(name: str, mode: int, before: os.stat_result | None) -> None:
    """Mode and owner of a temporary file, and its bytes on the disk."""
    fd = os.open(name, os.O_RDWR)  # by name: a library may have put a file of its own in its place
    try:
        if before is not None:
            for owner, group in ((before.st_uid, -1), (-1, before.st_gid)):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, owner, group)
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def _cut(name: str) -> str:
    while len(os.fsencode(name)) > _LONGEST_STEM:
        name = name[:-1]
    return name


def _lock(stream: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # some network file systems know no locks
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_abandoned(folder: Path, stem: str) -> None:
    """Remove the temporary files of one file whose writers are dead."""
    pattern = re.compile(re.escape(stem) + r'[0-9a-f]{16}\.tmp')
    for name in os.listdir(folder):
        if pattern.fullmatch(name):
            with contextlib.suppress(OSError):  # another process removes them too, or it is not ours
                if _is_abandoned(folder / name):
                    os.unlink(folder / name)


def _is_abandoned(path: Path) -> bool:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), 'rb') as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < _GRACE:
            return False
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
        return True
