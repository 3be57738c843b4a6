"""What was measured on this machine, kept in files by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from basicsr_ssl.files import write_text
from basicsr_ssl.version import __version__


def cache_file(kind: str, device: torch.device, cache: str | os.PathLike[str] | None = None, **depends: Any) -> Path:
    """The file of what depends on this machine, torch, its threads, and on what else is named.

    Args:
        kind: beginning of the file's name.
        device: on which it is measured.
        cache: folder; None for ``$XDG_CACHE_HOME/basicsr_ssl`` or ``~/.cache/basicsr_ssl``.
        depends: JSON.
    """
    folder = Path(cache) if cache is not None else Path(
        os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'basicsr_ssl'
    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    known = {**depends, 'threads': torch.get_num_threads(), 'machine': machine, 'torch': torch.__version__,
             'version': __version__}
    return folder / f'{kind}_{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]}.json'


def keep(file: Path, text: str) -> None:
    """Write the file if that can be done; what cannot be kept is measured again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(str(file), text + '\n')
    except OSError:
        pass


def _processor() -> str:
    """What the CPU is called, with its vector instructions as torch uses them."""
    name = platform.processor()
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        name = next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        pass
    return f'{name or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}'
