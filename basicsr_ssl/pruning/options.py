"""Which units go: the settings that the Python interface and the section ``pruning`` of option files share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from basicsr_ssl.pruning.cost import LR_SIZE

Score = Literal['gate', 'l1', 'l2', 'random']
Scope = Literal['global', 'local']
Layout = Literal['free', 'runs']
Positive = Annotated[int, Field(ge=1)]


class PruningOptions(BaseModel):
    """Which units go."""

    model_config = ConfigDict(extra='forbid')

    ratio: float = Field(description='share of the budget to remove, at least 0 and below 1')
    budget: Literal['units', 'params', 'macs'] = Field('units', description=(
        'what the ratio is a share of; parameters and MACs are counted without the flow network'))
    score: Score = Field('gate', description=(
        "a unit's importance: magnitude of its gate, L1 or L2 norm of its weights, or chance"))
    scope: Scope = Field('global', description='rank all units together, or take the same share from every group')
    relative: bool = Field(True, description="rank by l1 and l2 relative to the group's mean, so that layers whose "
                                             'weights are small as a whole do not vanish first')
    layout: Layout = Field('free', description=(
        'which channels of a residual stream a layer keeps, when their number is settled: the most important ones, or '
        'runs, channels that can stand side by side in memory, which are not gathered and run faster'))
    round_to: Positive = Field(1, description='widths become multiples of this')
    min_keep: Positive = Field(1, description='least number of units that a group keeps')
    lr_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(list(LR_SIZE), description=(
        'LR frame (height, width) at which MACs are counted'))
    seed: Annotated[int, Field(ge=0)] = Field(0, description='for the score random')

    @field_validator('ratio')
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError(f'is the share to remove and must be in [0, 1): at least 0 and below 1; got {value:g}')
        return value

    @classmethod
    def of(cls, **settings: Any) -> PruningOptions:
        """The settings by keyword. Raises ValueError, with a line for each wrong one."""
        try:
            return cls(**settings)
        except ValidationError as error:
            raise ValueError('\n'.join(
                f'{".".join(map(str, detail["loc"]))}: {detail["msg"]}, got {detail["input"]!r}'
                if detail['type'] != 'missing' else f'{detail["loc"][0]} is missing'
                for detail in error.errors())) from None
