"""Find out how a network runs fastest: by measuring it on the machine at hand.

What is fastest differs from machine to machine and from width to width, so no rule decides. Tried are, in this order:

1. of each stream the order of its channels in which the kept ones stand side by side (``pruning.layout.seriate``);
2. of each block, in channels_last: whether it gathers its channels, or reads all between the first and the last of
   them, those it does not keep with weights of zero; the same where it writes; whether the width between its
   convolutions is filled up with units of zeros;
3. of the whole network: both memory layouts, with and without the order, with the blocks' forms, with all widths filled
   up.

What is planned is what measured fastest, the network as it is among it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from basicsr_ssl.latency import least_ms, num_threads, random_clip, run_clip
from basicsr_ssl.nn.blocks import ResidualBlock
from basicsr_ssl.plans.cache import cache_file, keep
from basicsr_ssl.plans.plan import Plan, apply_plan
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.layout import is_run, seriate

#: Pixels of an LR frame that blocks are measured on at most. Beyond what caches hold nothing changes but the time.
MOST_PIXELS = 180 * 320
#: Kernels of the CPU make output channels in vectors, and do not save what is left over of one.
VECTOR = 16
#: A form must be this much faster than a simpler one.
GAIN = 1.02
AS_IT_IS = 'as it is'

Units = int | list[int]


def optimize_network(net: nn.Module, lr_size: tuple[int, int], threads: int | None = None,
                     cache: str | os.PathLike[str] | None = None) -> nn.Module:
    """A network that computes the same and runs as fast as was found on this machine.

    The plan is measured once, seconds to minutes, and kept in ``cache`` by everything that it depends on: the network's
    shape, the frame's size, threads, device, torch. The sums that a convolution takes come in another order, so outputs
    differ by rounding.

    Args:
        net: a network of this package, in any form, on the device where it is to run; it is not changed.
        lr_size: LR frame, (h, w).
        threads: of the CPU; None for as many as torch uses now.
        cache: folder of plans; None for ``$XDG_CACHE_HOME/basicsr_ssl`` or ``~/.cache/basicsr_ssl``.

    Returns:
        A new network of the same class, in evaluation mode. The channels of its hidden states may stand in another
        order.

    Raises:
        ValueError: ``lr_size`` or ``threads`` is not positive.
    """
    return apply_plan(net, find_plan(net, lr_size, threads, cache))


def find_plan(net: Any, lr_size: tuple[int, int], threads: int | None = None,
              cache: str | os.PathLike[str] | None = None) -> Plan:
    """The plan of ``optimize_network``: from the cache, or measured. One that is unreadable or does not fit is measured
    anew."""
    if min(lr_size) < 1 or (threads is not None and threads < 1):
        raise ValueError(f'lr_size and threads must be at least 1, got {lr_size} and {threads}')
    if (first := next(net.parameters(), None)) is None:
        return Plan()  # there is nothing to lay out
    device = first.device
    with num_threads(threads):
        file = cache_file('plan', device, cache, spec=net.spec.to_json(), dtype=str(first.dtype), lr_size=list(lr_size))
        try:
            plan = Plan.model_validate_json(file.read_bytes())
            apply_plan(net, plan)
            return plan
        except (OSError, ValueError):
            plan = make_plan(net, lr_size)
    keep(file, plan.model_dump_json(indent=1))
    return plan


@torch.no_grad()
def make_plan(net: nn.Module, lr_size: tuple[int, int]) -> Plan:
    """Measure a plan, with the threads that torch has."""
    plain: Any = apply_plan(net, Plan())
    size = cropped(lr_size)
    orders = {stream: order for stream, order in _orders(plain).items() if order != list(range(len(order)))}
    planned, tried = _plan_blocks(plain, Plan(channels_last=True, orders=orders), size)
    widths = {group.name: filled for group in plain.groups if not group.stream and not group.normalised
              and (filled := _filled(group, plain)) != planned.units.get(group.name, group.size)}
    candidates = {
        AS_IT_IS: Plan(), 'channels_last': Plan(channels_last=True),
        'ordered': Plan(orders=orders), 'channels_last, ordered': Plan(channels_last=True, orders=orders),
        'channels_last, ordered, blocks': planned,
        'channels_last, ordered, blocks, widths': planned.model_copy(update={'units': {**planned.units, **widths}})}
    candidates = {label: plan for i, (label, plan) in enumerate(candidates.items())
                  if plan not in list(candidates.values())[:i]}
    best, ms = _fastest(plain, candidates, size)
    return candidates[best].model_copy(update={
        'figures': {'chosen': best, 'lr_size': list(size), 'ms': ms, 'blocks': tried}})


def _orders(net: Any) -> dict[str, list[int]]:
    """Of each stream whose channels are not all kept everywhere, the order in which kept ones stand side by side."""
    streams: dict[str, list[Group]] = {}
    for group in net.groups:
        if group.stream:
            streams.setdefault(group.stream, []).append(group)
    full = net.full_widths(net.spec.args)
    return {stream: seriate([net.spec.index[group.name] for group in members if group.name in net.spec.index],
                            full[members[0].name])
            for stream, members in streams.items() if any(group.name in net.spec.index for group in members)}


def _plan_blocks(net: Any, plan: Plan, size: tuple[int, int]) -> tuple[Plan, dict[str, dict[str, float]]]:
    """The plan with the best form of each block, and by block the milliseconds of the forms that were tried."""
    ordered: Any = apply_plan(net, plan)
    first_parameter = next(ordered.parameters())
    full = ordered.full_widths(ordered.spec.args)
    reads, writes = groups_by_layer(ordered)
    units = dict(plan.units)
    known: dict[tuple, tuple[dict[str, float], dict[str, str]]] = {}
    tried = {}
    for name, block in ordered.named_modules():
        if not isinstance(block, ResidualBlock):
            continue
        written = writes.get(f'{name}.conv2')
        found = {'reads': reads.get(f'{name}.conv1'), 'width': writes.get(f'{name}.conv1'), 'writes': written}
        groups = {part: group for part, group in found.items() if group is not None and group.size < full[group.name]
                  and (part == 'width' or group.stream)}
        if not groups:
            continue
        forms = {part: _forms(group, ordered) for part, group in groups.items()}
        channels = full[written.name] if written is not None and written.stream else block.conv2.out_channels
        signature = channels, *((part, *((label, _length(units)) for label, units in options.items()))
                                for part, options in forms.items())
        if signature not in known:
            state = first_parameter.new_zeros(1, channels, *size).contiguous(memory_format=torch.channels_last)
            known[signature] = _best_forms(block, forms, state)
        tried[name], best = known[signature]
        for part, label in best.items():
            if label != AS_IT_IS:
                units[groups[part].name] = forms[part][label]
    return plan.model_copy(update={'units': units}), tried


def groups_by_layer(net: Any) -> tuple[dict[str, Group], dict[str, Group]]:
    """The groups of what layers read, and of what they write, by the layers' names."""
    reads, writes = {}, {}
    for group in net.groups:
        for s in group.slices:
            layer, _, kind = s.param.rpartition('.')
            if kind == 'weight':
                (writes if s.dim == 0 else reads)[layer] = group
    return reads, writes


def _forms(group: Group, net: Any) -> dict[str, Units]:
    """Label to units with which a group of a block can do the same."""
    if not group.stream:
        forms: dict[str, Units] = {AS_IT_IS: group.size}
        return forms if (filled := _filled(group, net)) == group.size else {**forms, f'filled to {filled}': filled}
    channels = list(net.spec.index[group.name])
    return {AS_IT_IS: channels} if is_run(channels) else {
        AS_IT_IS: channels, 'span': list(range(channels[0], channels[-1] + 1))}


def _filled(group: Group, net: Any) -> int:
    """The group's width, up to the next whole vector."""
    return min(-(-group.size // VECTOR) * VECTOR, net.full_widths(net.spec.args)[group.name])


def _best_forms(block: ResidualBlock, forms: Mapping[str, Mapping[str, Units]], state: torch.Tensor
                ) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds by the forms that were tried, and the best form of each part, found part after part."""
    best = dict.fromkeys(forms, AS_IT_IS)
    milliseconds: dict[str, float] = {}
    for part, options in forms.items():
        if len(options) == 1:
            continue
        runs, names = {}, {}
        for label in options:
            tried = {**best, part: label}
            names[label] = ', '.join(f'{other}: {form}' for other, form in tried.items())
            units = {other: forms[other][form] for other, form in tried.items()}
            module: Any = block_like(block, state.shape[1], units)
            module = module.to(state).to(memory_format=torch.channels_last)
            runs[label] = lambda module=module: module.update_(state)
        ms = least_ms(runs, state.device)
        milliseconds |= {names[label]: ms[label] for label in options}
        fastest = min(ms, key=ms.__getitem__)
        if ms[AS_IT_IS] > GAIN * ms[fastest]:
            best[part] = fastest
    return milliseconds, best


def block_like(block: ResidualBlock, channels: int, units: Mapping[str, Units]) -> ResidualBlock:
    """A block of such widths, with weights of zero."""
    def index(part: str, now: Any) -> Any:
        wanted = units.get(part)
        if wanted is None:
            return None if now.index is None else now.index.tolist()
        return None if _length(wanted) == channels else wanted

    width = units.get('width', block.conv1.out_channels)
    new = ResidualBlock(channels, _length(width), index('reads', block.inputs), index('writes', block.outputs),
                        scale=block.scale)
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    return new.eval()


def _fastest(net: nn.Module, candidates: Mapping[str, Plan], size: tuple[int, int]) -> tuple[str, dict[str, float]]:
    """Label of the fastest plan, unless the first one is as fast; milliseconds per frame of all."""
    num_frame = 2
    clip = random_clip(size, num_frame, next(net.parameters()).device).to(next(net.parameters()).dtype)
    nets = {label: apply_plan(net, plan) for label, plan in candidates.items()}
    ms = least_ms({label: lambda module=module: run_clip(module, clip) for label, module in nets.items()}, clip.device)
    ms = {label: milliseconds / num_frame for label, milliseconds in ms.items()}
    best, first = min(ms, key=ms.__getitem__), next(iter(ms))
    return (best if ms[first] > GAIN * ms[best] else first), ms


def cropped(lr_size: tuple[int, int]) -> tuple[int, int]:
    """A frame of the same proportions and at most ``MOST_PIXELS``."""
    h, w = lr_size
    factor = max(1.0, (h * w / MOST_PIXELS)**0.5)
    return max(1, int(h / factor)), max(1, int(w / factor))


def _length(units: Units) -> int:
    return units if isinstance(units, int) else len(units)
