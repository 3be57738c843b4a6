"""Optimizers, which parameters they treat alike, and the course of the learning rate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from basicsr.models import lr_scheduler
from basicsr.utils.registry import Registry
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

OPTIMIZER_REGISTRY = Registry('optimizer')

_Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(BaseModel):
    """Keys that every optimizer has."""

    model_config = ConfigDict(extra='forbid')

    type: str = Field('Adam', description="the optimizer's name")
    lr: float = Field(gt=0, description='learning rate')
    weight_decay: float = Field(0.0, ge=0, description='L2 penalty on all weights')


class AdamOptions(OptimizerOptions):
    """The optimizer."""

    betas: Annotated[list[_Share], Field(min_length=2, max_length=2)] = Field([0.9, 0.999], description="Adam's betas")


class SGDOptions(OptimizerOptions):
    """Stochastic gradient descent."""

    momentum: float = Field(0.0, ge=0, lt=1, description='share of the step before that is kept')
    nesterov: bool = Field(False, description="Nesterov's momentum")


class OBProxSGOptions(OptimizerOptions):
    """Stochastic gradient descent on the loss plus an L1 penalty, whose zeros are exact."""

    penalty: float = Field(1e-4, ge=0, description='factor of the L1 norm of the weights')
    proximal_iter: int = Field(ge=0, description='iterations of proximal steps; those after it are orthant steps')
    eps: float = Field(1e-4, ge=0, description='greatest magnitude that an orthant step sets to 0')


@OPTIMIZER_REGISTRY.register()
class Adam(torch.optim.Adam):
    Options = AdamOptions


@OPTIMIZER_REGISTRY.register()
class AdamW(torch.optim.AdamW):
    Options = AdamOptions


@OPTIMIZER_REGISTRY.register()
class SGD(torch.optim.SGD):
    Options = SGDOptions


@OPTIMIZER_REGISTRY.register()
class OBProxSG(torch.optim.Optimizer):
    """OBProx-SG (Chen et al., arXiv 2004.03639), for a loss plus ``penalty * |x|_1``.

    With g the gradient of the loss, the first ``proximal_iter`` iterations shrink towards zero, and the others stay in
    the orthant that the weights are in::

        proximal    x <- S(x - lr * g),  S(z) = sign(z) * max(|z| - lr * penalty, 0)
        orthant     z = x - lr * (g + penalty * sign(x));   x <- z where z has the sign of x and |z| > eps, else 0

    So what is 0 after the proximal steps stays 0. Penalised are weights of two dimensions and more (ours); biases and
    norms take plain gradient steps.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        penalty, proximal_iter, eps: see above.
        weight_decay: L2 penalty.
    """

    Options = OBProxSGOptions

    def __init__(self, params: Any, lr: float, penalty: float = 1e-4, proximal_iter: int = 0, eps: float = 1e-4,
                 weight_decay: float = 0.0) -> None:
        # the count stands in the groups, and so in the state that a resume reads
        super().__init__(params, {'lr': lr, 'penalty': penalty, 'proximal_iter': proximal_iter, 'eps': eps,
                                  'weight_decay': weight_decay, 'iterations': 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            proximal = group['iterations'] < group['proximal_iter']
            group['iterations'] += 1
            lr, penalty = group['lr'], group['penalty']
            for x in group['params']:
                if x.grad is None:
                    continue
                gradient = x.grad + group['weight_decay'] * x
                if x.dim() < 2:
                    x.sub_(lr * gradient)
                elif proximal:
                    z = x - lr * gradient
                    x.copy_(z.sign() * (z.abs() - lr * penalty).clamp_min(0))
                else:
                    z = x - lr * (gradient + penalty * x.sign())
                    x.copy_(torch.where((z.sign() == x.sign()) & (z.abs() > group['eps']), z, 0))
        return loss


def build_optimizer(net: Any, train: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of ``train: optim_g``, with a parameter group each for the network, its flow network and its gates.

    Gates are not decayed: the method's own penalty is the only one that acts on them.
    """
    settings = copy.deepcopy(train['optim_g'])
    kind, lr = settings.pop('type'), settings.pop('lr')
    gates = {gate for group in net.groups for gate in group.gates}
    flow = {id(parameter) for parameter in flow_parameters(net)}
    members: dict[str, list[nn.Parameter]] = {'net': [], 'flow': [], 'gates': []}
    for name, parameter in net.named_parameters():
        members['gates' if name in gates else 'flow' if id(parameter) in flow else 'net'].append(parameter)
    scale = {'net': 1, 'flow': train['flow_lr_mul'], 'gates': train['gate_lr_mul']}
    groups = [{'params': parameters, 'lr': lr * scale[part], 'name': part,
               **({'weight_decay': 0} if part == 'gates' else {})}
              for part, parameters in members.items() if parameters]
    return OPTIMIZER_REGISTRY.get(kind)(groups, lr, **settings)


def flow_parameters(net: Any) -> list[nn.Parameter]:
    """Those of the network's flow network; none if it has none, or is one itself."""
    return [] if net.flow_network is None else list(net.flow_network.parameters())


class LearningRate:
    """Linear warm-up into one of BasicSR's schedules.

    BasicSR's own warm-up stops one step short of the full rate, and its MultiStepRestartLR would stay there.

    Args:
        optimizer: whose rates are set.
        scheduler: the section ``train: scheduler``.
        warmup_iter: the rate of iteration i is i / warmup_iter of the full one until then; -1: none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Mapping[str, Any], warmup_iter: int) -> None:
        settings = copy.deepcopy(dict(scheduler))
        # BasicSR takes the name of torch's plain class for its own with restarts
        kind = settings.pop('type').replace('MultiStepLR', 'MultiStepRestartLR')
        self.optimizer, self.warmup_iter = optimizer, warmup_iter
        self.scheduler = getattr(lr_scheduler, kind)(optimizer, **settings)

    def update(self, iteration: int) -> None:
        """Set the rates of ``iteration``, from 1 on; called once for each, in order, before its step."""
        groups = self.optimizer.param_groups
        if iteration == self.warmup_iter:
            for group in groups:
                group['lr'] = group['initial_lr']
        if iteration > 1:
            self.scheduler.step()
        if iteration < self.warmup_iter:
            for group in groups:
                group['lr'] = group['initial_lr'] / self.warmup_iter * iteration

    def rates(self) -> dict[str, float]:
        """By parameter group."""
        return {group['name']: group['lr'] for group in self.optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        # the rest of a scheduler's state follows from the options
        return {key: getattr(self.scheduler, key) for key in ('last_epoch', '_step_count', '_last_lr')}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)
