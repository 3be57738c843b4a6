"""SwinIR, of BasicSR and of its authors, who name the tensors alike.

The files hold constants too: in which order a window reads the table of position biases (``relative_position_index``),
and which pixels of a training image stay apart (``attn_mask``). A state dict does not tell ``img_range``: it is taken
to be 1, as in all published networks for super-resolution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from basicsr_ssl.archs.swinir_arch import TAIL_FEAT, blocks, borders, relative_positions
from basicsr_ssl.checkpoints.layouts.layout import Found, Layout, State
from basicsr_ssl.pruning.spec import Spec

TRAINING_SIZE = 64  # BasicSR's img_size, of which its attn_mask is
_BLOCK = re.compile(r'layers\.(\d+)\.residual_group\.blocks\.(\d+)\.')
_CONSTANTS = ('.attn_mask', '.relative_position_index')


def read(state: State, lists: Mapping[str, Any] | None) -> Found:
    """It is not pruned.

    Raises:
        ValueError: the tensors are no whole SwinIR for super-resolution.
    """
    del lists
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_CONSTANTS)}

    def size(name: str, dim: int, of: int) -> int:
        if name not in state or state[name].dim() != of:
            raise ValueError(f'not a whole SwinIR: missing or misshapen {name}')
        return state[name].shape[dim]

    if other := next((name for name in ('conv_up1.weight', 'absolute_pos_embed') if name in state), None):
        raise ValueError(f'a SwinIR with {other}, which is not known here: only those of classical and of lightweight '
                         'super-resolution are')
    found = [(int(match[1]), int(match[2])) for name in state if (match := _BLOCK.match(name))]
    depths = [max(j for i, j in found if i == group) + 1 for group in sorted({i for i, _ in found})]
    table = 'layers.{}.residual_group.blocks.0.attn.relative_position_bias_table'
    embed, hidden = size('conv_first.weight', 0, 4), size('layers.0.residual_group.blocks.0.mlp.fc1.weight', 0, 2)
    light = 'conv_last.weight' not in state
    filters = size('upsample.0.weight', 0, 4)
    units = 3 if light else TAIL_FEAT
    steps = sum(bool(re.fullmatch(r'upsample\.\d+\.weight', name)) for name in state)
    ratio = hidden / embed
    args = {'embed_dim': embed, 'depths': depths,
            'num_heads': [size(table.format(i), 1, 2) for i in range(len(depths))],
            'window_size': (math.isqrt(size(table.format(0), 0, 2)) + 1) // 2,
            'mlp_ratio': ratio if int(embed * ratio) == hidden else (hidden + 0.5) / embed,
            'scale': 2**steps if steps > 1 else math.isqrt(filters // units),
            'upsampler': 'pixelshuffledirect' if light else 'pixelshuffle',
            'resi_connection': '3conv' if 'conv_after_body.0.weight' in state else '1conv'}
    return Found(Spec('PrunableSwinIR', args), state, untold=('img_range', 'residual'))


def to_basicsr(net: nn.Module) -> State:
    """The weights as BasicSR's ``SwinIR`` loads them; its arguments are to be given to it.

    Its ``img_size`` is 64, or if that is not whole windows, 8 of them.

    Raises:
        ValueError: that class has no place for something; all of it is listed.
    """
    spec: Any = net.spec
    if refused := [what for what, there in {
        'gates (prune first, or train on without them)': bool(spec.gates),
        'pruned widths (keep it as safetensors)': bool(spec.widths),
    }.items() if there]:
        raise ValueError(f'whose class knows no {", no ".join(refused)}')
    state, window = net.state_dict(), spec.args['window_size']
    side = 8 * window if TRAINING_SIZE % window else TRAINING_SIZE
    for names in blocks(spec.args):
        for j, name in enumerate(names):
            state[f'{name}.attn.relative_position_index'] = relative_positions(window)
            if j % 2 and window > 1:
                state[f'{name}.attn_mask'] = borders(side, side, window, window // 2)[:, 0]
    return state


LAYOUTS = (
    Layout('BasicSR', ('conv_first.weight', 'patch_embed.norm.weight',
                       'layers.0.residual_group.blocks.0.attn.relative_position_bias_table'), str, read),
)
