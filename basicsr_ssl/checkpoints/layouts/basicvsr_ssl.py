"""The SSL authors' files: from layers with gates and lists of kept filters to our groups.

``model_prune_init.pt`` holds the gated network of full widths, and the lists of what is going to be removed;
``model_prune_final.pt`` (``SSL_REDS_BI.pt`` and its siblings) the network without it. In between, during their
finetuning, the second convolution of a block keeps all filters, and a frozen gate of 0 stands for the removed ones.

=============== ======================== ======================================================================
list            of layer                 means
=============== ======================== ======================================================================
kept_wg         conv1, fusion, conv_hr   filters
kept_wg         conv2                    filters, that is channels of the skip connection that the block adds to
kept_wg         upconv1, upconv2         groups of 4 filters, each one channel after the pixel shuffle
kept_wg_pre     conv1                    channels of the skip connection that the block reads
=============== ======================== ======================================================================

Other layers stand in the lists too, with nothing pruned, and ``kept_wg_pre`` of other layers means nothing. A layer
holds its units in ascending order, whatever the order of its list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from basicsr_ssl.archs.basicvsr_arch import group_table, layer_table
from basicsr_ssl.checkpoints.layouts.layout import State
from basicsr_ssl.pruning.spec import Spec

_GATES = {'act_scale': 'gate', 'act_scale_pre': 'gate_in'}


@dataclass(frozen=True)
class _Units:
    """Where the lists speak of a group: ``layer`` in ``kept_wg + suffix``; ``size`` units when nothing is pruned."""

    layer: str
    suffix: str
    size: int


def gate_name(name: str) -> str:
    """Our name of one of their tensors: ``conv1.act_scale`` is ``conv1.gate``; other names stay."""
    layer, _, last = name.rpartition('.')
    return f'{layer}.{_GATES[last]}' if last in _GATES else name


def read_ssl(state: State, dense: Spec, lists: Mapping[str, Any] | None) -> tuple[Spec, State, dict[str, Any]]:
    """Gated or compact network of an SSL file.

    Args:
        state: tensors by our names; gates still of shape (1, units, 1, 1).
        dense: spec of the network that its names describe, before pruning.
        lists: the file's ``kept_wg``, ``pruned_wg``, ``kept_wg_pre`` and, which their code saves but does not read,
            ``pruned_wg_pre``; None where it has none.

    Returns:
        Spec, state dict, and of a gated network with lists ``{'kept': {group: units that the lists keep}}``.

    Raises:
        ValueError: the lists contradict each other, the tensors or the network; the message names the layer and both
            figures.
    """
    state = {name: tensor.flatten() if name.endswith(('.gate', '.gate_in')) else tensor
             for name, tensor in state.items()}
    args = {**dense.args, 'act': 'relu'}
    gated = any(name.endswith('.gate_in') for name in state)
    if lists is None:
        if not gated:
            raise ValueError('a pruned network without the lists of what was kept (kept_wg, kept_wg_pre); import the '
                             'model_prune_final.pt of the same training, which has them')
        return Spec(dense.arch, args, gates='scale'), state, {}

    tables = {name: _table(lists, name) for name in ('kept_wg', 'pruned_wg', 'kept_wg_pre', 'pruned_wg_pre')
              if name != 'pruned_wg_pre' or name in lists}
    args['tail_feat'] = sum(len(_named(tables, name, 'conv_hr')) for name in ('kept_wg', 'pruned_wg'))
    groups = _groups(args)
    _check_other_layers(tables, args, groups)
    kept = {name: _kept(tables, units) for name, units in groups.items()}
    if gated:
        return Spec(dense.arch, args, gates='scale'), state, {'kept': kept}
    fewer = {name: units for name, units in kept.items() if len(units) < groups[name].size}
    spec = Spec(dense.arch, args, {name: len(units) for name, units in fewer.items()},
                {group.name: fewer[group.name] for group in group_table(Spec(dense.arch, args))
                 if group.indexed and group.name in fewer})
    outputs = {units.layer: (kept[name], units.size) for name, units in groups.items() if not units.suffix}
    _check_dimensions(state, spec)
    state = _without_frozen_gates(state, outputs)
    _check_shapes(state, spec)
    return spec, state, {}


def _table(lists: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One of the four lists, by layer; names saved under distribution start with ``module.``."""
    table = lists.get(name)
    if not isinstance(table, dict):
        raise ValueError(f'{name} is missing, or no dict from layers to lists')
    return {str(layer).removeprefix('module.'): units for layer, units in table.items()}


def _named(tables: Mapping[str, Mapping[str, Any]], name: str, layer: str) -> list[Any]:
    units = tables[name].get(layer)
    if not isinstance(units, list):
        raise ValueError(f'{layer}: {name} has no list of its units')
    return units


def _groups(args: Mapping[str, Any]) -> dict[str, _Units]:
    groups = {}
    for conv in layer_table(args, {}):
        block, _, last = conv.name.rpartition('.')
        if last == 'conv1':
            groups[f'{block}.in'] = _Units(conv.name, '_pre', conv.cin)
            groups[f'{block}.mid'] = _Units(conv.name, '', conv.cout)
        elif last == 'conv2':
            groups[f'{block}.out'] = _Units(conv.name, '', conv.cout)
        elif last in ('upconv1', 'upconv2'):
            groups[conv.name] = _Units(conv.name, '', conv.cout // 4)
        elif last in ('fusion', 'conv_hr'):
            groups[conv.name] = _Units(conv.name, '', conv.cout)
    return groups


def _kept(tables: Mapping[str, Mapping[str, Any]], units: _Units) -> list[int]:
    """Kept units of one group, ascending."""
    names = [name for name in (f'kept_wg{units.suffix}', f'pruned_wg{units.suffix}') if name in tables]
    kept, *pruned = lists = [_named(tables, name, units.layer) for name in names]
    named = [unit for part in lists for unit in part]
    right = bool(kept) and all(type(unit) is int and 0 <= unit < units.size for unit in named)
    if not right or len(set(named)) < len(named) or (pruned and len(named) != units.size):
        counts = ' and '.join(f'{name} {len(part)}' for name, part in zip(names, lists))
        raise ValueError(f'{units.layer}: {counts} of its {units.size} units; they should be integers from 0 on, '
                         f'each once, {"together all of them, " if pruned else ""}at least one kept')
    return sorted(kept)


def _check_other_layers(tables: Mapping[str, Mapping[str, Any]], args: Mapping[str, Any],
                        groups: Mapping[str, _Units]) -> None:
    layers = {conv.name for conv in layer_table(args, {})}
    prunable = {units.layer for units in groups.values()}
    for layer, units in tables['pruned_wg'].items():
        if layer not in layers:
            raise ValueError(f'{layer}: pruned_wg names it, but there are no weights of such a layer')
        if layer not in prunable and units != []:
            raise ValueError(f'{layer}: pruned_wg names units of it, but this layer is never pruned')


def _check_dimensions(state: State, spec: Spec) -> None:
    for conv in layer_table(spec.args, spec.widths):
        for name, dimensions in (('weight', 4), ('bias', 1)):
            tensor = state.get(f'{conv.name}.{name}')
            if tensor is not None and tensor.dim() != dimensions:
                raise ValueError(f'{conv.name}: its {name} has {tensor.dim()} dimensions, expected {dimensions}')


def _without_frozen_gates(state: State, outputs: Mapping[str, tuple[list[int], int]]) -> State:
    """Multiply the gates that are left into the layers, and drop filters that such a gate has closed."""
    state = dict(state)
    for layer, (kept, size) in outputs.items():
        gate = state.pop(f'{layer}.gate', None)
        weight, bias = state.get(f'{layer}.weight'), state.get(f'{layer}.bias')
        if gate is None or weight is None or bias is None:
            continue
        if len(weight) % len(gate) or len(bias) != len(weight):
            raise ValueError(f'{layer}: {len(gate)} gates for {len(weight)} filters and {len(bias)} biases')
        scale = gate.repeat_interleave(len(weight) // len(gate))
        weight, bias = weight * scale[:, None, None, None], bias * scale
        if len(gate) == size > len(kept):
            removed = sorted(set(range(size)) - set(kept))
            if gate[removed].any():
                raise ValueError(f'{layer}: {int(gate[removed].count_nonzero())} of the {len(removed)} filters in '
                                 'pruned_wg have a gate that is not 0')
            chosen = (weight.new_tensor(kept).long()[:, None] * (len(weight) // size)
                      + weight.new_tensor(range(len(weight) // size)).long()).flatten()
            weight, bias = weight[chosen], bias[chosen]
        state[f'{layer}.weight'], state[f'{layer}.bias'] = weight, bias
    return state


def _check_shapes(state: State, spec: Spec) -> None:
    for conv in layer_table(spec.args, spec.widths):
        weight = state.get(f'{conv.name}.weight')
        if weight is not None and tuple(weight.shape[:2]) != (conv.cout, conv.cin):
            raise ValueError(f'{conv.name}: its weight has {weight.shape[0]} filters of {weight.shape[1]} channels, '
                             f'the lists of kept units ask for {conv.cout} of {conv.cin}')
