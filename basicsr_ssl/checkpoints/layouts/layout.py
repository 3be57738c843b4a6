"""What a layout is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from basicsr_ssl.pruning.spec import Spec

State = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A network that a layout has recognised.

    Attributes:
        spec, state: what to build, and its weights by our names.
        source: whose it is, if the tensors tell more than the layout; else None.
        provenance: what else the file says.
        doubtful: arguments of the spec in which this network differs from its project's own, only because tensors are
            missing; and which. It may as well be an incomplete file.
        untold: arguments that tensors cannot tell at all; the spec, if it names them, has the project's usual values.
    """

    spec: Spec
    state: State
    source: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    doubtful: Mapping[str, str] = field(default_factory=dict)
    untold: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one project names the tensors of one arch.

    Attributes:
        source: the project.
        markers: names that are all there in its files.
        rename: our name of one of its tensors.
        read: makes a network of the tensors by our names and, of files that have them, the lists of kept units;
            ValueError if they are none.
    """

    source: str
    markers: tuple[str, ...]
    rename: Callable[[str], str]
    read: Callable[[State, Mapping[str, Any] | None], Found]
