"""Pruning: cut the network, once, without training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from basicsr_ssl.api import choose_units, cut_network, network_cost
from basicsr_ssl.files import write_text
from basicsr_ssl.models.stage import Stage
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units


@MODEL_REGISTRY.register()
class PruningModel(Stage):
    """Removes units for good, and writes ``report.json``.

    After sparsity learning with the same section ``pruning`` these are the units whose gates were driven to zero;
    otherwise they are chosen now, as the section says: one-shot pruning.
    """

    sections = ('pruning',)

    def prepare(self, net: Any) -> nn.Module:
        options, path = self.opt['pruning'], self.opt['path'].get('pretrain_network_g') or ''
        selection = getattr(net, 'provenance', {}).get('selection')
        learnt = bool(selection) and selection.get('pruning') == options
        if selection and not learnt:
            get_root_logger().warning(f'{path} was trained to lose other units than the section pruning asks for; '
                                      'the units are chosen anew')
        kept = selection['kept'] if selection and learnt else choose_units(net, PruningOptions.of(**options))
        compact = cut_network(net, kept)
        before, after = (network_cost(network, options['lr_size']) for network in (net, compact))
        figures = {name: {'before': before[name], 'after': after[name], 'removed': 1 - after[name] / before[name]}
                   for name in before}
        self.report = {'pruning': options, 'selection': 'sparsity learning' if learnt else 'one-shot', **figures,
                       'largest_gate_removed': _largest_gate_removed(net, kept),
                       'groups': {group.name: {'kept': len(kept[group.name]), 'size': group.size}
                                  for group in net.groups}}
        self.method = describe_choice(self.report['selection'], options)
        get_root_logger().info(
            f'Pruned ({self.report["selection"]}): {figures["params"]["removed"]:.1%} of the parameters and '
            f'{figures["macs"]["removed"]:.1%} of the MACs, without the flow network')
        return compact

    def provenance(self) -> dict[str, Any]:
        return {'pruned': {key: value for key, value in self.report.items() if key != 'groups'}}

    def save_network(self, label: str, iteration: int) -> None:
        if self.run.processes.is_first:
            write_text(os.path.join(self.run.folder, 'report.json'), json.dumps(self.report, indent=2) + '\n')
        super().save_network(label, iteration)

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        for name, group in self.report['groups'].items():
            tb_logger.add_scalar(f'kept/{name}', group['kept'], current_iter)


def _largest_gate_removed(net: Any, kept: dict[str, list[int]]) -> float | None:
    """How far from zero the worst of the removed gates was; None for a network without gates."""
    if net.spec.gates not in ('scale', 'weight_norm'):
        return None
    scores = score_units(net.state_dict(), net.groups, 'gate')
    return max((float(values[unit]) for name, values in scores.items()
                for unit in set(range(len(values))) - set(kept[name])), default=0.0)


def describe_choice(when: str, pruning: Mapping[str, Any]) -> str:
    """How units were chosen, in words for the file: when, and by which section ``pruning``."""
    return f'{when}: {pruning["score"]}, {pruning["scope"]}, {pruning["ratio"]:.2%} of {pruning["budget"]}'
