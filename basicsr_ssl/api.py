"""The Python interface: prune and count."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from basicsr_ssl.checkpoints.store import build_network, load_strictly
from basicsr_ssl.plans.budget import meet_latency
from basicsr_ssl.pruning import cost
from basicsr_ssl.pruning.gates import GATES, fold_gates, init_gates, mask_name
from basicsr_ssl.pruning.groups import check_kept
from basicsr_ssl.pruning.layout import runs
from basicsr_ssl.pruning.masks import choose_masks, open_masks
from basicsr_ssl.pruning.options import PruningOptions, check_named
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.selection import select_units
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.pruning.surgery import StateDict, cut
from basicsr_ssl.runtime import from_first


def prune_network(net: nn.Module, ratio: float | None = None, **settings: Any) -> nn.Module:
    """Remove the least important units of a network, or with ``structure`` its least important filters or weights.

    Args:
        net: a network of this package, in any form; it is not changed.
        ratio: share to remove, in [0, 1).
        settings: the others of ``PruningOptions``: ``budget``, what the ratio is a share of, ``'units'``, ``'params'``
            or ``'macs'``, of what pruning can touch at all, that is without the flow network unless ``flow`` is set, or
            ``'latency'``, measured on ``device`` with ``threads``; ``target_ms``, milliseconds per frame in place of
            that ratio; ``score``, ``'gate'``, ``'l1'``, ``'l2'`` or ``'random'``; ``scope``, ``layout``, ``round_to``,
            ``min_keep``, ``relative``, ``lr_size``, ``seed``; ``flow``, whether the flow network is pruned too, with
            ``flow_min_keep`` and ``flow_ratio`` of its own; ``ratios``, shares by group; ``structure``, ``'units'``,
            ``'filters'`` or ``'weights'``.

    Returns:
        A new compact network; of filters and weights, a network of the same shape with a mask.

    Raises:
        ValueError: a setting that does not exist or is out of range, or a budget that cannot be met.
    """
    options = PruningOptions.of(**settings, **({} if ratio is None else {'ratio': ratio}))
    if options.flow:
        net = open_flow(net)
    if options.structure != 'units':
        return mask_network(net, options)
    return cut_network(net, choose_units(net, options))


def open_flow(net: nn.Module) -> nn.Module:
    """The network itself if its flow network can be pruned too, else a new one that computes the same, where it can.

    Raises:
        ValueError: there is no flow network in it.
    """
    spec, state = _ours(net).spec, net.state_dict()
    if _ours(net).task == 'flow' or spec.args.get('prune_flow'):
        return net
    if _ours(net).flow_network is None:
        raise ValueError(f'pruning: flow: this {type(net).__name__} has no flow network: leave it out')
    opened = dataclasses.replace(spec, args={**spec.args, 'prune_flow': True})
    gates = {} if not spec.gates else open_masks(state, _masked_layers(net, flow=True)) if spec.gates == 'mask' else \
        init_gates(state, [group for group in _ours(net).group_table(opened) if group.flow], spec.gates)
    return _rebuild(net, opened, {**gates, **state})


def with_args(net: nn.Module, args: dict[str, Any]) -> nn.Module:
    """A new network with the same weights and other ``pruning_args`` or ``run_args``; weights that are not used go.

    Args:
        net: a network of this package.
        args: all arguments that describe it.

    Raises:
        ValueError: an argument is out of range, or there are no weights for it.
    """
    spec = _ours(net).spec
    full = net.full_widths(args)  # type: ignore[operator]
    used = dataclasses.replace(spec, args=args, widths={name: width for name, width in spec.widths.items()
                                                        if name in full})
    names = build_network(used).state_dict()
    return _rebuild(net, used, {name: tensor for name, tensor in net.state_dict().items() if name in names})


def choose_units(net: nn.Module, options: PruningOptions) -> dict[str, list[int]]:
    """The units that ``prune_network`` keeps, by group name; with ``flow``, of a network that ``open_flow`` made."""
    prunable = _ours(net)
    if options.structure != 'units':
        raise ValueError(f'structure: {options.structure} is done by a mask, and no units are chosen: set structure: '
                         'units')
    if not prunable.groups:
        raise ValueError(f'{type(net).__name__} has nothing to prune')
    spec = prunable.spec
    alone = prunable.task == 'flow'  # then there is nothing beside the flow network
    groups = [group for group in prunable.groups if options.flow or alone or not group.flow]

    def priced(of_flow: bool, of_others: bool) -> Any:
        """The cost by widths of the layers of the flow network, of all others, or of both, unless units are counted."""
        def price(widths: dict[str, int]) -> float:
            layers = [layer for layer in prunable.layer_table(spec.args, {**spec.widths, **widths})
                      if (of_flow if layer.flow else of_others)]
            if options.budget == 'params':
                return cost.params(layers)
            return cost.macs(layers, (options.lr_size[0], options.lr_size[1]))
        return None if options.budget == 'units' else price

    scores = score_units(net.state_dict(), groups, options.score, options.seed, options.relative, spec.gates)
    least = {group.name: options.least(group.flow) for group in groups}

    def select(scores: dict[str, torch.Tensor], share: float, **how: Any) -> dict[str, list[int]]:
        return select_units(scores, share, round_to=options.multiple,
                            min_keep={name: least[name] for name in scores}, **how)

    def fit(kept: dict[str, list[int]]) -> dict[str, list[int]]:
        return runs(prunable.groups, scores, kept, spec.index) if options.layout == 'runs' else kept

    if options.budget == 'latency':
        kept = from_first(lambda: meet_latency(net, options, lambda share, ms: fit(
            select(scores, share, scope=options.scope, cost=ms, monotone=False))))
    elif options.ratios is not None:
        check_named(options.ratios, scores, 'group')
        kept = {}
        for name, values in scores.items():
            kept |= select({name: values}, options.ratios.get(name, options.ratio), scope='local')
        kept = fit(kept)
    elif options.flow_ratio is not None:
        flow = {group.name: scores.pop(group.name) for group in groups if group.flow and group.name in scores}
        kept = fit({**select(flow, options.flow_ratio, scope=options.scope, cost=priced(True, False)),
                    **select(scores, options.ratio, scope=options.scope, cost=priced(False, True))})
    else:
        kept = fit(select(scores, options.ratio, scope=options.scope, cost=priced(options.flow or alone, not alone)))
    return check_kept(prunable.groups, kept)  # with the groups that have no score


def cut_network(net: nn.Module, kept: dict[str, list[int]]) -> nn.Module:
    """A new compact network with only the given units, by group name; groups that are not named stay whole."""
    prunable = _ours(net)
    state, spec = cut(net.state_dict(), prunable.spec, prunable.groups, kept)
    return _rebuild(net, spec, state)


def mask_network(net: nn.Module, options: PruningOptions) -> nn.Module:
    """A new network of the same shape whose least important weights or filters are 0, and masked so that they stay 0.

    All convolutions and linear layers are pruned, those of the flow network if ``flow`` is set; see
    ``pruning/masks.py``.

    Args:
        net: a network of this package, in any form. What a mask of it has removed counts as removed.
        options: ``structure`` is ``'filters'`` or ``'weights'``.

    Raises:
        ValueError: it has no such layers, or see ``choose_masks``.
    """
    if options.flow:
        net = open_flow(net)
    layers = _masked_layers(net)
    if not layers:
        raise ValueError(f'{type(net).__name__} has nothing to prune')
    plain = without_gates(net)
    flow = {layer.name for layer in _ours(net).cost_table if layer.flow}
    chosen = [layer for layer in layers if options.flow or _ours(net).task == 'flow' or layer not in flow]
    masks = {**open_masks(plain.state_dict(), layers), **choose_masks(plain.state_dict(), chosen, options)}
    state = {**plain.state_dict(), **masks}
    for layer in layers:
        state[f'{layer}.weight'] = torch.where(masks[mask_name(f'{layer}.weight')], state[f'{layer}.weight'], 0)
    return _rebuild(net, dataclasses.replace(_ours(plain).spec, gates='mask'), state)


def _masked_layers(net: nn.Module, flow: bool = False) -> list[str]:
    """Names of the layers that masks are for; ``flow``: of the flow network too, as where it is pruned anyway."""
    flow = flow or _ours(net).task == 'flow' or _ours(net).spec.args.get('prune_flow', False)
    return [layer.name for layer in _ours(net).cost_table
            if isinstance(layer, (cost.Conv, cost.Linear)) and (flow or not layer.flow)]


def with_gates(net: nn.Module, kind: str = 'scale') -> nn.Module:
    """A new gated network computing the same as this one; one with such gates is copied, others are folded first.

    Args:
        net: a network of this package.
        kind: ``'scale'``, ``'weight_norm'`` or ``'mask'``, see ``pruning/gates.py``.

    Raises:
        ValueError: an unknown kind, or gates of units for a compact network.
    """
    if kind not in GATES:
        raise ValueError(f'unknown gates {kind!r}; choose one of {", ".join(GATES)}')
    if _ours(net).spec.gates not in ('', kind):
        net = without_gates(net)
    spec, state = _ours(net).spec, net.state_dict()
    if spec.form == 'compact' and kind != 'mask':
        raise ValueError('sparsity learning starts from a dense or gated network, this one is already compact')
    gates = {} if spec.gates else open_masks(state, _masked_layers(net)) if kind == 'mask' else \
        init_gates(state, _ours(net).groups, kind)
    return _rebuild(net, dataclasses.replace(spec, gates=kind), {**state, **gates})


def without_gates(net: nn.Module) -> nn.Module:
    """A new network with gates or masks folded into the weights, computing the same; one without is copied."""
    spec: Spec = _ours(net).spec
    state = fold_gates(net.state_dict(), _ours(net).groups, spec.gates)
    return _rebuild(net, dataclasses.replace(spec, gates=''), state)


def count_params(net: nn.Module, flow: bool = True) -> int:
    """Weights and biases of a network; gates are not counted, since they fold away.

    Args:
        net: a network of this package.
        flow: False leaves out the flow network.
    """
    return cost.params(_ours(net).cost_table, flow)


def count_macs(net: nn.Module, lr_size: tuple[int, int] = cost.LR_SIZE, flow: bool = True) -> int:
    """Multiply-accumulates of a network for one frame of a long clip.

    Args:
        net: a network of this package.
        lr_size: LR frame, (h, w).
        flow: False leaves out the flow network. With it, each frame counts one pair of frames, in both directions if
            the network is bidirectional.
    """
    return cost.macs(_ours(net).cost_table, lr_size, flow)


def _rebuild(net: nn.Module, spec: Spec, state: StateDict) -> nn.Module:
    """A network of this spec with these weights, on the device and of the type and mode of ``net``."""
    new = build_network(spec).to(next(net.parameters()))
    load_strictly(new, state, 'the weights')
    return new.train(net.training)


def network_cost(net: nn.Module, lr_size: tuple[int, int]) -> dict[str, int]:
    """Parameters and multiply-accumulates, with the flow network counted and not counted.

    Args:
        net: a network of this package.
        lr_size: LR frame, (h, w).

    Returns:
        ``params`` and ``macs`` (per frame) without the flow network, ``params_with_flow`` and ``macs_with_flow``.
    """
    return {'params': count_params(net, flow=False), 'params_with_flow': count_params(net),
            'macs': count_macs(net, lr_size, flow=False), 'macs_with_flow': count_macs(net, lr_size)}


def _ours(net: nn.Module) -> Any:
    """The same network; in this package every one declares ``spec``, ``groups`` and ``cost_table``."""
    if not isinstance(getattr(net, 'spec', None), Spec):
        raise TypeError(f'{type(net).__name__} declares no groups and no cost table; use a network of basicsr_ssl')
    return net
