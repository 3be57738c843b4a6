"""How a network is made sparse before it is cut: one object a method, chosen by ``sparsity: type``."""

from __future__ import annotations

from typing import Any, ClassVar

from basicsr.utils.registry import Registry
from pydantic import BaseModel
from torch import Tensor, nn

from basicsr_ssl.api import with_gates, without_gates

METHOD_REGISTRY = Registry('method')

Kept = dict[str, list[int]]


class Method:
    """A way to concentrate a network's function in the units that will stay.

    ``SparsityLearningModel`` calls it in every iteration; all that differs between methods is here. A method adds
    losses, or changes gradients, or both; what it pulls at may be gates (see ``api.with_gates``) or the weights
    themselves.

    Args:
        net: the network in training, in the form that ``prepare`` gave it.
        options: the section ``sparsity``, as ``Options`` declares it.
        pruning: the section ``pruning``: which units are to go.

    Attributes:
        kept: the units that will stay, by group name, as soon as they are chosen; the pruning stage cuts the others.
    """

    Options: ClassVar[type[BaseModel]]
    #: the gates that it works with, see ``pruning/gates.py``; empty: none
    kind: ClassVar[str] = ''

    def __init__(self, net: Any, options: dict[str, Any], pruning: dict[str, Any]) -> None:
        self.net, self.options, self.pruning = net, options, pruning
        self.kept: Kept | None = None

    @classmethod
    def prepare(cls, net: nn.Module) -> nn.Module:
        """The network that is trained, made from the one that was read: with the gates of ``kind``."""
        return with_gates(net, cls.kind) if cls.kind else without_gates(net)

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """What is added to the reconstruction loss, by name."""
        return {}

    def adjust_gradients(self, iteration: int) -> None:
        """Change the gradients of ``iteration``, from 1 on, before they are clipped and the optimizer steps."""

    def figures(self, net: nn.Module) -> dict[str, float]:
        """What the log shows; ``net``: with the weights that would be saved."""
        return {}

    def gate_values(self) -> dict[str, Tensor]:
        """The gates in one row, ``all`` of them, and as soon as units are chosen those of the ``selected`` that go."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resume needs: plain containers and tensors."""
        return {'kept': self.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``."""
        self.kept = state['kept']
