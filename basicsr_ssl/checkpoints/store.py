"""The one door for network files: our safetensors, which say what they are, and through it those of other projects."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import basicsr
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parallel import DistributedDataParallel

from basicsr_ssl import archs  # noqa: F401  (registers what a spec may name)
from basicsr_ssl.checkpoints import safetensors_files
from basicsr_ssl.checkpoints.formats import SAFETENSORS, file_format, opened_file
from basicsr_ssl.checkpoints.importers import Imported, read_state, read_tensors, read_torch
from basicsr_ssl.checkpoints.safetensors_files import LARGEST_HEADER
from basicsr_ssl.checkpoints.sparse import from_sparse, to_sparse
from basicsr_ssl.files import write_atomically
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import listed, shortened
from basicsr_ssl.version import __version__

METADATA_KEY = 'basicsr_ssl'
OWN_KEYS = ('spec', 'versions', 'checksum', 'sparse')  # of the metadata; the rest is provenance
BICUBIC = 'bicubic'
# bounds far above any network's
MOST_COUNTED = 10_000  # sum of the integers among the arguments
MOST_LEVELS = 100  # of nested provenance
_COMPUTING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def save_network(net: nn.Module, path: str | os.PathLike, /, *, encoding: Literal['dense', 'sparse'] = 'dense',
                 **provenance: Any) -> None:
    """Save a network so that ``load_network`` rebuilds it from the file alone.

    The file is safetensors; spec, provenance and the versions of the software stand in its metadata as one JSON string,
    and beside it a checksum. It appears whole or not at all.

    Args:
        net: a network of this package, in any form; also within ``torch.compile``, ``DataParallel`` or
            ``DistributedDataParallel``.
        path: where to; folders are made as needed. See ``write_atomically`` for modes, owners and links.
        encoding: of masked weights: ``'dense'``, all of them and a mask of a byte each, or ``'sparse'``, a bit each and
            those that are left (``sparse``); a network without a mask is written alike. ``load_network`` reads both.
        **provenance: what else the file should say: stage, method, parent's sha256, options, figures (JSON values).

    Raises:
        OSError: the file could not be written.
        TypeError: the network carries no spec, or a provenance value is no JSON.
        ValueError: provenance names ``spec``, ``versions``, ``checksum`` or ``sparse``, has two keys that are one in
            JSON, or is nested too deep; or the network is not what its spec says, so that the file could not be loaded:
            layers were replaced, or carry masks or parametrizations of others.
    """
    net = _unwrapped(net)
    spec = _spec_of(net)
    if taken := [key for key in OWN_KEYS if key in provenance]:
        raise ValueError(f'provenance must not name {", ".join(taken)}: that is not for the caller to say')
    # copies, since two names of one tensor are two tensors in the file
    tensors = {_bare(name): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in net.state_dict().items()}
    _check_what_is_saved(net, spec, tensors)
    shapes = {}
    if encoding == 'sparse':
        tensors, shapes = to_sparse(tensors)
    metadata = {'spec': json.loads(spec.to_json()), **({'sparse': shapes} if shapes else {}), **_as_json(provenance),
                'versions': software_versions()}
    # one entry only: safetensors writes several in an order that differs from run to run
    text = json.dumps({**metadata, 'checksum': _checksum(metadata, tensors)})
    if len(text) > LARGEST_HEADER // 2:
        raise ValueError(f'the provenance takes {len(text):,} bytes; at most {LARGEST_HEADER // 2:,} fit into a file')
    content = save(tensors, {METADATA_KEY: text})
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


def _unwrapped(net: nn.Module) -> nn.Module:
    """The network within what distribution and ``torch.compile`` put around it."""
    while True:
        inner = net.module if isinstance(net, (nn.DataParallel, DistributedDataParallel)) else getattr(
            net, '_orig_mod', None)
        if not isinstance(inner, nn.Module):
            return net
        net = inner


def _bare(name: str) -> str:
    return name.replace('_orig_mod.', '')  # a part of the network was compiled


def _check_what_is_saved(net: nn.Module, spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless the network is the one that its spec builds."""
    with torch.device('meta'):
        built = _built(spec, 'the network')
    remedies = [remedy for ending, remedy in (
        ('_orig', 'call torch.nn.utils.prune.remove, or prune_network instead'),
        ('_g', 'call torch.nn.utils.remove_weight_norm'),
        ('.original', 'call torch.nn.utils.parametrize.remove_parametrizations'),
        ('.original0', 'call torch.nn.utils.parametrize.remove_parametrizations'))
        if any(name.endswith(ending) for name in tensors.keys() - built.state_dict().keys())]
    try:
        _check_fit(built, tensors, 'what it holds')
        own, expected = _layers(net), _layers(built)
        if changed := [f'{name} is {own.get(name, "gone")}, the spec builds {layer}' for name, layer in expected.items()
                       if own.get(name) != layer] + [f'{name} is new' for name in own if name not in expected]:
            raise ValueError(f'it is not the network that its spec builds:\n  {listed(changed)}')
    except ValueError as error:
        remedy = f'\nBefore saving, {remedies[0]}' if remedies else ''
        raise ValueError(f'the network cannot be saved, since its file could not be loaded: {error}{remedy}') from error


def _layers(net: nn.Module) -> dict[str, str]:
    """Type and settings of every module without parts, by name."""
    return {_bare(f'{name}.').removesuffix('.'): f'{type(module).__name__}({module.extra_repr()})'
            for name, module in net.named_modules(remove_duplicate=False) if not any(module.children())}


def _as_json(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a file will say: as JSON gives it back, so that the checksum is of that.

    Raises:
        TypeError: a value is no JSON.
        ValueError: keys that are one in JSON, such as 1 and '1', or a value nested too deep.
    """
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError('provenance has two keys that are one in JSON, such as 1 and "1"')
        return found

    try:
        said = json.loads(json.dumps(dict(provenance)), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _is_deep(said):
        raise ValueError(_TOO_DEEP)
    return said


_TOO_DEEP = f'provenance is nested in more than {MOST_LEVELS} levels'


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [part for whole in level for part in (
            whole.values() if isinstance(whole, dict) else whole if isinstance(whole, list) else ())]
    return bool(level)


def software_versions() -> dict[str, str]:
    """Of what decides the numbers: this package, torch, basicsr, Python."""
    return {'basicsr_ssl': __version__, 'torch': torch.__version__, 'basicsr': basicsr.__version__,
            'python': platform.python_version()}


def load_network(source: str | os.PathLike | BinaryIO | Mapping[str, Any], param_key: str | None = None, *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                 assume: Mapping[str, Any] | None = None) -> nn.Module:
    """Rebuild a network from its file alone, in eval mode. Nothing in the file is executed.

    Args:
        source: a file written by ``save_network`` (dense, gated or compact), a BasicVSR, SpyNet, EDSR or SwinIR of
            another project (see ``importers``; what a file is follows from its contents), or ``bicubic`` for MATLAB's
            bicubic upsampling by 4. Also an open binary file, or a state dict.
        param_key: ``params`` or ``params_ema`` of a file that has both; None prefers the latter.
        device: where to; None is the CPU.
        dtype: of the weights. None is the file's own, if all its weights have one of float16, bfloat16, float32 and
            float64; else float32.
        assume: arguments of the network that a file of another project cannot tell: ``{'act': 'relu'}`` or
            ``{'img_range': 2}`` say, which are else what is usual there; or ``{'flow': 'none'}``, when tensors are
            missing, and without this word the file is taken for an incomplete one.

    Returns:
        The network; what its file says about it beside the spec stands in its attribute ``provenance``, a dict.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: the file is truncated, corrupted, incomplete, foreign or of a newer format, or does not fit its
            spec; the message says which.
    """
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) == BICUBIC:
        return ARCH_REGISTRY.get('BicubicUpsampler')().eval()
    return import_network(source, param_key, device=device, dtype=dtype, assume=assume)


def import_network(source: str | os.PathLike | BinaryIO | Mapping[str, Any], param_key: str | None = None, *,
                   device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                   assume: Mapping[str, Any] | None = None) -> nn.Module:
    """``load_network`` for files only: a name is never taken for anything else."""
    found = read_network(source, param_key, assume)
    name = shortened(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else 'what was read'
    net: Any = build_network(found.spec, found.state, name, dtype or _common_dtype(found.state))
    net.provenance = found.provenance
    return net.to(device).eval()


def _common_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    found = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 and found <= _COMPUTING else torch.float32


def read_network(source: str | os.PathLike | BinaryIO | Mapping[str, Any], param_key: str | None = None,
                 assume: Mapping[str, Any] | None = None) -> Imported:
    """What ``load_network`` builds its network from; with its arguments and errors."""
    if isinstance(source, Mapping):
        return read_state(source, param_key, assume)
    with opened_file(source) as (name, stream):
        kind = file_format(name, stream)
        if kind != SAFETENSORS:
            return read_torch(name, stream, kind, param_key, assume)
        header, file = safetensors_files.opened(name, stream)
        if METADATA_KEY not in header:
            _check_foreign(name, header)
            return read_tensors(name, stream, file, param_key, assume)
        metadata = _parsed(name, header[METADATA_KEY])
        try:
            spec = Spec.from_json(json.dumps(metadata['spec']))  # first: a newer format may have another checksum
        except ValueError as error:
            raise ValueError(f'{name}: {shortened(error)}') from error
        state = file.tensors(file.content)
    checksum = metadata.get('checksum')
    damaged = any(_almost(key, 'checksum') for key in metadata) if checksum is None else (
        checksum != _checksum(metadata, state))  # older files have none
    if damaged:
        raise ValueError(f'{name} is corrupted: its checksum differs. Copy or download it again')
    if 'sparse' in metadata:
        try:
            state = from_sparse(state, metadata['sparse'])
        except ValueError as error:
            raise ValueError(f'{name} is corrupted: {shortened(error)}. Copy or download it again') from error
    return Imported(spec, state, {key: value for key, value in metadata.items() if key not in OWN_KEYS},
                    checksum=checksum is not None)


def _check_foreign(name: str, header: Mapping[str, str]) -> None:
    """ValueError for a file of ours with a damaged key: as somebody else's, its checksum would not be looked at."""
    if any(_almost(key, METADATA_KEY) or any(word in text for word in ('"spec": {"format"', '"checksum": "'))
           for key, text in header.items()):
        raise ValueError(f'{name} is corrupted: its metadata are of basicsr_ssl, but not named so. Copy or download it '
                         'again')


def _almost(word: str, wanted: str) -> bool:
    """Whether one or two characters differ."""
    return len(word) == len(wanted) and 0 < sum(a != b for a, b in zip(word, wanted)) <= 2


def build_network(spec: Spec, state: Mapping[str, Tensor] | None = None, source: str = 'the weights',
                  dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the network of a spec, with the given weights if any.

    Raises:
        ValueError: unknown arch, arguments that it refuses, or names and shapes that do not fit; all of them are
            listed.
    """
    if state is None:
        return _built(spec, source).to(dtype)
    # A hostile or damaged spec must not decide how much is allocated: a network on no device costs nothing but its
    # Python objects, and their number follows the tensors that are there; some more, to be listed as missing.
    with torch.device('meta'), _at_most(2 * len(state) + 1000):
        _check_fit(_built(spec, source), state, source)
    net = _built(spec, source).to(dtype)
    net.load_state_dict(state, strict=False)
    return net


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop the building of a network with ValueError at its first parameter beyond so many."""
    left, thread = count, threading.get_ident()

    def stop(*args: object) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ValueError(f'it describes more than {count:,} parameters, far more than there are tensors')

    hook = register_module_parameter_registration_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _built(spec: Spec, source: str) -> nn.Module:
    # Only our own archs, which declare groups: a file must not be able to build whatever else BasicSR has registered,
    # some of which reads or downloads files of its own.
    if spec.arch not in ARCH_REGISTRY or not hasattr(ARCH_REGISTRY.get(spec.arch), 'groups'):
        raise ValueError(f'{source}: unknown arch {shortened(spec.arch)!r}; this version has '
                         f'{", ".join(sorted(name for name in ARCH_REGISTRY.keys() if name.startswith("Prunable")))}')
    if files := [key for key in spec.args if key.endswith('path')]:
        raise ValueError(f'{source}: the spec names a file ({listed(files)}); a network is its own file alone')
    if taken := [field.name for field in dataclasses.fields(spec) if field.name in spec.args]:
        raise ValueError(f'{source}: the spec names {listed(taken)} among the arguments, where it has no place')
    if (count := _sum(spec.args)) > MOST_COUNTED:  # before tables of so many layers are made
        raise ValueError(f'{source}: the arguments of the spec add up to {count}, which no network has; at most '
                         f'{MOST_COUNTED}')
    try:
        return ARCH_REGISTRY.get(spec.arch)(**spec.build_arguments())
    except Exception as error:  # whatever values of any type may cause in a constructor
        raise ValueError(f'{source}: the spec does not fit {spec.arch}: {shortened(error)}') from error


def _sum(value: Any) -> int:
    """Of all integers in the arguments: sizes, numbers of layers and lists of them."""
    if isinstance(value, (dict, list, tuple)):
        return sum(map(_sum, value.values() if isinstance(value, dict) else value))
    return abs(value) if isinstance(value, int) else 0


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
    if shapes := [f'{shortened(name)} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}'
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
    with opened_file(path) as (name, stream):
        if file_format(name, stream) != SAFETENSORS:
            raise ValueError(f'{name} is a foreign file, of torch.save: only our safetensors say where they come from')
        header, _ = safetensors_files.opened(name, stream)
    if METADATA_KEY not in header:
        _check_foreign(name, header)
        raise ValueError(f'{name} is a foreign file: safetensors, but not of basicsr_ssl, without a network spec')
    return _parsed(name, header[METADATA_KEY])


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        if _is_deep(metadata):
            raise ValueError(_TOO_DEEP)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name} is corrupted: damaged metadata. Copy or download it again') from error
    if not isinstance(metadata, dict) or 'spec' not in metadata:
        raise ValueError(f'{name} is corrupted: damaged metadata, without a spec. Copy or download it again')
    return metadata


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
