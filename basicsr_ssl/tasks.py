"""What networks are for: the tensors of a sample, and which of them a network takes and is held to.

An arch names its task in its class attribute ``task``; stages know no other difference between networks.
"""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """A kind of sample.

    Attributes:
        inputs: keys of a training batch that the network takes, in order.
        target: key of what its output is compared with.
    """
    inputs: tuple[str, ...]
    target: str


TASKS: dict[str, Task] = {
    # lq (b, n, 3, h, w), gt (b, n, 3, s*h, s*w)
    'clip': Task(('lq',), 'gt'),
    # lq (b, 3, h, w), gt (b, 3, s*h, s*w)
    'image': Task(('lq',), 'gt'),
    # ref and supp (b, 3, h, w); flow (b, 2, h, w) in pixels, which aligns supp to ref
    'flow': Task(('ref', 'supp'), 'flow'),
}
