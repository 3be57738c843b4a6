"""Reading BasicSR's own files: from a ``.pth`` to a state dict and a spec."""

from __future__ import annotations

import os
import pickle
import re

import torch
from torch import Tensor

from basicsr_ssl.pruning.spec import Spec


def read_basicsr(path: str | os.PathLike, param_key: str | None = None) -> dict[str, Tensor]:
    """State dict of a ``.pth`` as BasicSR writes it. Nothing in the file is executed.

    Args:
        path: a file holding ``params`` and / or ``params_ema``, or a plain state dict; ``module.`` prefixes are
            dropped.
        param_key: which of the two; None prefers ``params_ema``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, needs code to be executed, or holds no such entry.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such file: {path}')
    with open(path, 'rb') as stream:  # opened here, so that a file that may not be read is not called damaged
        try:
            content = torch.load(stream, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f'{path} is damaged, or holds more than tensors: reading that would execute code from the '
                             'file, which is not done here') from error
        except Exception as error:  # damaged bytes make torch's reader fail in a dozen ways, struct.error among them
            raise ValueError(f'{path} is truncated, damaged or not a PyTorch file') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, expected a dict of tensors')
    keys = [key for key in ('params_ema', 'params') if key in content]
    if param_key is not None and keys:
        if param_key not in keys:
            raise ValueError(f'{path} has no {param_key!r}, only {", ".join(keys)}: correct param_key_g')
        keys = [param_key]
    state = content[keys[0]] if keys else content
    if not isinstance(state, dict):
        raise ValueError(f'{path}: {keys[0]!r} holds a {type(state).__name__}, expected a dict of tensors')
    wrong = [name for name, tensor in state.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if wrong:
        raise ValueError(f'{path}: {wrong[0]!r} is no tensor; expected a file saved by BasicSR (params, params_ema)')
    return {name.removeprefix('module.'): tensor for name, tensor in state.items()}


def infer_basicvsr(state: dict[str, Tensor]) -> Spec:
    """Spec of the dense BasicVSR that a state dict with BasicSR's names belongs to.

    Raises:
        ValueError: the names are not those of a BasicVSR.
    """
    pattern = re.compile(r'forward_trunk\.main\.2\.(\d+)\.conv1\.weight')
    blocks = [int(match[1]) for name in state if (match := pattern.fullmatch(name))]
    needed = ('forward_trunk.main.0.weight', 'upconv1.weight', 'conv_hr.weight', 'conv_last.weight')
    missing = [name for name in needed if name not in state or state[name].dim() != 4]
    if missing or not blocks:
        raise ValueError('not the weights of a BasicVSR as BasicSR names them: missing or misshapen '
                         f'{", ".join(missing) or "the residual blocks"}')
    return Spec('PrunableBasicVSR', {
        'num_feat': state['forward_trunk.main.0.weight'].shape[0],
        'num_block': max(blocks) + 1,
        'tail_feat': state['conv_hr.weight'].shape[0],
        'scale': 4 if 'upconv2.weight' in state else 2,
        'bidirectional': 'backward_trunk.main.0.weight' in state,
        'act': 'lrelu',
        'flow': 'spynet' if any(name.startswith('spynet.') for name in state) else 'none',
    })
