"""The one door for network files: safetensors that say what they are."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import basicsr
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from basicsr_ssl.checkpoints.files import write_atomically
from basicsr_ssl.checkpoints.importers import infer_basicvsr, read_basicsr
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.version import __version__

METADATA_KEY = 'basicsr_ssl'
BICUBIC = 'bicubic'


def save_network(net: nn.Module, path: str | os.PathLike, **provenance: Any) -> None:
    """Save a network so that ``load_network`` rebuilds it from the file alone.

    The file is safetensors; spec, provenance and the versions of the software stand in its metadata as one JSON string.
    It appears whole or not at all.

    Args:
        net: a network of this package, in any form.
        path: where to; folders are made as needed.
        **provenance: what else the file should say: stage, method, parent's sha256, options, figures (JSON values).

    Raises:
        OSError: the file could not be written.
        TypeError: the network carries no spec, or a provenance value is no JSON.
    """
    spec = _spec_of(net)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {'spec': json.loads(spec.to_json()), **provenance, 'versions': {
        'basicsr_ssl': __version__, 'torch': torch.__version__, 'basicsr': basicsr.__version__,
        'python': platform.python_version()}}
    text = json.dumps(metadata)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={METADATA_KEY: text}))


def load_network(path: str | os.PathLike, param_key: str | None = None) -> nn.Module:
    """Rebuild a network from its file alone, on the CPU, in eval mode.

    Args:
        path: a file written by ``save_network`` (dense, gated or compact), a BasicVSR ``.pth`` as BasicSR writes it, or
            the word ``bicubic`` for MATLAB's bicubic upsampling by 4.
        param_key: ``params`` or ``params_ema`` of a ``.pth``; None prefers the latter.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, not of this project, of a newer format, or does not fit its spec.
    """
    if os.fspath(path) == BICUBIC:
        return ARCH_REGISTRY.get('BicubicUpsampler')().eval()
    if os.fspath(path).endswith('.safetensors'):
        described, state = json.dumps(read_metadata(path)['spec']), _read_tensors(path)
    else:
        described, state = None, read_basicsr(path, param_key)
    try:
        spec = infer_basicvsr(state) if described is None else Spec.from_json(described)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return build_network(spec, state, os.fspath(path)).eval()


def build_network(spec: Spec, state: Mapping[str, Tensor] | None = None, source: str = 'the weights') -> nn.Module:
    """Build the network of a spec, with the given weights if any.

    Raises:
        ValueError: unknown arch, arguments that it refuses, or names and shapes that do not fit; all of them are
            listed.
    """
    # Only our own archs, which declare groups: a file must not be able to build whatever else BasicSR has registered,
    # some of which reads or downloads files of its own.
    if spec.arch not in ARCH_REGISTRY or not hasattr(ARCH_REGISTRY.get(spec.arch), 'groups'):
        raise ValueError(f'{source}: unknown arch {spec.arch!r}; this version has '
                         f'{", ".join(sorted(name for name in ARCH_REGISTRY.keys() if name.startswith("Prunable")))}')
    try:
        net = ARCH_REGISTRY.get(spec.arch)(**spec.build_arguments())
    except (TypeError, ValueError) as error:
        raise ValueError(f'{source}: the spec does not fit {spec.arch}: {error}') from error
    if state is not None:
        load_strictly(net, state, source)
    return net


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network; every name and shape must fit.

    Raises:
        ValueError: lists the missing and unexpected names and the differing shapes together.
    """
    own = net.state_dict()
    # SpyNet's mean and std are constants that some files leave out
    missing = sorted(name for name in own.keys() - state.keys() if name not in ('spynet.mean', 'spynet.std'))
    lines = [f'missing: {_listed(missing)}'] if missing else []
    if unexpected := sorted(state.keys() - own.keys()):
        lines.append(f'unexpected: {_listed(unexpected)}')
    if shapes := [f'{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}'
                  for name in sorted(own.keys() & state.keys()) if state[name].shape != own[name].shape]:
        lines.append(f'different shapes: {_listed(shapes)}')
    if lines:
        raise ValueError(f'{source} does not fit the network {type(net).__name__}:\n  ' + '\n  '.join(lines))
    net.load_state_dict(state, strict=False)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a file of this project says about itself: spec, provenance, versions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, damaged, or not written by this project.
    """
    with _open(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f'{path} is a safetensors file, but not one of basicsr_ssl: it carries no network spec')
    try:
        metadata = json.loads(text)
        metadata['spec']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: damaged metadata') from error
    return metadata


def _read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _open(path: str | os.PathLike) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such file: {path}')
    try:
        return safe_open(path, framework='pt')
    except SafetensorError as error:
        raise ValueError(f'{path} is truncated or not a safetensors file: {error}') from error


def _spec_of(net: nn.Module) -> Spec:
    spec = getattr(net, 'spec', None)
    if not isinstance(spec, Spec):
        raise TypeError(f'{type(net).__name__} carries no spec; networks of basicsr_ssl are named Prunable...')
    return spec


def _listed(items: list[str], most: int = 8) -> str:
    return ', '.join(items[:most]) + (f' and {len(items) - most} more' if len(items) > most else '')
