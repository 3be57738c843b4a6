"""Writing files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; folders are made as needed.

    Args:
        path: the file to appear.
        write: gets the temporary name and writes to it.

    Raises:
        OSError: the file could not be written (disk full, no permission). What stood at ``path`` is untouched, and
            no temporary file is left.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # opened here and not by tempfile, whose files nobody else may read: this way the umask decides
        name = str(path.with_name(f'.{path.name}.{secrets.token_hex(8)}.tmp'))
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary = name
        write(temporary)
        with open(temporary, 'rb+') as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except Exception as error:
        # torch and safetensors report a full disk as errors of their own
        raise OSError(f'cannot save {path}: {error}. Nothing was changed there; free some space or choose another '
                      'folder, then run again') from error
    finally:  # after an interruption too
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
