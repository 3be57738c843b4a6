"""Training states: everything that a training needs to go on as if it had not been interrupted."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from basicsr_ssl.files import write_atomically


def state_file(folder: str, iteration: int) -> str:
    return os.path.join(folder, f'{iteration}.state')


def state_iterations(folder: str) -> list[int]:
    """Iterations of the training states in a folder, ascending; none if there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(stem) for stem, end in map(os.path.splitext, names) if end == '.state' and stem.isdecimal())


def write_state(folder: str, state: Mapping[str, Any], keep: int | None) -> None:
    """Write a state under its iteration, and remove the oldest ones until ``keep`` are left; None keeps all."""
    write_atomically(state_file(folder, state['iter']), lambda temporary: torch.save(dict(state), temporary))
    states = state_iterations(folder)
    for iteration in states[:-(keep or len(states))]:
        os.unlink(state_file(folder, iteration))


def read_state(path: str) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError if the file is no training state, or damaged."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        _ = state['fingerprint'], state['iter']
    except FileNotFoundError:
        raise FileNotFoundError(f'path: resume_state: no such file: {path}') from None
    except Exception as error:
        raise ValueError(f'{path} is no training state of basicsr_ssl, or damaged. Remove it: --auto_resume then '
                         'continues from the newest of the others') from error
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """State of all generators: Python's, NumPy's, PyTorch's of the CPU and of the device."""
    numpy_state: Any = np.random.get_state()
    version, keys, position, has_gauss, cached = numpy_state
    return {'python': random.getstate(),
            'numpy': [version, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state() if device.type == 'cuda' else None}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Inverse of ``random_state``."""
    random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in state['python']))
    version, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and device.type == 'cuda':
        torch.cuda.set_rng_state(state['cuda'].cpu())
