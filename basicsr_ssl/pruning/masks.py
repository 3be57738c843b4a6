"""Masks: what pruning leaves where nothing is cut out. Single weights go, or whole filters without regard to groups.

What is removed is zero, and the network keeps its shape and its cost; what it is worth is seen in the size of a file
that holds only the other weights (``checkpoints/sparse.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from basicsr_ssl.pruning.gates import mask_name
from basicsr_ssl.pruning.options import PruningOptions, check_named
from basicsr_ssl.pruning.selection import half_up

#: Layer name to its weights left and all its weights.
Left = dict[str, tuple[int, int]]


def open_masks(state: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """Masks of the layers' weights that leave all of them, by their names in the state dict."""
    return {mask_name(f'{layer}.weight'): torch.ones_like(state[f'{layer}.weight'], dtype=torch.bool)
            for layer in layers}


def choose_masks(state: Mapping[str, Tensor], layers: Iterable[str], options: PruningOptions) -> dict[str, Tensor]:
    """Which weights stay: all but the least important ones.

    ``structure: weights`` removes single weights by |w|, ``structure: filters`` whole filters, by the mean |w| of a
    filter's weights (``l1``) or their root mean square (``l2``); their biases stay. ``scope: local`` takes the same
    share from every layer, ``global`` ranks the weights or filters of all layers together, with ``relative`` against
    their layer's mean. The order is total, (score, layer, place), so that the count is exact: of n there go
    ``round(ratio * n)``, halves up. The choices of ``torch.nn.utils.prune.l1_unstructured``, ``global_unstructured``
    and ``ln_structured``.

    Args:
        state: state dict of a network without gates and masks; where a mask was folded in, weights are 0 and go first.
        layers: names of the convolutions.
        options: ``score: random`` draws by ``seed``. ``min_keep`` weights or filters stay in every layer.

    Returns:
        Masks by their names in the state dict, true for what stays.

    Raises:
        ValueError: so much cannot be removed, ``ratios`` names other layers, or weights are not finite.
    """
    weights = {layer: state[f'{layer}.weight'].detach() for layer in layers}
    check_named(options.ratios or {}, weights, 'convolution')
    scores = _scores(weights, options)
    kept = _highest(scores, options)
    masks = {}
    for layer, weight in weights.items():
        mask = kept[layer] if options.structure == 'weights' else kept[layer].repeat_interleave(weight[0].numel())
        masks[mask_name(f'{layer}.weight')] = mask.view(weight.shape).to(weight.device)
    return masks


def weights_left(state: Mapping[str, Tensor]) -> Left:
    """How many weights the masks leave, layer by layer; layers without a mask are not named."""
    masks = {name: state[mask_name(name)] for name in state if mask_name(name) in state}
    return {name.removesuffix('.weight'): (int(mask.sum()), mask.numel()) for name, mask in masks.items()}


def _scores(weights: Mapping[str, Tensor], options: PruningOptions) -> dict[str, Tensor]:
    """Layer name to a score, float64 on the CPU, of each weight or each filter."""
    generator = torch.Generator().manual_seed(options.seed)
    scores = {}
    for layer, weight in weights.items():
        values = weight.double().cpu().reshape(weight.numel() if options.structure == 'weights' else len(weight), -1)
        if not bool(values.isfinite().all()):
            raise ValueError(f'the weights of {layer} are not finite (nan or inf): the training that made this network '
                             'has diverged')
        power = 2 if options.score == 'l2' else 1
        score = torch.rand(len(values), generator=generator, dtype=torch.float64) if options.score == 'random' else \
            values.abs().pow(power).mean(1).pow(1 / power)
        relative = options.relative and options.scope == 'global' and options.score != 'random'
        scores[layer] = score / score.mean().clamp_min(1e-300) if relative else score
    return scores


def _highest(scores: Mapping[str, Tensor], options: PruningOptions) -> dict[str, Tensor]:
    """Layer name to a mask, false for what is removed."""
    orders = {layer: values.argsort(stable=True) for layer, values in scores.items()}
    if options.scope == 'local' or options.ratios:
        masks = {}
        for layer, order in orders.items():
            share = (options.ratios or {}).get(layer, options.ratio)
            removed = min(half_up(share, len(order)), max(0, len(order) - options.min_keep))
            masks[layer] = torch.ones(len(order), dtype=torch.bool)
            masks[layer][order[:removed]] = False
        return masks
    every = torch.cat(list(scores.values()))
    removable = torch.cat([torch.ones(len(values), dtype=torch.bool).index_fill_(0, order[-options.min_keep:], False)
                           for values, order in zip(scores.values(), orders.values())])
    removed, most = half_up(options.ratio, len(every)), int(removable.sum())
    if removed > most:
        raise ValueError(f'ratio {options.ratio} cannot be reached: with min_keep {options.min_keep} at most '
                         f'{most / len(every):.4f} can be removed; choose a smaller ratio or min_keep')
    line = every.argsort(stable=True)
    mask = torch.ones(len(every), dtype=torch.bool)
    mask[line[removable[line]][:removed]] = False
    return dict(zip(scores, mask.split([len(values) for values in scores.values()])))
