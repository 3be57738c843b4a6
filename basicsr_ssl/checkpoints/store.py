"""The one door for network files: our safetensors, which say what they are, and through it those of other projects."""

from __future__ import annotations

import hashlib
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

from basicsr_ssl import archs  # noqa: F401  (registers what a spec may name)
from basicsr_ssl.checkpoints.formats import SAFETENSORS, file_format
from basicsr_ssl.checkpoints.importers import Imported, read_tensors, read_torch
from basicsr_ssl.files import write_atomically
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import listed
from basicsr_ssl.version import __version__

METADATA_KEY = 'basicsr_ssl'
OWN_KEYS = ('spec', 'versions', 'checksum')  # of the metadata; the rest is provenance
BICUBIC = 'bicubic'


def save_network(net: nn.Module, path: str | os.PathLike, /, **provenance: Any) -> None:
    """Save a network so that ``load_network`` rebuilds it from the file alone.

    The file is safetensors; spec, provenance and the versions of the software stand in its metadata as one JSON string,
    and beside it a checksum. It appears whole or not at all.

    Args:
        net: a network of this package, in any form.
        path: where to; folders are made as needed.
        **provenance: what else the file should say: stage, method, parent's sha256, options, figures (JSON values).

    Raises:
        OSError: the file could not be written.
        TypeError: the network carries no spec, or a provenance value is no JSON.
        ValueError: provenance names ``spec``, ``versions`` or ``checksum``.
    """
    spec = _spec_of(net)
    if taken := [key for key in OWN_KEYS if key in provenance]:
        raise ValueError(f'provenance must not name {", ".join(taken)}: that is not for the caller to say')
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {'spec': json.loads(spec.to_json()), **provenance, 'versions': software_versions()}
    # one entry only: safetensors writes several in an order that differs from run to run
    text = json.dumps({**metadata, 'checksum': _checksum(metadata, tensors)})
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={METADATA_KEY: text}))


def software_versions() -> dict[str, str]:
    """Of what decides the numbers: this package, torch, basicsr, Python."""
    return {'basicsr_ssl': __version__, 'torch': torch.__version__, 'basicsr': basicsr.__version__,
            'python': platform.python_version()}


def load_network(path: str | os.PathLike, param_key: str | None = None) -> nn.Module:
    """Rebuild a network from its file alone, on the CPU, in eval mode. Nothing in the file is executed.

    Args:
        path: a file written by ``save_network`` (dense, gated or compact), a BasicVSR or SpyNet of another project (see
            ``importers``; what a file is follows from its contents), or the word ``bicubic`` for MATLAB's bicubic
            upsampling by 4.
        param_key: ``params`` or ``params_ema`` of a file that has both; None prefers the latter.

    Returns:
        The network; what its file says about it beside the spec stands in its attribute ``provenance``, a dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, corrupted, foreign or of a newer format, or does not fit its spec; the
            message says which.
    """
    if os.fspath(path) == BICUBIC:
        return ARCH_REGISTRY.get('BicubicUpsampler')().eval()
    return import_network(path, param_key)


def import_network(path: str | os.PathLike, param_key: str | None = None) -> nn.Module:
    """``load_network`` for files only: a name is never taken for anything else."""
    found = _read(path, param_key)
    net: Any = build_network(found.spec, found.state, os.fspath(path))
    net.provenance = found.provenance
    return net.eval()


def _read(path: str | os.PathLike, param_key: str | None) -> Imported:
    kind = file_format(path)
    if kind != SAFETENSORS:
        return read_torch(path, kind, param_key)
    header, state = _read_safetensors(path)
    if METADATA_KEY not in header:
        return read_tensors(path, state, param_key)
    metadata = _parsed(path, header[METADATA_KEY])
    try:
        spec = Spec.from_json(json.dumps(metadata['spec']))  # first: a newer format may have another checksum
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if metadata.get('checksum') not in (None, _checksum(metadata, state)):  # older files have none
        raise ValueError(f'{path} is corrupted: its checksum differs. Copy or download it again')
    return Imported(spec, state, {key: value for key, value in metadata.items() if key not in OWN_KEYS})


def build_network(spec: Spec, state: Mapping[str, Tensor] | None = None, source: str = 'the weights') -> nn.Module:
    """Build the network of a spec, with the given weights if any.

    Raises:
        ValueError: unknown arch, arguments that it refuses, or names and shapes that do not fit; all of them are
            listed.
    """
    if state is None:
        return _built(spec, source)
    # A hostile or damaged spec must not decide how much is allocated: a network on no device costs nothing but its
    # Python objects, and of these there are no more than the file has tensors: a block has two weights and two biases.
    blocks = spec.args.get('num_block')
    if isinstance(blocks, int) and 4 * blocks > len(state):
        raise ValueError(f'{source} does not fit its spec: {blocks} blocks in {len(state)} tensors')
    with torch.device('meta'):
        _check_fit(_built(spec, source), state, source)
    net = _built(spec, source)
    net.load_state_dict(state, strict=False)
    return net


def _built(spec: Spec, source: str) -> nn.Module:
    # Only our own archs, which declare groups: a file must not be able to build whatever else BasicSR has registered,
    # some of which reads or downloads files of its own.
    if spec.arch not in ARCH_REGISTRY or not hasattr(ARCH_REGISTRY.get(spec.arch), 'groups'):
        raise ValueError(f'{source}: unknown arch {spec.arch!r}; this version has '
                         f'{", ".join(sorted(name for name in ARCH_REGISTRY.keys() if name.startswith("Prunable")))}')
    if files := [key for key in spec.args if key.endswith('path')]:
        raise ValueError(f'{source}: the spec names a file ({", ".join(files)}); a network is its own file alone')
    try:
        return ARCH_REGISTRY.get(spec.arch)(**spec.build_arguments())
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f'{source}: the spec does not fit {spec.arch}: {error}') from error


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network; every name and shape must fit.

    Raises:
        ValueError: lists the missing and unexpected names and the differing shapes together.
    """
    _check_fit(net, state, source)
    net.load_state_dict(state, strict=False)


def _check_fit(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = net.state_dict()
    constant = {f'{prefix}.{name}'.removeprefix('.') for prefix, module in net.named_modules()
                for name in getattr(module, 'constant_buffers', ())}
    missing = sorted(own.keys() - state.keys() - constant)
    lines = [f'missing: {listed(missing)}'] if missing else []
    if unexpected := sorted(state.keys() - own.keys()):
        lines.append(f'unexpected: {listed(unexpected)}')
    common = sorted(own.keys() & state.keys())
    if shapes := [f'{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}'
                  for name in common if state[name].shape != own[name].shape]:
        lines.append(f'different shapes: {listed(shapes)}')
    if types := [f'{name} is {state[name].dtype}' for name in common
                 if state[name].is_floating_point() != own[name].is_floating_point()]:
        lines.append(f'no weights: {listed(types)}')
    if lines:
        raise ValueError(f'{source} does not fit the network {type(net).__name__}:\n  ' + '\n  '.join(lines))


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a file of this project says about itself: spec, provenance, versions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, damaged, or not written by this project.
    """
    if file_format(path) != SAFETENSORS:
        raise ValueError(f'{path} is a foreign file, of torch.save: only our safetensors say where they come from')
    with _opened(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f'{path} is a foreign file: safetensors, but not of basicsr_ssl, without a network spec')
    return _parsed(path, text)


def _parsed(path: str | os.PathLike, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is corrupted: damaged metadata. Copy or download it again') from error
    if not isinstance(metadata, dict) or 'spec' not in metadata:
        raise ValueError(f'{path} is corrupted: damaged metadata, without a spec. Copy or download it again')
    return metadata


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors."""
    with _opened(path) as file:
        try:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, TypeError, RuntimeError) as error:
            raise ValueError(f'{path} is corrupted: {error}') from error


def _opened(path: str | os.PathLike) -> Any:
    try:
        return safe_open(path, framework='pt')
    except SafetensorError as error:
        raise ValueError(f'{path} is {_damage(path)}. Copy or download it again') from error


def _damage(path: str | os.PathLike) -> str:
    """Why a safetensors file cannot be opened: its header stands first, behind its length, and names what follows."""
    size = os.path.getsize(path)
    with open(path, 'rb') as stream:
        length = int.from_bytes(stream.read(8), 'little')
        if 8 + length > size:
            return f'truncated: a safetensors file of {size:,} bytes whose header alone takes {length:,}'
        try:
            entries = json.loads(stream.read(length))
            needed = 8 + length + max(entry['data_offsets'][1] for name, entry in entries.items()
                                      if name != '__metadata__')
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return 'corrupted: a safetensors file with a damaged header'
    return (f'truncated: {needed:,} bytes by its header, {size:,} in fact' if needed > size else
            'corrupted: a safetensors file whose header contradicts its contents')


def _checksum(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what the file says, but for the checksum, and holds: name, type, shape and bytes of every tensor."""
    said = {key: value for key, value in metadata.items() if key != 'checksum'}
    digest = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _spec_of(net: nn.Module) -> Spec:
    spec = getattr(net, 'spec', None)
    if not isinstance(spec, Spec):
        raise TypeError(f'{type(net).__name__} carries no spec; networks of basicsr_ssl are named Prunable...')
    return spec
