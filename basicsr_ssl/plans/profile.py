"""Where the time of a network goes: a line for each layer, beside what it computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from basicsr_ssl.latency import num_threads, random_clip, run_clip, time_in_turn, work_clock
from basicsr_ssl.plans.plan import Plan, apply_plan
from basicsr_ssl.plans.planner import find_plan

#: Repeats of which the least count.
REPEATS = 5


class LayerTime(NamedTuple):
    """One layer, per frame.

    Attributes:
        name: of the layer.
        macs: multiply-accumulates in the network's file; units of zeros that a plan adds do not count.
        ms: milliseconds, in this network's fastest form.
    """
    name: str
    macs: int
    ms: float


class Profile(NamedTuple):
    """Where the time goes.

    Attributes:
        plan: the form that was measured, and what else was tried.
        layers: those that compute, in the order of the forward pass.
        ms: milliseconds per frame of the whole.
        lr_size, threads, device: what it was measured with.
    """
    plan: Plan
    layers: list[LayerTime]
    ms: float
    lr_size: tuple[int, int]
    threads: int
    device: str

    @property
    def rest(self) -> float:
        """Milliseconds between the layers: gathers and scatters, activations, shuffles, warps, sums."""
        return self.ms - sum(layer.ms for layer in self.layers)


def profile_network(net: Any, lr_size: tuple[int, int], threads: int | None = None, num_frame: int = 3) -> Profile:
    """Measure every layer of a network, as ``optimize_network`` runs it.

    Args:
        net: a network of this package that declares its layers, on the device where it is to run.
        lr_size: LR frame, (h, w).
        threads: of the CPU; None for as many as torch uses now.
        num_frame: frames of the clip that is run.
    """
    plan = find_plan(net, lr_size, threads)
    planned = apply_plan(net, plan)
    device = next(planned.parameters()).device
    with num_threads(threads), torch.no_grad():
        clip = random_clip(lr_size, num_frame, device).to(next(planned.parameters()).dtype)
        whole = min(time_in_turn({'': lambda: run_clip(planned, clip)}, REPEATS, 1, device, work_clock(device))[''])
        seconds = _seconds_by_layer(planned, clip)
        counted = {layer.name: round(layer.macs(lr_size)) for layer in net.cost_table}
        return Profile(plan, [LayerTime(name, counted[name], 1000 * seconds[name] / num_frame)
                              for name in counted if name in seconds],
                       1000 * whole / num_frame, lr_size, torch.get_num_threads(), str(device))


def _seconds_by_layer(net: nn.Module, clip: torch.Tensor) -> dict[str, float]:
    """Of each module without parts that has weights: the least of the repeats, all its calls together."""
    clock, runs = work_clock(clip.device), []
    started: dict[str, float] = {}
    wait = torch.cuda.synchronize if clip.device.type == 'cuda' else lambda: None

    def before(name: str) -> None:
        wait()
        started[name] = clock()

    def after(name: str) -> None:
        wait()
        runs[-1][name] = runs[-1].get(name, 0.0) + clock() - started[name]

    hooks = []
    for name, module in net.named_modules():
        if next(module.parameters(), None) is not None and next(module.children(), None) is None:
            hooks += [module.register_forward_pre_hook(lambda *_, name=name: before(name)),
                      module.register_forward_hook(lambda *_, name=name: after(name))]
    for _ in range(REPEATS):
        runs.append({})
        run_clip(net, clip)
    for hook in hooks:
        hook.remove()
    return {name: min(run[name] for run in runs) for name in runs[-1]}
