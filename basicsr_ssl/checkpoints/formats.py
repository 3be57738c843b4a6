"""What a file is, from its first bytes: so that a refusal can say what was found instead of a network."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from basicsr_ssl.files import kind_of
from basicsr_ssl.terminal import shortened

TORCH_ZIP, TORCH_LEGACY, SAFETENSORS = 'torch zip', 'torch legacy', 'safetensors'
# torch.save before 1.6 starts with this number as a pickle of its own; the pickle's own header stands before it
_LEGACY_MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_SIGNATURES = {
    b'version https://git-lfs': 'a git-lfs pointer, not the file itself: run "git lfs pull" where it was cloned',
    b'\x89PNG': 'a PNG picture',
    b'\xff\xd8\xff': 'a JPEG picture',
    b'\x89HDF': 'an HDF5 file',
    b'\x93NUMPY': 'a NumPy array',
    b'\x1f\x8b': 'a gzip archive: unpack it first',
    b'7z\xbc\xaf': 'a 7z archive: unpack it first',
    b'Rar!': 'a RAR archive: unpack it first',
    b'%PDF': 'a PDF document',
}


@contextmanager
def opened_file(source: str | os.PathLike | BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """A name for messages, and the open file itself, at its beginning.

    All that is read comes through this one file: if another one takes its name meanwhile, the old one is read to its
    end.

    Args:
        source: a path, or a binary file that can be read and sought; the latter stays open.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read: no permission, say.
        ValueError: it is no file but a folder, a pipe or a device.
    """
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, 'name', None)
        source.seek(0)
        yield shortened(name) if isinstance(name, str) else 'the open file', source
        return
    name = shortened(os.fspath(source))
    try:
        # without blocking, since a pipe would wait for somebody to write
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'no such file: {name}') from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise OSError(f'cannot read {name}: {getattr(error, "strerror", None) or error}') from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ValueError(f'{name} is {kind_of(mode)}, not a network file')
    with open(fd, 'rb') as stream:
        yield name, stream


def file_size(stream: BinaryIO) -> int:
    """Bytes of an open file; it is at its beginning afterwards."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return size


def file_format(name: str, stream: BinaryIO) -> str:
    """``TORCH_ZIP``, ``TORCH_LEGACY`` or ``SAFETENSORS``, by the first bytes of an open file.

    Raises:
        ValueError: it is something else; the message says what.
    """
    stream.seek(0)
    head = stream.read(512)
    stream.seek(0)
    if head.startswith(b'PK\x03\x04'):
        return TORCH_ZIP
    if head[:1] == b'\x80' and _LEGACY_MAGIC in head[:40]:
        return TORCH_LEGACY
    if head[8:9] == b'{':
        return SAFETENSORS
    raise ValueError(f'{name} is no network file: it is {_found(head)}')


def _found(head: bytes) -> str:
    if not head.strip(b'\0'):
        return 'full of zeros, as left by an interrupted copy or download' if head else 'empty'
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype html', b'<html')):
        return 'an HTML page, as drives give instead of a large file: open it in a browser to see what it says'
    if head[257:262] == b'ustar' or head.startswith((b'sys_info', b'./sys_info')):
        return 'a tar archive, as torch.save wrote before version 0.2; unpack it, or load and save it with torch 1.x'
    if head[:1] == b'\x08' and head[1:2] < b'\x20' and head[2:3] in (b'\x12', b'\x1a', b'\x22', b'\x3a', b'\x42'):
        return 'an ONNX network, it seems: that cannot be read back, take the weights it was exported from'
    if head[:1] == b'\x80' and head[1:2] in (b'\2', b'\3', b'\4', b'\5'):
        return 'a Python pickle that torch.save did not write, or a damaged .pth'
    try:
        head[:500].decode('ascii')
    except UnicodeDecodeError:
        return 'of no known format, or its beginning is damaged'
    return 'text'
