"""How much smaller a network may be by the zeros in its weights, and which of its units go into the smaller one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from basicsr_ssl.pruning.body import Body, Size, Stack
from basicsr_ssl.pruning.groups import Group
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.pruning.surgery import cut


def block_density(state: Mapping[str, Tensor], body: Body) -> dict[str, float]:
    """Block name to the share of its weights, not its biases and norms, that is not 0."""
    return {block: _density([state[name] for name in _weights(state, [block])]) for block in _blocks(body)}


def body_density(state: Mapping[str, Tensor], body: Body) -> float:
    """The same of all blocks together."""
    return _density([state[name] for name in _weights(state, _blocks(body))])


def smaller(body: Body, density: float, channel_share: float, round_to: int = 1) -> Size:
    """The size of a network that has as many weights in its blocks as a sparse one has that are not 0.

    With a share c of the channels, s of the stacks and b of the blocks in each, a body has c^2 * s * b of its weights::

        c = density^a,   s * b = density^(1 - 2a),   s = b (one stack: s = 1)

    Each is rounded to the nearest that there is, and at least one is left; one multiple may be more than there were.

    Args:
        body: of the network as it is.
        density: within (0, 1].
        channel_share: a, within [0, 0.5].
        round_to: channels are a multiple of it, and of ``body.multiple``.
    """
    depth = density**(1 - 2 * channel_share)
    stacks, share = (1, depth) if len(body.stacks) == 1 else (_nearest(len(body.stacks), depth**0.5), depth**0.5)
    return Size(_nearest(body.channels, density**channel_share, math.lcm(round_to, body.multiple)), stacks,
                _nearest(len(body.stacks[0].blocks), share, body.step))


def densest(densities: Mapping[str, float], body: Body, size: Size) -> list[Stack]:
    """The stacks, and in each the runs of ``body.step`` blocks, in which the most weights are left, in their order."""
    def best(values: Sequence[float], count: int) -> list[int]:
        return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])

    totals = [sum(densities[block] for block in stack.blocks) for stack in body.stacks]
    found = []
    for stack in (body.stacks[i] for i in best(totals, size.stacks)):
        runs = [stack.blocks[i:i + body.step] for i in range(0, len(stack.blocks) // body.step * body.step, body.step)]
        left = best([sum(densities[block] for block in run) for run in runs], size.blocks // body.step)
        found.append(Stack(tuple(block for i in left for block in runs[i]), stack.ends))
    return found


def transplant(state: Mapping[str, Tensor], spec: Spec, groups: Iterable[Group], stacks: Sequence[Stack],
               names: Iterable[str], new_groups: Iterable[Group], new_stacks: Sequence[Stack]) -> dict[str, Tensor]:
    """Weights of a smaller network of the same arch: of a larger one those of the units with the largest weights.

    Args:
        state, spec: of the larger one, without gates.
        groups: by which it can be cut in all its widths.
        stacks: those of its blocks that are taken.
        names: of the smaller one's tensors.
        new_groups: its groups, of the same names in their own blocks.
        new_stacks: its blocks.

    Raises:
        ValueError: the smaller one has other numbers of blocks than are taken, or is larger in something.
    """
    groups, new_groups = list(groups), list(new_groups)
    if [len(stack.blocks) for stack in new_stacks] != [len(stack.blocks) for stack in stacks]:
        raise ValueError('compression: how many blocks there are is what the density says: choose another density or '
                         'channel_share in place of args')
    pairs = [pair for new, old in zip(new_stacks, stacks, strict=True)
             for pair in zip((*new.blocks, *new.ends), (*old.blocks, *old.ends), strict=True)]
    renamed = _renaming(pairs)
    scores = score_units(state, groups, 'l1')
    for group in new_groups:
        if group.size > len(scores.get(renamed(group.name), ())):
            raise ValueError(f'compression: the small network would be larger than the sparse one in {group.name}, and '
                             'there are no weights for it: choose a smaller round_to or other args, or init: random')
    kept = {renamed(group.name): scores[renamed(group.name)].topk(group.size).indices.sort().values.tolist()
            for group in new_groups}
    narrow, _ = cut(state, spec, groups, kept)
    return {name: narrow[renamed(name)] for name in names}


def _renaming(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    table = dict(pairs)

    def renamed(name: str) -> str:
        parts = name.split('.')
        for end in range(len(parts), 0, -1):
            if (prefix := '.'.join(parts[:end])) in table:
                return '.'.join([table[prefix], *parts[end:]])
        return name

    return renamed


def _blocks(body: Body) -> list[str]:
    return [block for stack in body.stacks for block in stack.blocks]


def _weights(state: Mapping[str, Tensor], blocks: Iterable[str]) -> list[str]:
    starts = tuple(f'{block}.' for block in blocks)
    return [name for name, tensor in state.items() if name.startswith(starts) and tensor.dim() > 1]


def _density(weights: Sequence[Tensor]) -> float:
    return sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


def _nearest(whole: int, share: float, multiple: int = 1) -> int:
    """The multiple nearest to a share of the whole, and within it; at least one multiple."""
    return max(1, min(math.floor(whole * share / multiple + 0.5), whole // multiple)) * multiple
