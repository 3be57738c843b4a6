"""A budget of milliseconds: which widths make a network as fast as asked, on the machine at hand.

Multiply-accumulates do not tell (docs/method.md), and running every candidate would take hours. So the latency of a
network is *predicted*: as the sum over the parts that can become narrower, residual blocks and single layers, each
measured by itself at the widths that are asked for, plus the rest: activations, shuffles, warps, the flow network.
The rest is what the whole network takes beyond its parts, and the narrowest one beyond its own; between them it goes
with the number of units. Parts run otherwise beside each other; so what was chosen is *measured*, as a whole and as it
runs in the end (``planner``), and chosen again with what was found, until it is within ``CLOSE`` of the budget.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from basicsr_ssl.checkpoints.store import build_network, load_strictly
from basicsr_ssl.latency import least_ms, num_threads, random_clip, run_clip
from basicsr_ssl.nn.blocks import ResidualBlock
from basicsr_ssl.plans.cache import cache_file, keep
from basicsr_ssl.plans.plan import Plan, apply_plan
from basicsr_ssl.plans.planner import Units, block_like, cropped, groups_by_layer, optimize_network
from basicsr_ssl.pruning.cost import Conv, Layer, Linear
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.surgery import cut

Widths = dict[str, int]
Kept = dict[str, list[int]]
#: From this share of the budget on, more or less, a network counts as one that meets it.
CLOSE = 0.02
#: Networks that are chosen and measured at most.
ROUNDS = 4
NUM_FRAME = 3
#: Runs of whole networks, of which the least counts: of few, what a busy machine adds is more than ``CLOSE``.
REPEATS = 15


class LatencyModel:
    """Predicts milliseconds per frame of the networks that can be cut from one.

    Args:
        net: a network of this package, in any form.
        options: ``lr_size``, ``device``, ``threads``, ``layout``, ``flow``, ``min_keep`` and ``round_to`` count.
        cache: folder of measured times, as of plans.

    Attributes:
        whole: milliseconds per frame of the network itself, measured.
        narrowest: the widths of the smallest network that ``min_keep`` and ``round_to`` let stay.
        least: milliseconds per frame of that one, measured.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(self, net: nn.Module, options: PruningOptions, cache: str | os.PathLike[str] | None = None) -> None:
        if options.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError('device: cuda, but there is no CUDA device here to measure latency on: set device: cpu, '
                             'or prune where the network is to run')
        self.lr_size, self.threads, self.cache = (options.lr_size[0], options.lr_size[1]), options.threads, cache
        self.device = torch.device(options.device)
        self.net: Any = apply_plan(net, Plan()).to(self.device)
        self.sizes = {group.name: group.size for group in self.net.groups}
        self.layout = options.layout
        self.dtype = next(self.net.parameters()).dtype
        self.parts = self._parts()
        with num_threads(self.threads):
            self.file = cache_file('parts', self.device, cache, dtype=str(self.dtype))
        self.known = _read(self.file)
        self.fast = optimize_network(self.net, self.lr_size, self.threads, cache)
        self.narrowest = {group.name: _narrowest(group, options) for group in self.net.groups}
        self.whole, self.least = self.measure(self.cut({name: self._spread(self.sizes[name], width)
                                                        for name, width in self.narrowest.items()}))
        self.rests = [ms - self._of_parts(widths)
                      for ms, widths in ((self.least, self.narrowest), (self.whole, self.sizes))]
        self.correction = 0.0

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Predicted milliseconds per frame of a network of these widths, by group name."""
        every = {**self.sizes, **widths}
        few, most = sum(self.narrowest.values()), sum(self.sizes.values())
        share = (sum(every.values()) - few) / (most - few) if most > few else 1.0
        return self._of_parts(every) + self.rests[0] + share * (self.rests[1] - self.rests[0]) + self.correction

    def correct(self, widths: Mapping[str, int], ms: float) -> None:
        """Predict what was measured, and as much more or less for other widths."""
        self.correction += ms - self(widths)

    def _of_parts(self, widths: Mapping[str, int]) -> float:
        return sum(part(widths) for part in self.parts)

    def measure(self, net: nn.Module) -> tuple[float, float]:
        """Milliseconds per frame of the network that the others are cut from, and of ``net``, run in turn, each in its
        fastest form."""
        fast = optimize_network(net, self.lr_size, self.threads, self.cache)
        clip = random_clip(self.lr_size, NUM_FRAME, self.device).to(self.dtype)
        with num_threads(self.threads), torch.no_grad():
            ms = least_ms({name: lambda module=module: run_clip(module, clip)
                           for name, module in (('whole', self.fast), ('other', fast))}, self.device, REPEATS)
        return ms['whole'] / NUM_FRAME, ms['other'] / NUM_FRAME

    def cut(self, kept: Mapping[str, list[int]]) -> nn.Module:
        """The network without the other units."""
        state, spec = cut(self.net.state_dict(), self.net.spec, self.net.groups, kept)
        new = build_network(spec).to(next(self.net.parameters()))
        load_strictly(new, state, 'the weights')
        return new

    def save(self) -> None:
        """Keep what was measured of the parts."""
        keep(self.file, json.dumps(self.known, indent=0, sort_keys=True))

    # ---- parts

    def _parts(self) -> list[Callable[[Mapping[str, int]], float]]:
        """Milliseconds by the widths of all groups, of everything that some of them belong to."""
        reads, writes = groups_by_layer(self.net)
        blocks = {name: module for name, module in self.net.named_modules() if isinstance(module, ResidualBlock)}
        parts: list[Callable[[Mapping[str, int]], float]] = []
        for name, block in blocks.items():
            groups = {'reads': reads.get(f'{name}.conv1'), 'width': writes.get(f'{name}.conv1'),
                      'writes': writes.get(f'{name}.conv2')}
            parts.append(self._block_part(block, {part: group for part, group in groups.items() if group}))
        inside = {f'{name}.{conv}' for name in blocks for conv in ('conv1', 'conv2')}
        parts += [self._layer_part(layer, names) for layer in self.net.cost_table
                  if isinstance(layer, (Conv, Linear)) and layer.name not in inside
                  and (names := self._touching(layer))]
        return parts

    def _touching(self, layer: Layer) -> tuple[str, ...]:
        return tuple(group.name for group in self.net.groups
                     if any(s.param == f'{layer.name}.weight' for s in group.slices))

    def _block_part(self, block: Any, groups: Mapping[str, Group]) -> Callable[[Mapping[str, int]], float]:
        full = self.net.full_widths(self.net.spec.args)
        written = groups.get('writes')
        h, w = cropped(self.lr_size)
        share = self.lr_size[0] * self.lr_size[1] / (h * w)

        def milliseconds(widths: Mapping[str, int]) -> float:
            channels = (block.conv2.out_channels if written is None else
                        full[written.name] if written.stream else widths[written.name])
            units: dict[str, Units] = {part: self._channels(group, widths[group.name], full[group.name])
                                       if group.stream else widths[group.name] for part, group in groups.items()}
            label = ', '.join((f'block of {channels}', *(f'{part} {widths[group.name]}' for part, group in
                                                         groups.items()), self.layout, f'{h}x{w}'))
            return share * self._time(label, lambda: (
                _update_, block_like(block, channels, units), (1, channels, h, w)))
        return milliseconds

    def _channels(self, group: Group, width: int, full: int) -> list[int]:
        """Some channels of a stream, that stand as the layout lets them."""
        own = list(self.net.spec.index.get(group.name, range(group.size)))
        return own[:width] if width == full else [own[i] for i in self._spread(group.size, width)]

    def _spread(self, size: int, width: int) -> list[int]:
        return list(range(width)) if self.layout == 'runs' else [i * size // width for i in range(width)]

    def _layer_part(self, layer: Layer, names: tuple[str, ...]) -> Callable[[Mapping[str, int]], float]:
        known: dict[tuple[int, ...], Layer] = {}
        side = layer.area**0.5
        whole = [-(-side // layer.multiple) * layer.multiple for side in self.lr_size]
        h, w = cropped((round(whole[0] * side), round(whole[1] * side)))
        # the clip that is measured has one pair of frames less than frames
        times = layer.times * ((NUM_FRAME - 1) / NUM_FRAME if layer.flow and self.net.task == 'clip' else 1)
        share = times * layer.area * whole[0] * whole[1] / (h * w)

        def milliseconds(widths: Mapping[str, int]) -> float:
            key = tuple(widths[name] for name in names)
            if key not in known:
                table = self.net.layer_table(self.net.spec.args, {**self.net.spec.widths, **widths})
                known[key] = next(other for other in table if other.name == layer.name)
            now: Any = known[key]
            if isinstance(now, Conv):
                label = f'convolution {now.cin} {now.cout} {now.kernel} {now.groups}, {h}x{w}'
                return share * self._time(label, lambda: (lambda module, x: module(x), nn.Conv2d(
                    now.cin, now.cout, now.kernel, padding=now.kernel // 2, groups=now.groups, bias=now.bias),
                    (1, now.cin, h, w)))
            return share * self._time(f'linear {now.cin} {now.cout}, {h * w}', lambda: (
                lambda module, x: module(x), nn.Linear(now.cin, now.cout, now.bias), (h * w, now.cin)))
        return milliseconds

    @torch.no_grad()
    def _time(self, label: str, make: Callable[[], tuple[Callable[[nn.Module, torch.Tensor], object], nn.Module,
                                                         tuple[int, ...]]]) -> float:
        """Milliseconds of one part, measured if they are not known."""
        if label not in self.known:
            run, module, shape = make()
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            x = torch.zeros(shape, device=self.device, dtype=self.dtype).contiguous(memory_format=layout)
            module = module.to(x).to(memory_format=layout).eval()  # type: ignore[call-overload]
            with num_threads(self.threads):
                self.known[label] = least_ms({'': lambda: run(module, x)}, self.device)['']
        return self.known[label]


def _narrowest(group: Group, options: PruningOptions) -> int:
    if group.flow and not options.flow:
        return group.size
    return min(group.size, -(-options.least(group.flow) // options.multiple) * options.multiple)


def _update_(block: Any, x: torch.Tensor) -> torch.Tensor:
    return block.update_(x)


def meet_latency(net: nn.Module, options: PruningOptions,
                 select: Callable[[float, Callable[[Widths], float]], Kept],
                 cache: str | os.PathLike[str] | None = None) -> Kept:
    """The units that stay so that the network takes the milliseconds that it may.

    Args:
        net: a network of this package.
        options: ``ratio``, of the milliseconds that it takes now, or ``target_ms``.
        select: the units that stay, by the share of the costs to be removed, and the costs by widths.
        cache: folder of plans and times.

    Raises:
        ValueError: the budget cannot be met.
    """
    model = LatencyModel(net, options, cache)
    best: tuple[float, Kept] | None = None
    last: Kept = {}
    try:
        for _ in range(ROUNDS):
            target = options.target_ms or (1 - options.ratio) * model.whole
            try:
                kept = select(max(0.0, 1 - target / model(model.sizes)), model)
            except ValueError as error:
                raise ValueError(f'{target:.4g} of the {model.whole:.4g} ms per frame that the network takes here: '
                                 f'{error}') from None
            if kept == last:
                break
            last = kept
            model.whole, ms = model.measure(model.cut(kept))
            target = options.target_ms or (1 - options.ratio) * model.whole
            error = abs(ms / target - 1)
            if best is None or error < best[0]:
                best = error, kept
            if error <= CLOSE:
                break
            model.correct({name: len(units) for name, units in kept.items()}, ms)
    finally:
        model.save()
    assert best is not None
    return best[1]


def latency_figures(net: nn.Module, pruned: Any, options: PruningOptions,
                    cache: str | os.PathLike[str] | None = None) -> dict[str, float]:
    """Milliseconds per frame ``before`` and ``after`` pruning, measured in turn, and what was ``predicted``."""
    model = LatencyModel(net, options, cache)
    predicted = model({**model.sizes, **pruned.spec.widths})
    model.save()
    before, after = model.measure(pruned)
    return {'before': before, 'after': after, 'predicted': predicted}


def _read(file: Any) -> dict[str, float]:
    try:
        known = json.loads(file.read_bytes())
        return {str(label): float(ms) for label, ms in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
