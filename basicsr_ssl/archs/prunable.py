"""What all prunable networks have in common: they say what they are, what may be removed from them, what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from basicsr_ssl.pruning.cost import Layer
from basicsr_ssl.pruning.gates import GATES
from basicsr_ssl.pruning.groups import Group, Slice, check_form
from basicsr_ssl.pruning.spec import Spec


class PrunableNetwork(nn.Module, ABC):
    """Base of the archs that can be pruned.

    Each declares, as pure functions beside its ``forward``, what may be removed and how it hangs together
    (``group_table``), and what it costs (``layer_table``).

    Args:
        args: the constructor's arguments that describe the dense network, checked already, as JSON values.
        gates: kind of the gates of the prunable layers, see ``pruning/gates.py``; empty: none. Those of units go with
            full widths only.
        widths: units kept by group name; groups not named are full.
        index: kept channels by group name, where the network must know which ones they are (``Group.indexed``).

    Attributes:
        spec: all of these.

    Raises:
        ValueError: gates of an unknown kind, a group that does not exist, a width or index that does not fit.
    """

    task: ClassVar[str]
    #: arguments that say what may be removed: of a dense network they may be changed
    pruning_args: ClassVar[tuple[str, ...]] = ()
    #: arguments that say how weights are used, not which there are: of any network they may be changed
    run_args: ClassVar[tuple[str, ...]] = ()
    #: of an arch that can be made smaller as a whole: ``body_table(args) -> Body``, see ``pruning/body.py``; it
    #: has ``resized(args, size) -> args`` of a smaller one, and ``unit_table(args)``, the groups of all widths
    body_table: ClassVar[Any] = None
    #: the submodule that estimates flow
    flow_network: Any = None

    def __init__(self, args: dict[str, Any], gates: str, widths: Mapping[str, int] | None,
                 index: Mapping[str, Sequence[int]] | None) -> None:
        super().__init__()
        self.spec = checked_spec(type(self), args, gates, widths, index)

    @staticmethod
    @abstractmethod
    def full_widths(args: Mapping[str, Any]) -> dict[str, int]:
        """Group name to number of units of the dense network."""

    @staticmethod
    @abstractmethod
    def group_table(spec: Spec) -> list[Group]:
        """All groups of the network that ``spec`` describes, in the order of the forward pass."""

    @staticmethod
    @abstractmethod
    def layer_table(args: Mapping[str, Any], widths: Mapping[str, int]) -> Sequence[Layer]:
        """All layers of the network with these widths (groups not named are full)."""

    @staticmethod
    def stream_table(args: Mapping[str, Any]) -> dict[str, tuple[Slice, ...]]:
        """The streams that groups name, and where their channels stand in parameters that belong to no such group.

        The first slice of each holds nothing but the stream.
        """
        return {}

    @property
    def groups(self) -> list[Group]:
        """The prunable groups of this network."""
        return self.group_table(self.spec)

    @property
    def cost_table(self) -> Sequence[Layer]:
        """The layers of this network, for counting."""
        return self.layer_table(self.spec.args, self.spec.widths)


def checked_spec(arch: Any, args: dict[str, Any], gates: str, widths: Mapping[str, int] | None,
                 index: Mapping[str, Sequence[int]] | None = None) -> Spec:
    """What a network of the class ``arch`` with these arguments is.

    Args:
        args, gates, widths, index: see ``PrunableNetwork``.

    Raises:
        ValueError: see ``PrunableNetwork``.
    """
    check_choice('gates', gates, ('', *GATES))
    full = arch.full_widths(args)
    fewer = {name: width for name, width in (widths or {}).items() if width != full.get(name)}
    spec = Spec(arch.__name__, args, fewer, dict(index or {}), gates)
    check_form(spec, arch.group_table(Spec(arch.__name__, args)))
    return spec


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raises ValueError if the argument ``name`` is none of ``choices``."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}')


def check_least(least: int, **values: int) -> None:
    """Raises ValueError if one of the arguments is below ``least``."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
