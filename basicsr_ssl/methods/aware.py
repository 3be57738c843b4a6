"""Pruning-aware training: the weakest filters of every layer are held down while the network learns."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.utils import get_root_logger
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from basicsr_ssl.api import choose_units
from basicsr_ssl.methods.method import METHOD_REGISTRY, Method
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.regularizers import selected_masks


class AwareOptions(BaseModel):
    """Pruning-aware training: an L2 penalty on the norms of the units that pruning would remove now."""

    model_config = ConfigDict(extra='forbid')

    type: str = Field('Aware', description='the method')
    alpha: float = Field(1e-2, gt=0, description='weight of the penalty')
    interval: int = Field(100, ge=1, description='iterations after which the units to be removed are chosen anew')


@METHOD_REGISTRY.register()
class Aware(Method):
    """What "Pruning Video Super Resolution Models" (A. K. Singh) proposes as its next step, and does not carry out.

    1. Filters are weight-normalised, W = g * v / |v|; here all units of groups are, the channels that a block reads and
       the quadruples before a pixel shuffle too.
    2. S are the units that pruning, as the section ``pruning`` says, would remove now: with ``score: l2`` and ``scope:
       local``, of every layer the share ``ratio`` with the smallest norms. S is chosen anew every ``interval``
       iterations, so that a unit that has become important gets away.
    3. The loss gets ``l_aware = alpha * sum of g^2 over S``.
    4. The pruning stage removes the last S.

    The source gives neither alpha nor the interval; the defaults are ours. It may start from a trained network or from
    a new one.
    """

    Options = AwareOptions
    kind = 'weight_norm'

    def __init__(self, net: Any, options: dict[str, Any], pruning: dict[str, Any]) -> None:
        super().__init__(net, options, pruning)
        if pruning['budget'] == 'latency':
            raise ValueError('sparsity: Aware chooses units anew all the time, and a latency would be measured each '
                             'time: set budget: macs, or use another method')
        names = {gate for group in net.groups for gate in group.gates}
        self.gates = {name: parameter for name, parameter in net.named_parameters() if name in names}

    def losses(self, iteration: int) -> dict[str, Tensor]:
        if (iteration - 1) % self.options['interval'] == 0:
            # the same on all processes, since their weights are the same
            before, self.kept = self.kept, choose_units(self.net, PruningOptions.of(**self.pruning))
            spared = sum(len(set(units) - set((before or self.kept)[name])) for name, units in self.kept.items())
            if spared:
                get_root_logger().info(f'Iteration {iteration}: {spared} units that were to go stay, others go')
        norms = [norm for norm, _ in self._norms(self.net)]
        return {'l_aware': self.options['alpha'] * torch.cat(norms).square().sum()}

    @torch.no_grad()
    def figures(self, net: nn.Module) -> dict[str, float]:
        """The mean norm of the units to be removed, as a share of that of the others."""
        if self.kept is None:
            return {}
        chosen, others = (torch.cat(norms).abs().mean() for norms in zip(*self._norms(net)))
        return {'selected_norm': float(chosen / others)}

    def _norms(self, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Of every gate vector the entries of the units to be removed, and of those that stay."""
        assert self.kept is not None
        masks = {name: mask.to(self.gates[name].device) for name, mask in
                 selected_masks(self.net.groups, self.kept).items()}
        return [(gate[masks[name]], gate[~masks[name]]) for name, gate in net.named_parameters() if name in masks]
