"""Pruning: cut the network, or mask its weights, once, without training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from basicsr_ssl.api import choose_units, cut_network, mask_network, network_cost, open_flow
from basicsr_ssl.files import write_text
from basicsr_ssl.models.stage import Stage
from basicsr_ssl.plans.budget import latency_figures
from basicsr_ssl.pruning.masks import weights_left
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.runtime import from_first


@MODEL_REGISTRY.register()
class PruningModel(Stage):
    """Removes units for good, and writes ``report.json``.

    After sparsity learning with the same section ``pruning`` these are the units whose gates were driven to zero;
    otherwise they are chosen now, as the section says: one-shot pruning. With ``structure: filters`` or ``weights`` the
    network keeps its shape and gets a mask instead, which finetuning respects.
    """

    sections = ('pruning',)

    def prepare(self, net: Any) -> nn.Module:
        options, path = PruningOptions.of(**self.opt['pruning']), self.opt['path'].get('pretrain_network_g') or ''
        selection = getattr(net, 'provenance', {}).get('selection')
        net = open_flow(net) if options.flow else net
        learnt = bool(selection) and _same_choice(selection.get('pruning'), options)
        if selection and not learnt:
            get_root_logger().warning(f'{path} was trained to lose other units than the section pruning asks for; '
                                      f'the {options.structure} are chosen anew')
        when = 'sparsity learning' if learnt else 'one-shot'
        pruned, left = _cut(net, selection['kept'] if selection and learnt else choose_units(net, options)) \
            if options.structure == 'units' else _masked(net, options)
        before, after = (network_cost(network, (options.lr_size[0], options.lr_size[1])) for network in (net, pruned))
        figures = {name: {'before': before[name], 'after': after[name], 'removed': 1 - after[name] / before[name]}
                   for name in before}
        if options.budget == 'latency':
            latency = from_first(lambda: latency_figures(net, pruned, options))
            figures['latency'] = {**latency, 'removed': 1 - latency['after'] / latency['before']}
            get_root_logger().info('{before:.1f} ms per frame before, {after:.1f} after; predicted were {predicted:.1f}'
                                   .format(**latency))
        self.report = {'pruning': self.opt['pruning'], 'selection': when, **figures, **left}
        self.method = describe_choice(when, self.opt['pruning'])
        params, macs = (f'{name}_with_flow' if options.flow else name for name in ('params', 'macs'))
        kept, size = (sum(layer[key] for layer in self.report.get('layers', {}).values()) for key in ('kept', 'size'))
        get_root_logger().info(
            f'Pruned ({when}): ' + (f'{size - kept:,} of the {size:,} weights of convolutions are 0' if size else
                                    f'{figures[params]["removed"]:.1%} of the parameters and '
                                    f'{figures[macs]["removed"]:.1%} of the MACs')
            + f', {"with" if options.flow else "without"} the flow network')
        return pruned

    def provenance(self) -> dict[str, Any]:
        return {'pruned': {key: value for key, value in self.report.items() if key not in ('groups', 'layers')}}

    def save_network(self, label: str, iteration: int) -> None:
        if self.run.processes.is_first:
            write_text(os.path.join(self.run.folder, 'report.json'), json.dumps(self.report, indent=2) + '\n')
        super().save_network(label, iteration)

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        for name, part in {**self.report.get('groups', {}), **self.report.get('layers', {})}.items():
            tb_logger.add_scalar(f'kept/{name}', part['kept'], current_iter)


def _same_choice(pruning: Any, options: PruningOptions) -> bool:
    """Whether a file's section ``pruning``, of an older version maybe, says the same."""
    try:
        return PruningOptions.of(**pruning) == options
    except (TypeError, ValueError):
        return False


def _cut(net: Any, kept: dict[str, list[int]]) -> tuple[nn.Module, dict[str, Any]]:
    """The compact network, and what the report says of it."""
    return cut_network(net, kept), {
        'largest_gate_removed': _largest_gate_removed(net, kept),
        'groups': {group.name: {'kept': len(kept[group.name]), 'size': group.size} for group in net.groups}}


def _masked(net: Any, options: PruningOptions) -> tuple[nn.Module, dict[str, Any]]:
    """The masked network, and what the report says of it."""
    masked = mask_network(net, options)
    return masked, {'layers': {layer: {'kept': kept, 'size': size}
                               for layer, (kept, size) in weights_left(masked.state_dict()).items()}}


def _largest_gate_removed(net: Any, kept: dict[str, list[int]]) -> float | None:
    """How far from zero the worst of the removed gates was; None for a network without gates."""
    if net.spec.gates not in ('scale', 'weight_norm'):
        return None
    scores = score_units(net.state_dict(), net.groups, 'gate')
    return max((float(values[unit]) for name, values in scores.items()
                for unit in set(range(len(values))) - set(kept[name])), default=0.0)


def describe_choice(when: str, pruning: Mapping[str, Any]) -> str:
    """How units were chosen, in words for the file: when, and by which section ``pruning``."""
    what = pruning['budget'] if pruning['structure'] == 'units' else pruning['structure']
    share = (f'{len(pruning["ratios"])} ratios of {what}' if pruning['ratios'] else
             f'{pruning["target_ms"]:g} ms' if pruning['target_ms'] else f'{pruning["ratio"]:.2%} of {what}')
    return f'{when}: {pruning["score"]}, {pruning["scope"]}, {share}'
