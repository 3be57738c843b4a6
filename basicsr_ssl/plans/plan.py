"""A plan: how a network is run, as data."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from basicsr_ssl.checkpoints.store import build_network, load_strictly
from basicsr_ssl.pruning.gates import fold_gates
from basicsr_ssl.pruning.rewrites import reorder, widen


class Plan(BaseModel):
    """Everything by which the network that runs differs from the network in the file. It computes the same.

    Attributes:
        channels_last: whether weights and features lie in memory channel by channel within each pixel.
        orders: of residual streams: their channels in the order in which they stand.
        units: of groups that get units of zeros: their number, or of channels of a stream which ones, in its new order.
        figures: how it was found: milliseconds per frame of the whole network by candidate, and by block of the forms
            that were tried.
    """

    model_config = ConfigDict(extra='forbid', frozen=True)

    channels_last: bool = False
    orders: dict[str, list[int]] = {}
    units: dict[str, int | list[int]] = {}
    figures: dict[str, Any] = {}


def apply_plan(net: nn.Module, plan: Plan) -> nn.Module:
    """A new network in evaluation mode that runs as planned, on the same device.

    Raises:
        ValueError: the plan is one of another network.
    """
    if next(net.parameters(), None) is None:  # then there is nothing to plan
        return copy.deepcopy(net).eval()
    ours: Any = net
    state = fold_gates(net.state_dict(), ours.groups, ours.spec.gates)
    spec = dataclasses.replace(ours.spec, gates='')
    try:
        if plan.orders:
            state, spec = reorder(state, spec, ours.group_table(spec), ours.stream_table(spec.args), plan.orders)
        if plan.units:
            state, spec = widen(state, spec, ours.group_table(spec), ours.full_widths(spec.args), plan.units)
    except (IndexError, KeyError) as error:
        raise ValueError(f'the plan is one of another network: {error}') from error
    new = build_network(spec).to(next(net.parameters()))
    load_strictly(new, state, 'the weights')
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    return new.to(memory_format=layout).eval()  # type: ignore[call-overload]
