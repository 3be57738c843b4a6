"""The training stages written out as plain loops, one iteration after another, in whatever precision the weights have.

Of the package only a network's forward, its flow network and its group declarations are used. A batch is a list of
parts ``(lq, gt)``: one for each process and each accumulated batch, all of the same size; gradients are their mean.
``train``, ``sparsity`` and ``pruning`` are the sections of the option file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Batch = list[tuple[Tensor, Tensor]]
Kept = dict[str, list[int]]


class Trained(NamedTuple):
    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    kept: Kept | None = None
    clipped: int = 0  # iterations whose gradient was longer than allowed
    losses: tuple[float, ...] = ()  # of the iterations


# ------------------------------------------------------------------ the stages

def reconstruct(net: Any, batches: Iterable[Batch], train: Mapping[str, Any]) -> Trained:
    """Dense training and plain finetuning: the distance between output and ground truth."""
    return _loop(net, batches, train, lambda lq, gt: charbonnier(net(lq), gt), train.get('fix_flow') or 0)


def learn_sparsity(net: Any, batches: Iterable[Batch], train: Mapping[str, Any], sparsity: Mapping[str, Any],
                   pruning: Mapping[str, Any], flow_from: float = math.inf) -> Trained:
    """After ``select_iter`` iterations units are selected, and what is theirs is pulled to zero.

    Of ``SSL`` (section 3.3) these are their gates; of ``ASSL`` the norms of their filters, which are gates too, and
    their biases; of ``SRP``, whose network has no gates, their filters and biases. The flow network does not train,
    unless it is pruned too: then from iteration ``flow_from`` on.
    """
    method, done = sparsity.get('type', 'SSL'), 0
    kind = {'SSL': 'scale', 'ASSL': 'weight_norm', 'SRP': ''}[method]
    chosen: Kept = {}
    pulled: dict[str, Tensor] = {}

    def choose() -> Kept:
        kept = rank(net.state_dict(), net.groups, **pruning, kind=kind)
        generator = torch.Generator().manual_seed(0)
        for group in net.groups:
            if method == 'SRP' and len(gates_of(group)) > 1:  # the layers of a stream lose the same, by chance
                order = torch.randperm(group.size, generator=generator)
                kept[group.name] = sorted(order[:len(kept[group.name])].tolist())
        return kept

    def mark(name: str, dim: int, index: int) -> None:
        shape = net.get_parameter(name).shape
        pulled.setdefault(name, torch.zeros(shape)).movedim(dim, 0)[index] = 1  # once, though it be two units'

    def penalise(iteration: int) -> float:
        nonlocal done
        done, step = iteration, iteration - sparsity['select_iter']
        if step < 1:
            return 0
        if not chosen:
            chosen.update(choose())
            for group in net.groups:
                for unit in set(range(group.size)) - set(chosen[group.name]):
                    for gate in gates_of(group) if kind else ():
                        mark(gate, 0, unit)
                    for name, dim, index in own(group, unit):
                        if method == 'SRP' or (method == 'ASSL' and name.endswith('bias')):
                            mark(name, dim, index)
        factor = min(sparsity['ceiling'], sparsity['delta'] * (step // sparsity['interval']))
        for name, mask in pulled.items():
            parameter = net.get_parameter(name)
            parameter.grad += factor * mask * parameter.detach()
        return 0

    def loss(lq: Tensor, gt: Tensor) -> Tensor:
        value = charbonnier(net(lq), gt)
        for group in net.groups if method == 'ASSL' and done < sparsity['select_iter'] else ():
            if len(gates_of(group)) > 1:
                layers = [net.get_parameter(gate) for gate in gates_of(group)]
                value = value + sparsity['align_weight'] * alignment(layers, half_up(pruning['ratio'] * group.size))
        return value

    trained = _loop(net, batches, train, loss, flow_from, penalise)
    return trained._replace(kept=chosen or None)


def train_aware(net: Any, batches: Iterable[Batch], train: Mapping[str, Any], sparsity: Mapping[str, Any],
                pruning: Mapping[str, Any]) -> Trained:
    """Pruning-aware training: alpha * sum g^2 over the units of least norm, chosen every ``interval`` iterations.

    The flow network does not train. The gates of ``net`` are norms.
    """
    choices: list[Kept] = []

    def penalise(iteration: int) -> float:
        if iteration % sparsity['interval'] == 1 % sparsity['interval']:
            choices.append(strongest(net.state_dict(), net.groups, pruning['ratio']))
        parameters, penalty = dict(net.named_parameters()), 0.0
        for group in net.groups:
            for gate in gates_of(group):
                for unit in set(range(group.size)) - set(choices[-1][group.name]):
                    norm = parameters[gate].detach()[unit]
                    parameters[gate].grad[unit] += 2 * sparsity['alpha'] * norm
                    penalty += sparsity['alpha'] * float(norm)**2
        return penalty

    trained = _loop(net, batches, train, lambda lq, gt: charbonnier(net(lq), gt), math.inf, penalise)
    assert any(choice != choices[0] for choice in choices)  # else nothing was chosen anew
    return trained._replace(kept=choices[-1])


def finetune(net: Any, teacher: Any, batches: Iterable[Batch], train: Mapping[str, Any]) -> Trained:
    """SSL, section 3.4: the hidden states are held to those of the dense network besides."""
    def loss(lq: Tensor, gt: Tensor) -> Tensor:
        output, states = net(lq, return_states=True)
        with torch.no_grad():
            expected = teacher(lq, return_states=True)[1]
        return charbonnier(output, gt) + temporal(states, expected, **train['temporal_opt'])

    return _loop(net, batches, train, loss, train.get('fix_flow') or 0)


def distill(net: Any, teacher: Any, batches: Iterable[Batch], train: Mapping[str, Any]) -> Trained:
    """CDISM, stage 3: the output is held to a larger network's, and a tenth as much to the ground truth."""
    def loss(lq: Tensor, gt: Tensor) -> Tensor:
        output = net(lq)
        with torch.no_grad():
            expected = teacher(lq)
        return 0.1 * (output - gt).abs().mean() + train['distill_opt'].get('loss_weight', 1) * multi_laplacian(
            output, expected)

    return _loop(net, batches, train, loss, train.get('fix_flow') or 0)


def _loop(net: Any, batches: Iterable[Batch], train: Mapping[str, Any], loss: Callable[[Tensor, Tensor], Tensor],
          flow_from: float, penalise: Callable[[int], float] = lambda iteration: 0) -> Trained:
    """``penalise`` adds to the gradients, and returns what it is that it adds to the loss; 0 if it is no loss."""
    average = copy.deepcopy(net.state_dict())
    gates = {gate for group in net.groups for gate in gates_of(group)}
    flow = set() if net.flow_network is None else {id(parameter) for parameter in net.flow_network.parameters()}
    moments: dict[str, dict[str, Any]] = {}
    clipped = 0
    losses = []
    for iteration, batch in enumerate(batches, 1):
        # the gradient: the mean over the parts, then the penalty, then its length is bounded
        net.zero_grad(set_to_none=True)
        for parameter in net.parameters():
            parameter.requires_grad_(id(parameter) not in flow or iteration >= flow_from)
        values = [loss(lq, gt) for lq, gt in batch]
        torch.stack(values).mean().backward()
        losses.append(torch.stack(values).mean().item() + penalise(iteration))
        learning = {name: p for name, p in net.named_parameters() if p.grad is not None}
        if train.get('clip_grad_norm'):
            length = math.sqrt(sum(float(p.grad.square().sum()) for p in learning.values()))
            clipped += length > train['clip_grad_norm']
            for p in learning.values():
                p.grad *= min(1, train['clip_grad_norm'] / (length + 1e-6))
        # the step, with the rate of this iteration; gates are not decayed
        for name, p in learning.items():
            part = 'gate' if name in gates else 'flow' if id(p) in flow else ''
            decay = 0 if part == 'gate' else train['optim_g'].get('weight_decay', 0)
            base = train['optim_g']['lr'] * (train.get(f'{part}_lr_mul', 1) if part else 1)
            adam(p, p.grad + decay * p.detach(), moments.setdefault(name, {'step': 0, 'first': 0, 'second': 0}),
                 learning_rate(base, iteration, train), *train['optim_g'].get('betas', (0.9, 0.999)))
        share = train.get('ema_decay', 0)
        average = {name: share * average[name] + (1 - share) * value.detach()
                   for name, value in net.state_dict().items()}
    return Trained({name: value.clone() for name, value in net.state_dict().items()}, average, None, clipped,
                   tuple(losses))


# ---------------------------------------------------------------- their pieces

@torch.no_grad()
def adam(parameter: Tensor, gradient: Tensor, moment: dict[str, Any], rate: float, beta1: float, beta2: float) -> None:
    moment['step'] += 1
    moment['first'] = beta1 * moment['first'] + (1 - beta1) * gradient
    moment['second'] = beta2 * moment['second'] + (1 - beta2) * gradient**2
    first, second = (moment[name] / (1 - beta**moment['step'])
                     for name, beta in (('first', beta1), ('second', beta2)))
    parameter -= rate * first / (second.sqrt() + 1e-8)


def learning_rate(base: float, iteration: int, train: Mapping[str, Any]) -> float:
    """Of the iterations 1, 2, ...: a linear rise, then one cycle of a cosine or steps down."""
    if iteration < train.get('warmup_iter', -1):
        return base * iteration / train['warmup_iter']
    scheduler = train['scheduler']
    if scheduler['type'] == 'CosineAnnealingRestartLR':
        least, (period,) = scheduler['eta_min'], scheduler['periods']
        return least + (base - least) * (1 + math.cos(math.pi * (iteration - 1) / period)) / 2
    return base * scheduler.get('gamma', 0.1)**sum(iteration > milestone for milestone in scheduler['milestones'])


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target)**2 + 1e-12).sqrt().mean()


def temporal(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], type: str = '', loss_weight: float = 1,
             norm: str = 'l1', step_weight: str = 'uniform', relative: bool = True, eps: float = 1e-3) -> Tensor:
    """States (b, n, c, h, w) of each direction; the last step forward is frame n - 1, backward frame 0."""
    distance = {'l1': lambda d: d.abs(), 'l2': lambda d: d**2, 'charbonnier': lambda d: (d**2 + eps**2).sqrt()}[norm]
    size = (lambda t: t**2) if norm == 'l2' else (lambda t: t.abs())
    total: Any = 0
    for direction, states in student.items():
        expected, n = teacher[direction], states.shape[1]
        order = range(n) if direction == 'forward' else reversed(range(n))
        weights = [k + 1 if step_weight == 'linear' else 1 for k in range(n)]
        value = sum(weight * distance(states[:, frame] - expected[:, frame]).mean()
                    for weight, frame in zip(weights, order)) / sum(weights)
        total = total + (value / size(expected).mean() if relative else value)
    return loss_weight * total / len(student)


def multi_laplacian(a: Tensor, b: Tensor, levels: int = 5) -> Tensor:
    """Images (..., h, w); levels from fine to coarse weigh 1, 2, 4, ..."""
    def lap(one: Tensor, other: Tensor) -> Tensor:
        total: Any = 0
        for level in range(levels):
            parts = []
            for image in (one, other):
                rows, columns = (blur_matrix(n, image) for n in image.shape[-2:])
                coarse = (rows @ image @ columns.T)[..., ::2, ::2]
                if level < levels - 1:
                    # every other pixel, and zeros between them
                    wide = [torch.eye(n).to(image)[:, ::2] for n in image.shape[-2:]]
                    enlarged = (2 * rows @ wide[0]) @ coarse @ (2 * columns @ wide[1]).T
                    parts.append((image - enlarged, coarse))
                else:
                    parts.append((image, image))
            total = total + 2**level * (parts[0][0] - parts[1][0]).abs().mean()
            one, other = parts[0][1], parts[1][1]
        return total

    sharp = [image - blur_matrix(image.shape[-2], image) @ image @ blur_matrix(image.shape[-1], image).T
             for image in (a, b)]
    return lap(a, b) + lap(*sharp)


def blur_matrix(n: int, like: Tensor) -> Tensor:
    """(n, n): 1, 4, 6, 4, 1 sixteenths; a pixel beyond the border is the one as far within it."""
    matrix = torch.zeros(n, n)
    for i in range(n):
        for offset, weight in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1)):
            j = abs(i + offset)
            matrix[i, 2 * (n - 1) - j if j > n - 1 else j] += weight / 16
    return matrix.to(like)


def gates_of(group: Any) -> list[str]:
    return sorted({part.gate for part in group.slices if part.gate})


def half_up(number: float) -> int:
    return math.floor(number + 0.5)


def own(group: Any, unit: int) -> list[tuple[str, int, int]]:
    """Parameter, dimension and index of what a gate of the unit would scale."""
    return [(part.param, part.dim, part.offset + unit * part.repeat + k)
            for part in group.slices if part.gate for k in range(part.repeat)]


def alignment(layers: list[Tensor], removed: int) -> Tensor:
    """``-mean(M M^T)`` entry by entry; a layer's soft mask measures its s from the least that is left of them."""
    masks = []
    for s in layers:
        least = sorted(s.abs().unbind())[removed]
        masks.append([1 / (1 + torch.exp(least - value)) for value in s.abs().unbind()])
    entries = [torch.stack([a * b for a, b in zip(one, other)]).sum() for one in masks for other in masks]
    return -torch.stack(entries).mean()


def rank(state: Mapping[str, Tensor], groups: Iterable[Any], ratio: float, score: str, min_keep: int = 1,
         scope: str = 'global', kind: str = 'scale') -> Kept:
    """All units in one line by ``(score, group, unit)``; the first ``ratio`` of them go, but ``min_keep`` a group.

    ``local``: every group is a line of its own.

    ``gate``: |g|. ``l1``: mean |w| of a unit's own weights with their gates, relative to the mean of the group.
    """
    line = []
    for group in groups:
        if score == 'gate':
            scores = sum(state[gate].abs() for gate in gates_of(group))
        else:
            folded = fold(state, groups, kind)
            weights = [folded[part.param].movedim(part.dim, 0).reshape(group.size, -1) for part in group.slices
                   if part.gate and folded[part.param].dim() > 1]
            scores = torch.cat(weights, 1).abs().mean(1)
            scores = scores / scores.mean()
        units = sorted((float(value), group.name, unit) for unit, value in enumerate(scores))  # type: ignore[arg-type]
        line += [(*entry, place >= group.size - min_keep) for place, entry in enumerate(units)]
    lines = [line] if scope == 'global' else [[e for e in line if e[1] == group.name] for group in groups]
    gone = {entry[1:3] for line in lines
            for entry in [entry for entry in sorted(line) if not entry[3]][:half_up(ratio * len(line))]}
    return {group.name: [unit for unit in range(group.size) if (group.name, unit) not in gone] for group in groups}


def strongest(state: Mapping[str, Tensor], groups: Iterable[Any], ratio: float) -> Kept:
    """Of every group all but the ``ratio`` whose own weights are the shortest; gates are norms of units."""
    def own(group: Any, weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([weights[part.param].movedim(part.dim, 0).reshape(group.size, -1) for part in group.slices
                          if part.gate and weights[part.param].dim() > 1], 1)

    folded = fold(state, groups, 'weight_norm')
    return {group.name: sorted(own(group, folded).norm(dim=1).argsort()[half_up(ratio * group.size):].tolist())
            for group in groups}


def fold(state: Mapping[str, Tensor], groups: Iterable[Any], kind: str = 'scale') -> dict[str, Tensor]:
    """Every gate multiplied into the weights and biases that it scales, and then dropped.

    ``weight_norm``: divided by the norm of all the weights that it scales.
    """
    folded = {name: tensor.clone() for name, tensor in state.items()}
    for group in groups:
        for part in group.slices:
            if part.gate in state:
                weight = folded[part.param].movedim(part.dim, 0)
                for unit in range(group.size):
                    scale = state[part.gate][unit]
                    if kind == 'weight_norm':
                        scale = scale / norm(state, group, part.gate, unit)
                    for k in range(part.repeat):
                        weight[part.offset + unit * part.repeat + k] *= scale
    for gate in {gate for group in groups for gate in gates_of(group)}:
        folded.pop(gate, None)
    return folded


def norm(state: Mapping[str, Tensor], group: Any, gate: str, unit: int) -> float:
    """Of the weights of a unit that one of its gates scales."""
    gates = {part.param: part.gate for part in group.slices if part.gate}
    return math.sqrt(sum(float(state[name].movedim(dim, 0)[index].square().sum())
                         for name, dim, index in own(group, unit) if gates[name] == gate and state[name].dim() > 1))
