"""What goes: settings that the Python interface and sections of option files share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from basicsr_ssl.pruning.cost import LR_SIZE

Score = Literal['gate', 'l1', 'l2', 'random']
Scope = Literal['global', 'local']
Layout = Literal['free', 'runs']
Structure = Literal['units', 'filters', 'weights']
Positive = Annotated[int, Field(ge=1)]


class PruningOptions(BaseModel):
    """What goes."""

    model_config = ConfigDict(extra='forbid')

    structure: Structure = Field('units', description=(
        'what is removed: units of groups, which are cut out; or, with a mask, so that nothing becomes smaller, whole '
        'filters of every convolution without regard to what else reads or adds to their channels, or single weights'))
    ratios: dict[str, float] | None = Field(None, description=(
        'share to remove by the name of the group (of filters and weights: of the layer), or a JSON file of them, as '
        'basicsr-ssl sensitivity writes it; what is not named loses ratio. The scope is then local'))
    target_ms: float | None = Field(None, gt=0, description=(
        'with budget latency, in place of ratio: milliseconds per frame that the network may take'))
    ratio: float = Field(None, validate_default=True, description=(  # type: ignore[assignment]
        'share of the budget to remove, at least 0 and below 1; with ratios 0 unless given'))
    budget: Literal['units', 'params', 'macs', 'latency'] = Field('units', description=(
        'what the ratio is a share of (units also means filters, or weights); parameters and MACs are counted without '
        'the flow network unless it is pruned too, latency is measured with it, on this machine, at lr_size'))
    flow: bool = Field(False, description=(
        'whether the flow network is pruned too: the filters between its convolutions stand in the same ranking, and '
        'its parameters and MACs count in the budget'))
    flow_min_keep: Positive | None = Field(None, description=(
        'least number of units that a group of the flow network keeps; null: min_keep'))
    flow_ratio: float | None = Field(None, description=(
        'share of the budget of the flow network to remove from it, by a ranking of its own; null: its units compete '
        'with all others'))
    device: Literal['cpu', 'cuda'] = Field('cpu', description='with budget latency: where it is measured')
    threads: Positive | None = Field(None, description=(
        'with budget latency: threads of the CPU with which it is measured; null: as many as torch uses'))
    score: Score = Field('gate', description=(
        "a unit's importance: magnitude of its gate, L1 or L2 norm of its weights, or chance"))
    scope: Scope = Field('global', description='rank all units together, or take the same share from every group')
    relative: bool = Field(True, description="rank by l1 and l2 relative to the group's mean, so that layers whose "
                                             'weights are small as a whole do not vanish first')
    layout: Layout = Field('free', description=(
        'which channels of a residual stream a layer keeps, when their number is settled: the most important ones, or '
        'runs, channels that can stand side by side in memory, which are not gathered and run faster'))
    round_to: Positive = Field(1, description=(
        'widths become multiples of this; with budget latency of 8 unless something else is said'))
    min_keep: Positive = Field(1, description='least number of units that a group keeps')
    lr_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(list(LR_SIZE), description=(
        'LR frame (height, width) at which MACs are counted and latency is measured'))
    seed: Annotated[int, Field(ge=0)] = Field(0, description='for the score random')

    @field_validator('ratios', mode='before')
    @classmethod
    def _read(cls, value: Any) -> Any:
        return _shares_in(os.path.expanduser(value)) if isinstance(value, str) else value

    @field_validator('ratio', mode='before')
    @classmethod
    def _total(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get('ratios') is None and info.data.get('target_ms') is None:
            raise PydanticKnownError('missing')
        return 0.0 if value is None else value

    @field_validator('ratio', 'ratios', 'flow_ratio')
    @classmethod
    def _share(cls, value: Any) -> Any:
        for share in value.values() if isinstance(value, dict) else [] if value is None else [value]:
            if not 0 <= share < 1:
                raise ValueError(f'is the share to remove and must be in [0, 1): at least 0 and below 1; got {share:g}')
        return value

    @model_validator(mode='after')
    def _fits(self) -> PruningOptions:
        if self.structure != 'units':
            if self.score == 'gate':
                raise ValueError(f'score gate is of units and their gates, not of {self.structure}: choose l1, l2 or '
                                 'random')
            if self.budget != 'units' or self.round_to != 1 or self.layout != 'free':
                raise ValueError(f'with structure: {self.structure} nothing becomes smaller, and the ratio is a share '
                                 f'of the {self.structure}: leave budget, layout and round_to out, or choose '
                                 'structure: units')
        if self.budget == 'latency':
            if self.target_ms is not None and self.ratio:
                raise ValueError('ratio and target_ms both say how fast the network should be: leave one of them out')
        elif self.target_ms is not None or self.threads is not None or self.device != 'cpu':
            raise ValueError('target_ms, threads and device are of latency: set budget: latency, or leave them out')
        if not self.flow and (self.flow_min_keep, self.flow_ratio) != (None, None):
            raise ValueError('flow_min_keep and flow_ratio are of a flow network that is pruned: set flow: true, or '
                             'leave them out')
        if self.flow_ratio is not None and (self.structure != 'units' or self.budget == 'latency'
                                            or self.ratios is not None):
            raise ValueError('flow_ratio is a share of units, parameters or MACs: leave it out with budget latency, '
                             'with ratios, and with structures other than units')
        if self.ratios is not None and self.budget != 'units':
            raise ValueError('ratios are shares of the units of each group: leave budget out, or give one ratio')
        return self

    @property
    def multiple(self) -> int:
        """Widths become multiples of this. Latencies of all widths would take too long to measure."""
        return 8 if self.budget == 'latency' and self.round_to == 1 else self.round_to

    def least(self, flow: bool) -> int:
        """Units that a group keeps at least, of the flow network or another."""
        return self.flow_min_keep if flow and self.flow_min_keep else self.min_keep

    @classmethod
    def of(cls, **settings: Any) -> PruningOptions:
        """The settings by keyword. Raises ValueError, with a line for each wrong one."""
        try:
            return cls(**settings)
        except ValidationError as error:
            raise ValueError('\n'.join(
                f'{detail["loc"][0]} is missing' if detail['type'] == 'missing' else
                f'{".".join(map(str, detail["loc"]))}: {detail["msg"]}, got {detail["input"]!r}' if detail['loc'] else
                detail["msg"].removeprefix('Value error, ') for detail in error.errors())) from None


def check_named(ratios: Mapping[str, float], names: Iterable[str], what: str) -> None:
    """Raises ValueError if ``ratios`` names what is not there."""
    if unknown := sorted(set(ratios) - set(names)):
        raise ValueError(f'ratios: the network has no {what} {unknown[0]}' + (
            f', nor {len(unknown) - 1} others that are named' if unknown[1:] else '') + f'; it has {", ".join(names)}')


def _shares_in(path: str) -> Any:
    """What a JSON file says under ``ratios``, or all of it."""
    try:
        with open(path, encoding='utf-8') as stream:
            said = json.load(stream)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as JSON ({error}): give a file that `basicsr-ssl sensitivity` wrote, '
                         'or a share by name') from error
    return said.get('ratios', said) if isinstance(said, dict) else said



class CompressionOptions(BaseModel):
    """How a sparse network becomes a small one."""

    model_config = ConfigDict(extra='forbid')

    density: float | None = Field(None, gt=0, le=1, description=(
        'share of the weights of the blocks that the small network should have; null: the share that is not 0'))
    channel_share: float = Field(0.4, ge=0, le=0.5, description=(
        'exponent of the density in the share of the channels; the blocks have the rest'))
    round_to: int = Field(8, ge=1, description='channels are a multiple of this')
    init: Literal['teacher', 'random'] = Field('random', description=(
        "weights to start from: new ones, or those of the sparse network's strongest units"))
    args: dict[str, Any] = Field({}, description='arguments of the small network that are not those of the sparse one')
