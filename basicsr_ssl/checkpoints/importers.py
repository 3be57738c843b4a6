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
================ ========================================================= =================================

The layouts of the archs, and how to add one, are in ``layouts``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from basicsr_ssl.checkpoints import torch_files
from basicsr_ssl.checkpoints.layouts import LAYOUTS
from basicsr_ssl.checkpoints.torch_files import StoredTensor, as_dict, module_state, stored
from basicsr_ssl.files import file_sha256
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import listed


@dataclass(frozen=True)
class Imported:
    """A network of another project.

    Attributes:
        spec, state: what to build, and its weights by our names.
        provenance: ``source_format``, ``source_sha256``, ``param_key`` (which of several sets of weights; None if there
            was one); of an SSL file also ``method``, and if it is not pruned yet, ``kept``: units to keep by group.
    """

    spec: Spec
    state: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)


def read_torch(path: str | os.PathLike, kind: str, param_key: str | None = None) -> Imported:
    """Read a BasicVSR or SpyNet that another project saved with ``torch.save``. Nothing in the file is executed.

    Args:
        path: a file of BasicSR, mmagic, the SSL authors or pytorch-spynet.
        kind: what ``file_format`` says of it.
        param_key: ``params`` or ``params_ema`` where the file has both; None prefers the latter, the moving average.

    Raises:
        ValueError: it is truncated, corrupted, something else, or contradicts itself; the message says which.
    """
    source = os.fspath(path)
    with torch_files.opened(path, kind) as file:
        key, state, lists = _unwrapped(source, file.content, param_key)
        return _network(source, state, key, param_key, lists, file.tensors)


def read_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], param_key: str | None = None) -> Imported:
    """The same for the tensors of a safetensors file into which somebody has converted such a file.

    Raises:
        ValueError: they are no BasicVSR and no SpyNet, or contradict each other.
    """
    return _network(os.fspath(path), tensors, None, param_key, None, dict)


def _network(path: str, named: Mapping[str, Any], key: str | None, param_key: str | None,
             lists: Mapping[str, Any] | None, load: Callable[[Mapping[str, Any]], dict[str, Tensor]]) -> Imported:
    if prefix := _prefix(named, param_key):
        key, named = prefix, {name.removeprefix(f'{prefix}.'): tensor for name, tensor in named.items()
                              if name.startswith(f'{prefix}.')}
    layout = next((layout for layout in LAYOUTS if named.keys() >= set(layout.markers)), None)
    if layout is None:
        raise ValueError(f'{path} is a foreign file: it holds {listed(named, 3)}, not a BasicVSR or SpyNet as '
                         'BasicSR, mmagic, the SSL authors or pytorch-spynet name their layers')
    renamed = {layout.rename(name): name for name in named}
    if len(renamed) < len(named):
        raise ValueError(f'{path} is corrupted: two of its tensors have one name')
    tensors = load(named)
    try:
        found = layout.read({ours: tensors[theirs] for ours, theirs in renamed.items()}, lists)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return Imported(found.spec, found.state, {'source_format': found.source or layout.source,
                                              'source_sha256': file_sha256(path), 'param_key': key,
                                              **found.provenance})


# ---- how files are wrapped

def _unwrapped(path: str, content: Any, param_key: str | None
               ) -> tuple[str | None, dict[str, StoredTensor], Mapping[str, Any] | None]:
    """Which of the sets of weights in a file to take, its tensors, and the SSL authors' lists if there are any."""
    outer = as_dict(content)
    if outer.keys() >= {'iter', 'fingerprint', 'net'}:
        raise ValueError(f'{path} is a training state of basicsr_ssl, not a network: --auto_resume continues from it, '
                         'the networks of the same run are in the folder models beside that of the states')
    lists = outer if 'kept_wg' in outer else None
    choices = ['params_ema', 'params'] if param_key is None else [param_key]
    if param_key is not None and not outer.keys().isdisjoint(('params_ema', 'params')) and param_key not in outer:
        raise ValueError(f'{path} has no {param_key!r}, only '
                         f'{", ".join(key for key in ("params_ema", "params") if key in outer)}: correct param_key_g')
    for key in (*choices, 'state_dict', 'model'):
        if key in outer and (state := _tensors(path, outer[key])):
            return key, state, lists
    state = _tensors(path, content)
    if not state:
        found = f'the entries {listed(map(str, outer), 3)}' if outer else f'a {_kind(content)}'
        raise ValueError(f'{path} is a foreign file: it holds {found}, and no weights that could be found. A network '
                         'file is a state dict, plain or under params, params_ema, state_dict or model')
    return None, state, lists


def _tensors(path: str, value: Any) -> dict[str, StoredTensor]:
    """The tensors of a state dict or of a pickled module, without the prefix that distributed training leaves."""
    try:
        state = {name: view for name, entry in as_dict(value).items()
                 if isinstance(name, str) and (view := stored(entry)) is not None} or module_state(value)
    except ValueError as error:
        raise ValueError(f'{path} is corrupted: {error}') from error
    plain = {name.removeprefix('module.'): view for name, view in state.items()}
    if len(plain) < len(state):
        raise ValueError(f'{path} is corrupted: it holds tensors of one name with and without the prefix module.')
    return plain


def _prefix(state: Mapping[str, Any], param_key: str | None) -> str | None:
    """mmagic saves all networks of a training together; the moving average is a network of its own there."""
    choices = {'params': ['generator'], 'params_ema': ['generator_ema']}.get(
        param_key or '', ['generator_ema', 'generator'])
    return next((prefix for prefix in choices if any(name.startswith(f'{prefix}.') for name in state)), None)


def _kind(content: Any) -> str:
    return type(content).__name__ if isinstance(content, (list, tuple, dict)) else 'single object'
