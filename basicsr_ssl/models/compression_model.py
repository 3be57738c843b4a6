"""Compression: from a network with zeros in its weights to a small dense one of the same kind."""

from __future__ import annotations

import json
import os
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from basicsr_ssl.api import network_cost, without_gates
from basicsr_ssl.checkpoints.store import load_strictly
from basicsr_ssl.files import write_text
from basicsr_ssl.models.stage import Stage
from basicsr_ssl.pruning.compression import block_density, body_density, densest, smaller, transplant
from basicsr_ssl.pruning.cost import LR_SIZE


@MODEL_REGISTRY.register()
class CompressionModel(Stage):
    """CDISM's second stage (arXiv 2401.00523): the density of a sparse network says how small a network may be.

    The paper publishes two results of it and no rule; the rule of ``pruning/compression.py`` is ours. Writes
    ``report.json``, with the density of every block.
    """

    sections = ('compression',)

    def prepare(self, net: Any) -> nn.Module:
        options = self.opt['compression']
        if getattr(net, 'body_table', None) is None or net.spec.widths:
            raise ValueError(f'path: pretrain_network_g holds a {net.spec.form} {type(net).__name__}; a small one can '
                             'be made of a dense PrunableEDSR or PrunableSwinIR')
        net = without_gates(net) if net.spec.gates else net
        args, state = net.spec.args, net.state_dict()
        body = net.body_table(args)
        if len({len(stack.blocks) for stack in body.stacks}) > 1:
            raise ValueError('path: pretrain_network_g: its groups have different numbers of blocks; they should be of '
                             'equal length')
        densities, measured = block_density(state, body), body_density(state, body)
        if not measured and options['density'] is None:
            raise ValueError('path: pretrain_network_g: all weights of its blocks are 0: train with a smaller penalty, '
                             'or say a density (compression: density)')
        size = smaller(body, options['density'] or measured, options['channel_share'], options['round_to'])
        if unknown := sorted(options['args'].keys() - args.keys()):
            raise ValueError(f'compression: args: a {type(net).__name__} has no {", ".join(unknown)}; it has '
                             f'{", ".join(args)}')
        new = type(net)(**{**net.resized(args, size), **options['args']}).to(next(net.parameters()))
        taken = densest(densities, body, size)
        if options['init'] == 'teacher':
            load_strictly(new, transplant(state, net.spec, net.unit_table(args), taken, new.state_dict(),
                                          net.unit_table(new.spec.args), net.body_table(new.spec.args).stacks),
                          'compression: args: the small network')
        before, after = (network_cost(network, LR_SIZE) for network in (net, new))
        self.report = {'compression': options, 'density': measured, 'block_density': densities,
                       'size': vars(size), 'blocks': [list(stack.blocks) for stack in taken],
                       **{name: {'before': before[name], 'after': after[name]} for name in before}}
        self.method = f'compression: density {options["density"] or measured:.2%}, from {options["init"]}'
        get_root_logger().info(f'Of the weights of the blocks {measured:.2%} are not 0. Small network: {size.channels} '
                               f'channels, {size.stacks} x {size.blocks} blocks')
        return new

    def provenance(self) -> dict[str, Any]:
        return {'compressed': {key: value for key, value in self.report.items() if key != 'block_density'}}

    def save_network(self, label: str, iteration: int) -> None:
        if self.run.processes.is_first:
            write_text(os.path.join(self.run.folder, 'report.json'), json.dumps(self.report, indent=2) + '\n')
        super().save_network(label, iteration)
