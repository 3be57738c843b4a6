"""What an exported file says of itself, for programs and for people."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from basicsr_ssl.files import file_sha256
from basicsr_ssl.terminal import plain, shortened

KEY = 'basicsr_ssl'  # of the metadata, one JSON string
TORCH_ENTRY = f'{KEY}.json'  # name of that string in a .pt2
FORMAT = 1
#: By suffix, what runs a file; the first one is what it was made for.
RUNTIMES = {'.onnx': ('onnxruntime', 'openvino'), '.xml': ('openvino',), '.pt2': ('torch',)}
_NEEDED = {'form', 'precision', 'task', 'scale', 'frames', 'every', 'lr_size', 'multiple', 'inputs', 'outputs', 'state'}
_LARGEST = 1 << 24  # bytes of metadata


def load_module(name: str) -> Any:
    """A module of the extra ``export``.

    Raises:
        ModuleMissing: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ModuleMissing(f'{name} is needed for this and cannot be imported ({error}): pip install -c '
                            "constraints.txt -e '.[export]'") from error


@cache
def openvino_core() -> Any:
    """OpenVINO's Core, one for the life of the process.

    With each Core that compiles, OpenVINO gives the thread a stack for its signals, and frees it with the Core. Of two
    Cores that do not end in the reverse order of their beginnings, the second one's end puts the first one's freed
    stack back, and the next signal kills the process (openvino 2026.4).

    Raises:
        ModuleMissing: OpenVINO is not installed.
    """
    return load_module('openvino').Core()


class ModuleMissing(ValueError):
    """A library of the extra ``export`` is not installed."""


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a file is named as exported ones are."""
    return Path(path).suffix in RUNTIMES


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What an exported file says of itself: ``command.described`` tells the keys.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, was written by another program, or by a newer version of this one.
    """
    readers = {'.onnx': _read_onnx, '.xml': _read_ir, '.pt2': _read_torch}
    path, name = Path(path), shortened(path)
    if not is_exported(path):
        raise ValueError(f'{name} is no exported network: they end in {", ".join(RUNTIMES)}')
    try:
        text = readers[path.suffix](path)
        metadata = None if text is None else json.loads(text)
    except (OSError, ModuleMissing):
        raise
    except Exception as error:  # whatever a parser makes of a file that is none of its own
        raise ValueError(f'{name} is damaged, or no {path.suffix} file: {shortened(error)}. Export the network '
                         'again') from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get('version'), int) or _NEEDED - metadata.keys():
        raise ValueError(f'{name} was not written by `basicsr-ssl export`: it does not say what it takes and gives')
    if metadata['version'] > FORMAT:
        raise ValueError(f'{name} is of version {metadata["version"]} of exported files, this version of basicsr_ssl '
                         f'reads {FORMAT}: install a newer basicsr_ssl')
    return metadata


def _read_onnx(path: Path) -> str | None:
    model = load_module('onnx').load_model(path, load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _read_ir(path: Path) -> str | None:
    found = ElementTree.parse(path).getroot().find(f'rt_info/{KEY}')
    return None if found is None else found.get('value')


def _read_torch(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        entry = next((one for one in archive.infolist() if one.filename.endswith(f'/{TORCH_ENTRY}')), None)
        if entry is None:
            return None
        if entry.file_size > _LARGEST:
            raise ValueError(f'{entry.file_size:,} bytes of metadata')
        return archive.read(entry).decode()


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What an exported file is, as JSON values: ``file``, ``size`` (bytes, with those of IR's ``.bin``), ``sha256``,
    ``runtimes`` that run it, and its metadata.

    Raises:
        OSError, ValueError: as ``read_metadata``.
    """
    path = Path(path)
    metadata = read_metadata(path)
    files = [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]
    return {'file': os.fspath(path), 'size': sum(file.stat().st_size for file in files), 'sha256': file_sha256(path),
            'runtimes': list(RUNTIMES[path.suffix]), **metadata}


def format_info(described: Mapping[str, Any]) -> str:
    """The metadata, or what ``describe`` gives, as text for a terminal, whatever the file says."""
    def mapping(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    source, size = mapping(described.get('source')), described.get('size')
    lines = [f'{described.get("form")} form in {described.get("precision")}, for {described.get("format")}; task '
             f'{described.get("task")}, scale {described.get("scale")}']
    if 'file' in described:
        lines += [f'file      {described["file"]}, {size:,} bytes', f'sha256    {described["sha256"]}']
    for name, told in mapping(described.get('inputs')).items():
        more = mapping(described.get('state')).get(name)
        shape = mapping(told).get('shape')
        lines.append(f'input     {name} {shape}' + (f', after the first call {more}' if more else ''))
    lines += [f'output    {name} {mapping(told).get("shape")}' for name, told in
              mapping(described.get('outputs')).items()]
    lines += [f'from      {source.get("file")}, sha256 {source.get("sha256")}',
              f'licence   {described.get("licence")}']
    for name, one in mapping(described.get('proof')).items():
        psnr, most = (mapping(one).get(key) for key in ('psnr', 'max_difference'))
        if isinstance(psnr, float) and isinstance(most, float):
            lines.append(f'proof     {psnr:.1f} dB against torch on {name} frames, largest difference {most:.2g}')
    versions = ', '.join(f'{name} {version}' for name, version in mapping(described.get('versions')).items())
    return '\n'.join(shortened(plain(line)) for line in [*lines, f'made with {versions}'])
