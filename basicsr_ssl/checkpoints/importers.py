"""Reading network files of other projects: from a file to a spec and a state dict with our names.

What a file is follows from its contents: how it is wrapped, and how the tensors in it are named.

================ ========================================================= =================================
source           wrapped in                                                marked by
================ ========================================================= =================================
BasicSR          ``params_ema``, ``params``, or a plain state dict         ``forward_trunk.main.0``
mmagic           ``state_dict``, prefix ``generator_ema.``, ``generator.`` ``forward_resblocks.main.0``
SSL authors      ``state_dict``, ``model`` (a pickled module), or          ``act_scale`` of some layer, or lists
                 as BasicSR                                                ``kept_wg`` beside the weights
SpyNet: BasicSR  as BasicSR                                                ``basic_module.0.basic_module.0``
SpyNet: mmagic   a plain state dict                                        ``basic_module.0.basic_module.0.conv``
pytorch-spynet   a plain state dict                                        ``moduleBasic.0.`` or ``netBasic.0.``
EDSR: BasicSR    as BasicSR                                                ``conv_after_body``
EDSR-PyTorch     a plain state dict                                        ``head.0``, ``body.0.body.0``
ASSL, SRP        ``state_dict``; lists ``kept_wg`` beside the weights      as EDSR-PyTorch
SwinIR           as BasicSR; its authors alike                              ``patch_embed.norm``
================ ========================================================= =================================

Also ``net`` and ``model_state_dict``, the prefixes ``net_g.`` and ``net_g_ema.`` as mmagic's, and those that
``DataParallel``, ``torch.compile`` and EDSR-PyTorch's wrapper leave, any number of times: ``module.``, ``_orig_mod.``,
``model.``.

The layouts of the archs, and how to add one, are in ``layouts``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from torch import Tensor

from basicsr_ssl.checkpoints import torch_files
from basicsr_ssl.checkpoints.layouts import LAYOUTS
from basicsr_ssl.checkpoints.stored import StoredFile, StoredTensor
from basicsr_ssl.checkpoints.torch_files import as_dict, module_state, stored
from basicsr_ssl.files import stream_sha256
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import listed, shortened

KEYS = ('params_ema', 'params')  # of the sets of weights that one file may have; the first is the moving average
# mmagic saves all networks of a training together, and some users of BasicSR too
_PREFIXES = {'params_ema': ('generator_ema', 'net_g_ema'), 'params': ('generator', 'net_g')}
_WRAPPERS = ('state_dict', 'model_state_dict', 'net', 'model')


@dataclass(frozen=True)
class Imported:
    """A network as it was read, of this project or another.

    Attributes:
        spec, state: what to build, and its weights by our names, in the types that they are saved in.
        provenance: of this project's files what they say of themselves. Of others ``source_format``, ``source_sha256``,
            ``param_key`` (which of several sets of weights; None if there was one); of an SSL file also ``method``, and
            if it is not pruned yet, ``kept``: units to keep by group.
        choices: which sets of weights there were, by the names that ``param_key`` takes.
        checksum: whether a checksum over all of it was verified; None if such files have none.
    """

    spec: Spec
    state: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    checksum: bool | None = None


@dataclass(frozen=True)
class _Weights:
    """One set of weights out of a file; ``key``: where it stood (None: alone), ``choices``: for ``param_key``."""

    named: Mapping[str, Any]
    key: str | None
    choices: tuple[str, ...]
    lists: Mapping[str, Any] | None = None


def read_torch(name: str, stream: BinaryIO, kind: str, param_key: str | None = None,
               assume: Mapping[str, Any] | None = None) -> Imported:
    """Read a network that another project saved with ``torch.save``. Nothing in the file is executed.

    Args:
        name, stream: the open file, and what messages call it.
        kind: what ``file_format`` says of it.
        param_key: ``params`` or ``params_ema`` where the file has both; None prefers the latter, the moving average.
        assume: arguments of the network that tensors cannot tell, or that may differ from its project's own although
            only missing tensors say so.

    Raises:
        ValueError: it is truncated, corrupted, incomplete, something else, or contradicts itself; the message says
            which.
    """
    with torch_files.opened(name, stream, kind) as file:
        weights = _unwrapped(name, file.content, param_key, _records)
        found = _network(name, weights, file.tensors, assume or {})
    return _with_sha256(found, stream)


def read_tensors(name: str, stream: BinaryIO, file: StoredFile, param_key: str | None = None,
                 assume: Mapping[str, Any] | None = None) -> Imported:
    """The same for the tensors of a safetensors file into which somebody has converted such a file."""
    weights = _unprefixed(name, file.content, None, (), None, param_key)
    return _with_sha256(_network(name, weights, file.tensors, assume or {}), stream)


def read_state(content: Mapping[str, Any], param_key: str | None = None,
               assume: Mapping[str, Any] | None = None) -> Imported:
    """The same for a state dict in memory, or what such a file contains."""
    name = 'the state dict'
    return _network(name, _unwrapped(name, content, param_key, _tensors), dict, assume or {})


def _with_sha256(found: Imported, stream: BinaryIO) -> Imported:
    stream.seek(0)
    found.provenance['source_sha256'] = stream_sha256(stream)
    return found


def _network(name: str, weights: _Weights, load: Callable[[Mapping[str, Any]], dict[str, Tensor]],
             assume: Mapping[str, Any]) -> Imported:
    named = weights.named
    layout = next((layout for layout in LAYOUTS if named.keys() >= set(layout.markers)), None)
    if layout is None:
        raise ValueError(f'{name} is a foreign file: it holds {listed(named, 3)}, not a BasicVSR, SpyNet, '
                         'EDSR or SwinIR as BasicSR, mmagic, the SSL authors, pytorch-spynet or EDSR-PyTorch name '
                         'their layers')
    renamed = {layout.rename(theirs): theirs for theirs in named}
    if len(renamed) < len(named):
        raise ValueError(f'{name} is corrupted: two of its tensors have one name')
    tensors = load(named)
    try:
        found = layout.read({ours: tensors[theirs] for ours, theirs in renamed.items()}, weights.lists)
    except (ValueError, RuntimeError) as error:  # torch's word for types and shapes that do not fit
        raise ValueError(f'{name}: {shortened(error, 2000)}') from error
    doubtful = {argument: tensors for argument, tensors in found.doubtful.items()
                if assume.get(argument) != found.spec.args[argument]}
    if doubtful:
        said = {argument: found.spec.args[argument] for argument in doubtful}
        raise ValueError(
            f'{name} is incomplete: it has no {", no ".join(doubtful.values())}. If it is a network with '
            f'{", ".join(f"{key}: {value}" for key, value in said.items())}, say so: in network_g of an option file, '
            f'with --assume {" ".join(f"{key}={value}" for key, value in said.items())}, or from Python with '
            f'assume={said}')
    told = {argument: assume[argument] for argument in found.untold if argument in assume}
    spec = replace(found.spec, args={**found.spec.args, **told})
    return Imported(spec, found.state, {'source_format': found.source or layout.source, 'param_key': weights.key,
                                        **found.provenance}, weights.choices)


# ---- how files are wrapped

def _unwrapped(name: str, content: Any, param_key: str | None,
               tensors: Callable[[str, Any], dict[str, Any]]) -> _Weights:
    """Which of the sets of weights in a file to take, its tensors, and the SSL authors' lists if there are any."""
    outer: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    if outer.keys() >= {'iter', 'fingerprint', 'net'}:
        raise ValueError(f'{name} is a training state of basicsr_ssl, not a network: --auto_resume continues from it, '
                         'the networks of the same run are in the folder models beside that of the states')
    lists = outer if 'kept_wg' in outer else None
    choices = tuple(key for key in KEYS if key in outer)
    if choices and param_key not in (None, *choices):
        raise _no_such_key(name, param_key, choices)
    for key in (param_key,) if param_key and choices else KEYS:
        if key in outer and (state := tensors(name, outer[key])):
            return _unprefixed(name, state, key, choices, lists, None)
    for key in _WRAPPERS:
        if key in outer and (state := tensors(name, outer[key])):
            return _unprefixed(name, state, key, choices, lists, param_key)
    state = tensors(name, content)
    if not state:
        found = f'the entries {listed(map(str, outer), 3)}' if outer else f'a {_kind(content)}'
        raise ValueError(f'{name} is a foreign file: it holds {found}, and no weights that could be found. A network '
                         f'file is a state dict, plain or under {", ".join(KEYS + _WRAPPERS)}')
    return _unprefixed(name, state, None, choices, lists, param_key)


def _unprefixed(name: str, state: Mapping[str, Any], key: str | None, choices: tuple[str, ...],
                lists: Mapping[str, Any] | None, param_key: str | None) -> _Weights:
    """Without what distributed training, ``torch.compile`` and trainings of several networks put before the names."""
    bare = {_bare(full): entry for full, entry in state.items()}
    if len(bare) < len(state):
        raise ValueError(f'{name} is corrupted: it holds tensors of one name with and without the prefix module., '
                         'model. or _orig_mod.')
    found = {key: prefix for key, prefixes in _PREFIXES.items() for prefix in prefixes
             if any(full.startswith(f'{prefix}.') for full in bare)}
    if not found:
        return _Weights(bare, key, choices, lists)
    if param_key is not None and param_key not in found:
        raise _no_such_key(name, param_key, tuple(found))
    prefix = found[param_key or next(iter(found))]
    # once more: each of the networks may have been wrapped by itself
    named = {_bare(full.removeprefix(f'{prefix}.')): entry for full, entry in bare.items()
             if full.startswith(f'{prefix}.')}
    return _Weights(named, prefix, choices or tuple(found), lists)


def _bare(name: str) -> str:
    name = re.sub(r'(^|\.)_orig_mod\.', r'\1', name)  # also of a compiled part
    begin = 0
    while name.startswith(('module.', 'model.'), begin):  # not cut each time: a name may have megabytes
        begin = name.index('.', begin) + 1
    return name[begin:]


def _no_such_key(name: str, param_key: str | None, choices: tuple[str, ...]) -> ValueError:
    return ValueError(f'{name} has no {param_key!r}, only {", ".join(choices)}: correct param_key_g (--param-key)')


def _records(name: str, value: Any) -> dict[str, StoredTensor]:
    """The tensors of a state dict or of a pickled module, as records."""
    try:
        return {key: view for key, entry in as_dict(value).items()
                if isinstance(key, str) and (view := stored(entry)) is not None} or module_state(value)
    except ValueError as error:
        raise ValueError(f'{name} is corrupted: {error}') from error


def _tensors(name: str, value: Any) -> dict[str, Tensor]:
    """The same in memory."""
    del name
    return {key: entry for key, entry in value.items() if isinstance(key, str) and isinstance(entry, Tensor)
            } if isinstance(value, Mapping) else {}


def _kind(content: Any) -> str:
    return type(content).__name__ if isinstance(content, (list, tuple, dict)) else 'single object'
