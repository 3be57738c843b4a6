"""What a test finds: the figures of one network on one test set, and what ``results.json`` says about them.

Free of heavy imports, since option files are checked against the names of the figures.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

#: What a network costs, without the flow network and with it.
COSTS = ('params', 'params_with_flow', 'macs', 'macs_with_flow')
#: What a report gives beside the metrics.
COST_FIGURES = (*COSTS, 'ms_per_frame')
#: Names under which results and their tables hold something else: no metric can have them.
RESERVED = ('frames', 'network', 'source', *COST_FIGURES)


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        metrics: mean of the clip means (of those that are finite) of every metric by its name.
        clips: ``{clip: {'frames': frames measured, metric: mean of the frames, ...}}``.
        seconds_per_frame: of inference alone, per frame that the network was given (of flow: per pair), the device's
            work being waited for; the mean over the frames of all processes.
        segment: None, or, if a clip was run in segments, ``{'frames': length, 'overlap': shared frames}``.
        frames: ``{clip: {metric: [of each frame measured]}}``.
    """
    metrics: dict[str, float]
    clips: Mapping[str, Mapping[str, float]]
    seconds_per_frame: float
    segment: dict[str, int] | None = None
    frames: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)


class Result(BaseModel):
    """The contents of a ``results.json``. A metric that is None there was infinite, which JSON does not have.

    Attributes:
        benchmark: of the test set, or, without one, its name.
        network: a label.
        file: as the option file names it.
        form: dense, gated or compact.
        params, macs: without the flow network; per LR frame of ``lr_size``, (h, w).
        protocol: see ``describe_protocol``.
        metrics, clips, seconds_per_frame, frames: see ``Figures``.
        time: ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True)

    benchmark: str
    degradation: str | None
    network: str
    file: str | None = None
    checkpoint_sha256: str | None
    form: str = ''
    params: int
    params_with_flow: int
    macs: int
    macs_with_flow: int
    lr_size: list[int]
    protocol: dict[str, Any]
    metrics: Mapping[str, float | None]
    clips: Mapping[str, Mapping[str, int | float | None]]
    frames: Mapping[str, Mapping[str, Sequence[float | None]]] = {}
    seconds_per_frame: float = math.nan
    device: str = 'an unknown device'
    processes: int = 1
    versions: dict[str, str] = {}
    time: str

    def costs(self) -> dict[str, int]:
        """The figures of ``COSTS``."""
        return {key: getattr(self, key) for key in COSTS}


def read_result(path: str | os.PathLike) -> Result:
    """A ``results.json`` of ``basicsr-ssl test``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else; names the file.
    """
    try:
        return Result.model_validate(json.loads(Path(path).read_text(encoding='utf-8')))
    except ValidationError as error:
        wrong = dict.fromkeys(str(detail['loc'][0]) for detail in error.errors() if detail['loc'])
        raise ValueError(f'{path} is no result of this version of `basicsr-ssl test`: it lacks '
                         f'{", ".join(wrong) or "everything"}; test again, or leave the file out') from error
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file ({error}); give the results.json that `basicsr-ssl test` writes'
                         ) from error


def to_json(value: Any) -> str:
    """As the text of a JSON file, with null in place of NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + '\n'


def to_json_line(value: Any) -> str:
    """The same on one line."""
    return json.dumps(_finite(value), allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
