"""Files that ``torch.save`` wrote, read as data: nothing in them is executed, and nothing is taken on trust.

``torch.load(weights_only=True)`` is safe, but not enough here. It refuses the pickled modules in which the SSL authors
keep their weights; for a file of the older format it reserves the memory that the file claims (2.8 GB for a kilobyte);
and it gives views that repeat one element a billion times. Here tensors stay records until they are asked for, and are
checked against the bytes that are there. One reader for all files also means one set of messages.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch

from basicsr_ssl.checkpoints.formats import TORCH_ZIP, file_size
from basicsr_ssl.checkpoints.pickles import Inert, Name, Reference, read_pickle
from basicsr_ssl.checkpoints.stored import MOST_SIDES, StoredFile, StoredTensor
from basicsr_ssl.terminal import listed, shortened

_DTYPES = {'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16,
           'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
           'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8,
           'BoolStorage': torch.bool}
_DTYPES_BY_NAME = {str(dtype).removeprefix('torch.'): dtype for dtype in _DTYPES.values()}
_LEGACY_PROTOCOL = 1001
# bounds far above any network's: what a few bytes describe many times over must not take hours to read
_LARGEST_PICKLE = 1 << 28
_MOST_ENTRIES = 50_000
_LONGEST_NAME = 1000
_MOST_ARGUMENTS = 16  # of the call that makes a tensor


@contextmanager
def opened(name: str, stream: BinaryIO, kind: str) -> Iterator[StoredFile]:
    """Read an open file of ``torch.save``.

    Args:
        name: of the file, for messages.
        stream: the file, at its beginning.
        kind: what ``file_format`` says of it, ``TORCH_ZIP`` or ``TORCH_LEGACY``.

    Raises:
        ValueError: it is truncated, corrupted, or no such file after all; the message says which.
    """
    with _opened_zip(name, stream) if kind == TORCH_ZIP else _opened_legacy(name, stream) as file:
        yield file


def stored(value: Any) -> StoredTensor | None:
    """The tensor that a record stands for; None if it stands for none, or for one that is not dense and on its own.

    Raises:
        ValueError: the record is a tensor's, but makes no sense.
    """
    if isinstance(value, Inert) and value.made_by(*_PARAMETER) and isinstance(value.args, tuple) and value.args:
        value = value.args[0]
    if not (isinstance(value, Inert) and value.made_by(*_REBUILD) and isinstance(value.args, tuple)):
        return None
    try:
        # what is unpacked is copied, for each tensor anew: so it must be short
        if len(value.args) > _MOST_ARGUMENTS or len(value.args[0].id) > _MOST_ARGUMENTS:
            raise ValueError('a tensor is described at a length that makes no sense')
        reference, offset, shape, strides, *rest = value.args
        word, kind, key, _, count, *view = reference.id
        dtype = _dtype_of(kind, rest)
        if word != 'storage' or any(part is not None for part in view) or dtype is None:
            return None
        if kind.name == 'UntypedStorage':
            count, left = divmod(count, dtype.itemsize)
            if left:
                raise ValueError('a storage holds no whole number of elements')
        if not len(shape) == len(strides) <= MOST_SIDES:
            raise ValueError('a tensor has a shape that makes no sense')
        numbers = (count, offset, *shape, *strides)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError('a tensor has sizes that make no sense')
        if not isinstance(key, str):
            raise ValueError('a storage is named in a way that makes no sense')
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError('a tensor is described in a way that makes no sense') from error
    return StoredTensor(key, dtype, count, offset, tuple(shape), tuple(strides))


def module_state(module: Any) -> dict[str, StoredTensor]:
    """State dict of a pickled ``nn.Module`` that was read as data: its parameters and buffers by their full names.

    Raises:
        ValueError: a tensor makes no sense, or there are more modules and tensors than any network has.
    """
    state: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    left, met = [('', module)], 0
    while left:
        prefix, part = left.pop()
        if not isinstance(part, Inert) or not isinstance(part.state, dict) or id(part) in seen:
            continue
        seen.add(id(part))  # a module may contain itself, and many modules may share one table
        parameters, buffers, modules = (as_dict(part.state.get(table))
                                        for table in ('_parameters', '_buffers', '_modules'))
        met += 1 + len(parameters) + len(buffers) + len(modules)
        if met > _MOST_ENTRIES:
            raise ValueError(f'a pickled network has more than {_MOST_ENTRIES:,} modules and tensors')
        # modules within modules, and many that share a table, may have one long name many times
        longest = max((len(str(name)) for table in (parameters, buffers, modules) for name in table), default=0)
        if len(prefix) + longest > _LONGEST_NAME:
            raise ValueError(f'a pickled network has names of more than {_LONGEST_NAME:,} characters')
        for name, value in (*parameters.items(), *buffers.items()):
            if (view := stored(value)) is not None:
                state[f'{prefix}{name}'] = view
        left += [(f'{prefix}{name}.', child) for name, child in modules.items()]
    return state


def as_dict(value: Any) -> dict[Any, Any]:
    """A dict as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


_PARAMETER = (Name('torch._utils', '_rebuild_parameter'), Name('torch._utils', '_rebuild_parameter_with_state'))
_REBUILD = tuple(Name('torch._utils', f'_rebuild_tensor{version}') for version in ('', '_v2', '_v3'))


def _dtype_of(storage: Name, rest: list[Any]) -> torch.dtype | None:
    if storage.name != 'UntypedStorage':
        return _DTYPES.get(storage.name)
    # the third version: the storage is bytes, and the type stands after requires_grad and hooks
    named = rest[2] if len(rest) > 2 else None
    return _DTYPES_BY_NAME.get(named.name) if isinstance(named, Name) and named.module == 'torch' else None


@contextmanager
def _opened_zip(path: str, stream: BinaryIO) -> Iterator[StoredFile]:
    size = file_size(stream)
    try:
        archive = zipfile.ZipFile(stream)
    except OSError:
        raise
    except Exception as error:  # its table of contents stands at the end
        raise ValueError(f'{path} is truncated: a zip archive, as torch.save writes, without its end. Copy or download '
                         'it again') from error
    with archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError(f'{path} is corrupted, or made to deceive: it holds two entries of one name')
        pickles = [name for name in entries if name.endswith('data.pkl') and name.count('/') <= 1]
        if len(pickles) != 1 or any('/code/' in name for name in entries):
            what = 'TorchScript program: take' if pickles else 'zip archive of something else: unpack it, or take'
            raise ValueError(f'{path} is no network file: it is a {what} a file that torch.save made of a state dict '
                             f'(this one holds {listed(sorted(entries), 4)})')
        folder = pickles[0].removesuffix('data.pkl')
        whole = sum(info.compress_size for info in entries.values())
        wrong = [name for name, info in entries.items()
                 if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
                 or info.flag_bits & 1 or not 0 <= info.header_offset < size]
        if wrong or whole > size:
            raise ValueError(f'{path} is corrupted, or was packed again: {listed(wrong, 4) or "its entries"} '
                             'should lie in the archive as they are, uncompressed')

        def read(name: str, expected: int | None = None) -> bytes:
            info = entries.get(folder + name)
            if info is None or expected not in (None, info.file_size):
                raise ValueError(f'{path} is corrupted: {shortened(folder + name)} is missing from the archive, or not '
                                 f'of {expected:,} bytes')
            try:
                return archive.read(info)
            except Exception as error:  # checksums, names and sizes that differ, and whatever damaged bytes cause
                raise ValueError(f'{path} is corrupted: {shortened(folder + name)} cannot be read ({_short(error)}). '
                                 'Copy or download it again') from error

        if folder + 'byteorder' in entries and read('byteorder', None) != b'little':
            raise ValueError(f'{path} was saved on a big-endian machine; load and save it again on an ordinary one')
        yield StoredFile(path, _parsed(path, read('data.pkl')), size, lambda key, count: read(f'data/{key}', count))


class _Within:
    """A stream that reads no more than is there, whatever is asked for: memory would be reserved for all of it."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, max(0, self.size - self.tell())))


@contextmanager
def _opened_legacy(path: str, stream: BinaryIO) -> Iterator[StoredFile]:
    size = file_size(stream)
    references: list[Reference] = []
    pickles = _Within(stream, size)
    try:
        _, protocol, system, content, keys = (read_pickle(pickles, references) for _ in range(5))
    except ValueError as error:
        state = 'truncated' if stream.tell() >= size else 'corrupted'
        raise ValueError(f'{path} is {state}: {_short(error)}. Copy or download it again') from error
    if protocol != _LEGACY_PROTOCOL or as_dict(system).get('little_endian') is not True:
        raise ValueError(f'{path} is corrupted, or was saved on a big-endian machine')
    places = _legacy_places(path, stream, size, keys, references)

    def read(key: str, expected: int) -> bytes:
        begin, end = places.get(key, (0, 0))
        if end - begin != expected:
            raise ValueError(f'{path} is corrupted: the storage {shortened(key)} has {end - begin:,} bytes, its tensor '
                             f'expects {expected:,}')
        stream.seek(begin)
        return stream.read(expected)

    yield StoredFile(path, content, size, read)


def _legacy_places(path: str, stream: BinaryIO, size: int, keys: Any,
                   references: list[Reference]) -> dict[str, tuple[int, int]]:
    """First byte and end of every storage: they follow one another, each behind its number of elements (int64)."""
    sizes = {}
    for reference in references:
        if isinstance(reference.id, tuple) and len(reference.id) > 2 and isinstance(reference.id[2], str):
            dtype = _DTYPES.get(getattr(reference.id[1], 'name', ''))
            sizes[reference.id[2]] = dtype.itemsize if dtype else None
    if not isinstance(keys, list):
        raise ValueError(f'{path} is corrupted: its list of storages makes no sense')
    places, at = {}, stream.tell()
    for key in keys:
        if not isinstance(key, str) or not sizes.get(key):
            raise ValueError(f'{path} is corrupted: it holds a storage that no tensor describes')
        stream.seek(at)
        count = int.from_bytes(stream.read(8), 'little')
        begin, end = at + 8, at + 8 + count * sizes[key]
        if end > size:
            raise ValueError(f'{path} is truncated: of the storage {shortened(key)}, {end - size:,} bytes are missing. '
                             'Copy or download it again')
        places[key], at = (begin, end), end
    return places


def _parsed(path: str, data: bytes) -> Any:
    if len(data) > _LARGEST_PICKLE:
        raise ValueError(f'{path} is no network file: its description alone has {len(data):,} bytes')
    try:
        return read_pickle(io.BytesIO(data))
    except ValueError as error:
        raise ValueError(f'{path} is corrupted: {_short(error)}. Copy or download it again') from error


def _short(error: Exception) -> str:
    return shortened(str(error) or type(error).__name__, 200)
