"""EDSR, of BasicSR and EDSR-PyTorch, and the pruned ones of the ASSL and SRP authors, whose code is EDSR-PyTorch's.

=============================== ================================ ==========================================
ours and BasicSR's              EDSR-PyTorch's                   what
=============================== ================================ ==========================================
``conv_first``                  ``head.0``
``body.{j}.conv1``, ``.conv2``  ``body.{j}.body.0``, ``.body.2``
``conv_after_body``             ``body.{number of blocks}``
``upsample.0``, ``.2``          ``tail.0.0``, ``tail.0.2``
``conv_last``                   ``tail.1``
``upsample.0``, no conv_last    ``tail.0``                       the light tail of ASSL and SRP
arguments                       ``sub_mean``, ``add_mean``       1x1 convolutions that shift the mean
=============================== ================================ ==========================================

A state dict of BasicSR tells neither ``img_range`` and ``rgb_mean`` nor, of either, ``res_scale``: taken are BasicSR's
defaults, and for the large network of the paper (32 blocks of 256 channels) its 0.1. Others must be said.

The authors' file of a pruned network holds it as it is, all layers at the residual stream narrowed to the same
channels, and lists of the filters that were kept and removed, from which the size of the network before follows.
Without the lists (``model_best.pt`` of the finetuning) that is not known, and the widest layer stands for it. What they
prune by masks is saved at full size, with weights of 0: it is a dense network. ``wn_scale`` is ASSL's weight
normalisation, w = s * v / |v| for every filter, and is multiplied in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from basicsr_ssl.archs.edsr_arch import RGB_MEAN
from basicsr_ssl.checkpoints.layouts.layout import Found, Layout, State
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import shortened

_SHIFTS = tuple(f'{shift}.{part}' for shift in ('sub_mean', 'add_mean') for part in ('weight', 'bias'))


def read(state: State, lists: Mapping[str, Any] | None) -> Found:
    """Dense network, or pruned one of the ASSL and SRP authors.

    Raises:
        ValueError: the tensors are no whole EDSR, or contradict each other or the lists.
    """
    state, shifts = _without_weight_norm(state), {name: state[name] for name in _SHIFTS if name in state}
    state = {name: tensor for name, tensor in state.items() if name not in shifts}
    filters = {name.removesuffix('.weight'): len(tensor) for name, tensor in state.items() if tensor.dim() == 4}
    blocks = len({match[1] for name in state if (match := re.match(r'body\.(\d+)\.', name))})
    middles = {f'body.{j}.mid': filters.get(f'body.{j}.conv1', 1) for j in range(blocks)}  # strict loading misses it
    if missing := [name for name in ('conv_first', 'conv_after_body', 'upsample.0') if name not in filters]:
        raise ValueError(f'not a whole EDSR: missing or misshapen {", ".join(missing)}')
    stream = filters['conv_first']
    counts = None if lists is None else _counts(lists)
    full = max(stream, *middles.values()) if counts is None else _full(counts, 'head.0', stream)
    light = 'conv_last' not in filters
    units = 3 if light else state['conv_last.weight'].shape[1]
    scale = 4 if 'upsample.2' in filters else round((filters['upsample.0'] / units)**0.5)
    args = {'num_feat': full, 'num_block': blocks, 'scale': scale,
            'upsampler': 'pixelshuffledirect' if light else 'pixelshuffle',
            'res_scale': 0.1 if (full, blocks, light) == (256, 32, False) else 1.0, **_colours(shifts)}
    widths = {name: width for name, width in {'stream': stream, **middles}.items() if width != full}
    if not light and units != full:
        widths |= {name: units for name in ('upsample.0', 'upsample.2') if name in filters}
    untold = ('res_scale', 'residual', *(() if shifts else ('img_range', 'rgb_mean')))
    if counts is None and not widths:
        return Found(Spec('PrunableEDSR', args), state, untold=untold)
    if counts is not None:
        for j in range(blocks):
            _full(counts, f'body.{j}.body.0', middles[f'body.{j}.mid'], full)
    return Found(Spec('PrunableEDSR', {**args, 'residual': 'aligned'}, widths), state, 'ASSL or SRP authors',
                 untold=('res_scale',))


def to_basicsr(net: nn.Module) -> State:
    """The weights as BasicSR's ``EDSR`` loads them; its arguments are to be given to it.

    Raises:
        ValueError: that class has no place for something; all of it is listed.
    """
    spec: Any = net.spec
    if refused := [what for what, there in {
        'gates (prune first, or train on without them)': spec.form == 'gated',
        'pruned widths (keep it as safetensors)': spec.form == 'compact',
        'groups of blocks': spec.args['num_group'] > 0,
        'tail of one convolution': spec.args['upsampler'] != 'pixelshuffle',
    }.items() if there]:
        raise ValueError(f'whose class knows no {", no ".join(refused)}')
    return net.state_dict()


def _without_weight_norm(state: State) -> State:
    state = dict(state)
    for name in [name for name in state if name.endswith('.wn_scale')]:
        layer, strength = name.removesuffix('.wn_scale'), state.pop(name).flatten()
        weight = state.get(f'{layer}.weight')
        if weight is None or weight.dim() != 4 or len(strength) != len(weight):
            raise ValueError(f'{layer}: {len(strength)} factors of weight normalisation, which do not fit its '
                             'filters')
        norms = weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
        state[f'{layer}.weight'] = weight * (strength / norms).view(-1, 1, 1, 1)
    return state


def _counts(lists: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many filters of each layer, by the authors' name, the lists keep and remove."""
    counts: dict[str, dict[str, int]] = {}
    for name in ('kept_wg', 'pruned_wg'):
        table = lists.get(name)
        counts[name] = {}
        for key, units in table.items() if isinstance(table, dict) else ():
            layer = re.sub(r'^(module\.|model\.)*', '', str(key))
            if layer in counts[name]:
                raise ValueError(f'{name} names {shortened(layer)} twice')
            if hasattr(units, '__len__'):
                counts[name][layer] = len(units)
    return counts


def _full(counts: Mapping[str, Mapping[str, int]], layer: str, width: int, full: int | None = None) -> int:
    """Filters that a layer had before it was pruned."""
    for name, found in counts.items():
        if layer not in found:
            raise ValueError(f'{layer}: {name} has no list of its filters')
    kept, pruned = (found[layer] for found in counts.values())
    if kept != width or full not in (None, kept + pruned):
        raise ValueError(f'{layer}: kept_wg {kept} and pruned_wg {pruned} filters, but the layer has {width}'
                         + (f' and the network {full} channels' if full else ''))
    return kept + pruned


def _colours(shifts: State) -> dict[str, Any]:
    """Arguments of the two layers that shift the mean: x - range * mean, and back, on images in [0, range]."""
    if not shifts:
        return {}
    bias = shifts.get('sub_mean.bias')
    if len(shifts) < len(_SHIFTS) or bias is None or bias.shape != (3,) or not bias.isfinite().all() or not (
            shifts['add_mean.bias'].equal(-bias)):
        raise ValueError('sub_mean and add_mean are incomplete, or not each other\'s inverse')
    if any(not shifts[f'{shift}.weight'].equal(torch.eye(3).view(3, 3, 1, 1)) for shift in ('sub_mean', 'add_mean')):
        raise ValueError('sub_mean does more than shift the mean: this network divides by a deviation')
    ranges = [-float(value) / mean for value, mean in zip(bias.double(), RGB_MEAN)]
    img_range = round(ranges[0])
    rounding = max(1e-5, torch.finfo(bias.dtype).eps)
    if img_range < 1 or any(abs(value / img_range - 1) > rounding for value in ranges):
        raise ValueError(f'sub_mean subtracts {bias.tolist()}, which is no multiple of the mean of DIV2K')
    return {'img_range': float(img_range), 'rgb_mean': list(RGB_MEAN)}


def _from_edsr_pytorch(name: str) -> str:
    for theirs, ours in ((r'head\.0', 'conv_first'), (r'body\.(\d+)\.body\.0', r'body.\1.conv1'),
                         (r'body\.(\d+)\.body\.2', r'body.\1.conv2'), (r'body\.\d+', 'conv_after_body'),
                         (r'tail\.0\.([02])', r'upsample.\1'), (r'tail\.0', 'upsample.0'), (r'tail\.1', 'conv_last')):
        if match := re.fullmatch(rf'{theirs}\.(weight|bias|wn_scale)', name):
            return f'{match.expand(ours)}.{match[match.re.groups]}'
    return name


LAYOUTS = (
    Layout('EDSR-PyTorch', ('head.0.weight', 'body.0.body.0.weight', 'body.0.body.2.weight'), _from_edsr_pytorch, read),
    Layout('BasicSR', ('conv_first.weight', 'body.0.conv1.weight', 'conv_after_body.weight'), str, read),
)
