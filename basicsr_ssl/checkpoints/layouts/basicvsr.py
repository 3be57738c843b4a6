"""BasicVSR, of BasicSR, mmagic and the SSL authors.

A state dict does not say which activation it was trained with: BasicSR and mmagic have LeakyReLU, the SSL authors ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from basicsr_ssl.checkpoints.layouts import spynet
from basicsr_ssl.checkpoints.layouts.basicvsr_ssl import gate_name, read_ssl
from basicsr_ssl.checkpoints.layouts.layout import Found, Layout, State
from basicsr_ssl.pruning.spec import Spec
from basicsr_ssl.terminal import listed


def read(state: State, lists: Mapping[str, Any] | None) -> Found:
    """Dense network of BasicSR's names, or gated or compact one of the SSL authors.

    Raises:
        ValueError: the tensors are no whole BasicVSR, or contradict the lists.
    """
    spec = _dense(state)
    # every project's BasicVSR has all of it; lists of kept units name the layers that there should be
    doubtful = {} if lists is not None else {argument: tensors for argument, (without, tensors) in {
        'flow': ('none', 'spynet.*'), 'scale': (2, 'upconv2.*'), 'bidirectional': (False, 'backward_trunk.*'),
    }.items() if spec.args[argument] == without}
    if lists is None and not _is_pruned(state, spec):
        return Found(spec, state, doubtful=doubtful, untold=('act',))
    spec, state, more = read_ssl(state, spec, lists)
    return Found(spec, state, f'SSL authors, {"not pruned yet" if spec.gates else "pruned"}',
                 {**more, 'method': 'SSL, by its authors'}, doubtful)


def to_basicsr(net: nn.Module) -> State:
    """The weights as BasicSR's ``BasicVSR(num_feat, num_block)`` loads them.

    Raises:
        ValueError: that class has no place for something; all of it is listed.
    """
    spec: Any = net.spec
    args = spec.args
    if refused := [what for what, there in {
        'gates (prune first, or train on without them)': bool(spec.gates),
        'pruned widths (keep it as safetensors)': spec.form == 'compact',
        'act: relu (the SSL networks)': args['act'] != 'lrelu',
        f'scale {args["scale"]}, only 4': args['scale'] != 4,
        'network that is not bidirectional': not args['bidirectional'],
        'network without a flow network': args['flow'] == 'none',
        'small flow network': args['flow'] == 'spynet_small',
        f'tail_feat {args["tail_feat"]}, only 64': args['tail_feat'] != 64,
    }.items() if there]:
        raise ValueError(f'whose class knows no {", no ".join(refused)}')
    return net.state_dict()


def _is_pruned(state: State, spec: Spec) -> bool:
    """Whether it is, or is about to be: it has gates, or blocks that do not read all channels."""
    read = {tensor.shape[1] for name, tensor in state.items() if name.endswith('.conv1.weight') and tensor.dim() == 4}
    return read != {spec.args['num_feat']} or any(name.endswith('.gate') for name in state)


def _dense(state: State) -> Spec:
    """Spec of the dense BasicVSR that a state dict with BasicSR's names belongs to.

    Raises:
        ValueError: the names are not those of a BasicVSR.
    """
    pattern = re.compile(r'forward_trunk\.main\.2\.(\d{1,9})\.conv1\.weight')
    blocks = sorted(int(match[1]) for name in state if (match := pattern.fullmatch(name)))
    needed = ('forward_trunk.main.0.weight', 'upconv1.weight', 'conv_hr.weight', 'conv_last.weight')
    missing = [name for name in needed if name not in state or state[name].dim() != 4]
    if missing or not blocks:
        raise ValueError(f'not a whole BasicVSR: missing or misshapen {listed(missing) or "the residual blocks"}')
    if blocks != list(range(len(blocks))):
        raise ValueError(f'not a whole BasicVSR: it has {len(blocks)} residual blocks, the last is number {blocks[-1]}')
    feat, channels, *_ = state['forward_trunk.main.0.weight'].shape
    if channels != feat + 3:  # a frame and the hidden state go in; the network is not built larger than its weights
        raise ValueError(f'forward_trunk.main.0.weight has {feat} filters of {channels} channels, a BasicVSR '
                         f'has {feat} of {feat + 3} there')
    return Spec('PrunableBasicVSR', {
        'num_feat': feat,
        'num_block': len(blocks),
        'tail_feat': state['conv_hr.weight'].shape[0],
        'scale': 4 if 'upconv2.weight' in state else 2,
        'bidirectional': 'backward_trunk.main.0.weight' in state,
        'act': 'lrelu',
        'flow': _flow(state),
    })


def _flow(state: State) -> str:
    own = {name.removeprefix('spynet.'): tensor for name, tensor in state.items() if name.startswith('spynet.')}
    return 'none' if not own else 'spynet_small' if spynet.size_of(own) == 'small' else 'spynet'


def _from_mmagic(name: str) -> str:
    for theirs, ours in (('backward_resblocks.', 'backward_trunk.'), ('forward_resblocks.', 'forward_trunk.'),
                         ('upsample1.upsample_conv.', 'upconv1.'), ('upsample2.upsample_conv.', 'upconv2.')):
        if name.startswith(theirs):
            return ours + name[len(theirs):]
    return spynet.from_mmagic(name)


LAYOUTS = (
    Layout('mmagic', ('forward_resblocks.main.0.weight',), _from_mmagic, read),
    Layout('BasicSR', ('forward_trunk.main.0.weight',), gate_name, read),
)
