"""Networks of equal blocks, as data: how many channels, stacks and blocks they have, and where they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other, by the names of their modules, and what else goes with them."""

    blocks: tuple[str, ...]
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Body:
    """What of a network is made of equal blocks.

    Attributes:
        channels: that all blocks read and write.
        stacks: of equal numbers of blocks.
        multiple: the channels are a multiple of this.
        step: consecutive blocks that belong together, 2 where every other one differs.
    """

    channels: int
    stacks: tuple[Stack, ...]
    multiple: int = 1
    step: int = 1


@dataclass(frozen=True)
class Size:
    """Of a body: channels, stacks, and blocks of each."""

    channels: int
    stacks: int
    blocks: int
