"""Other projects' files: each gives the network it holds, or one message; and nothing in a file is ever executed."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.spynet_arch import SpyNet
from foreign import (
    CONSTANTS,
    State,
    basicvsr,
    basicvsr_convs,
    distributed,
    gated,
    lrelu,
    mmagic_name,
    pruned,
    spynet,
    spynet_convs,
    weights,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import clip, tiny_net
from safetensors.torch import save_file
from torch import nn
from torch._utils import _rebuild_tensor_v2

from basicsr_ssl import cli, count_params, import_network, load_network, save_network
from basicsr_ssl.api import with_gates
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints import pickles, torch_files
from basicsr_ssl.checkpoints.convert import convert
from basicsr_ssl.checkpoints.formats import file_format
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.files import file_sha256
from basicsr_ssl.models.networks import read_input_network

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def assert_computes(net: Any, reference: Callable[..., torch.Tensor], state: State, *args: Any,
                    tolerance: float = 1e-10) -> None:
    """Net and reference agree in float64 on a clip, to which the network does something."""
    x = clip(frames=3, height=6, width=9, dtype=torch.float64)
    with torch.no_grad():
        expected, output = reference(double(state), x, *args), net.double()(x)
    assert (expected - F.interpolate(x[0], scale_factor=4, mode='bilinear')).abs().mean() > 0.01
    assert (output - expected).abs().max() < tolerance


def assert_survives(path: Path, net: Any) -> None:
    """Saved by ``convert`` and loaded, the network is the same, and knows where it came from."""
    again = path.with_name('converted.safetensors')
    convert(str(path), str(again))
    loaded: Any = load_network(again)
    assert loaded.spec == net.spec
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    metadata = read_metadata(again)
    assert metadata['source_sha256'] == file_sha256(path) and metadata['stage'] == 'convert'
    assert metadata['source_format'] == net.provenance['source_format']


# ---- BasicSR, mmagic and SpyNet

PLAIN = weights(basicvsr_convs())


def mmagic(state: State, prefix: str = 'generator') -> State:
    return {f'{prefix}.{mmagic_name(name)}': tensor for name, tensor in state.items()}


def others(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


VSR_FILES: dict[str, tuple[Any, str, str | None]] = {
    'basicsr': ({'params': PLAIN}, 'BasicSR', 'params'),
    'basicsr-ema': ({'params': others(PLAIN), 'params_ema': PLAIN}, 'BasicSR', 'params_ema'),
    'basicsr-distributed': ({'params': distributed(PLAIN)}, 'BasicSR', 'params'),
    'basicsr-plain': (PLAIN, 'BasicSR', None),
    'mmagic': ({'meta': {'epoch': 1}, 'state_dict': {**mmagic(PLAIN), 'step_counter': torch.zeros(1)},
                'optimizer': {'generator': {'state': {0: {'exp_avg': torch.ones(3)}}}}}, 'mmagic', 'generator'),
    'mmagic-ema': ({'state_dict': {**mmagic(others(PLAIN)), **mmagic(PLAIN, 'generator_ema'),
                                   'discriminator.conv.weight': torch.ones(2), 'generator_ema.spynet.mean': CONSTANTS[
                                       'mean'], 'perceptual_loss.vgg.mean': torch.ones(1)}}, 'mmagic', 'generator_ema'),
    'mmagic-distributed': ({'state_dict': distributed(mmagic(PLAIN))}, 'mmagic', 'generator'),
}


@pytest.mark.parametrize(('content', 'source', 'key'), VSR_FILES.values(), ids=VSR_FILES)
def test_dense_networks(content: Any, source: str, key: str | None, tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save(content, path)
    net: Any = import_network(path)
    assert net.spec.form == 'dense'
    assert net.spec.args == {'num_feat': 8, 'num_block': 2, 'tail_feat': 64, 'scale': 4, 'bidirectional': True,
                             'act': 'lrelu', 'flow': 'spynet'}
    assert net.provenance == {'source_format': source, 'source_sha256': file_sha256(path), 'param_key': key}
    assert_survives(path, net)
    assert_computes(net, basicvsr, PLAIN, lrelu)


def test_param_key_chooses_among_mmagics_generators_too(tmp_path: Path) -> None:
    torch.save(VSR_FILES['mmagic-ema'][0], tmp_path / 'net.pth')
    net = import_network(tmp_path / 'net.pth', 'params')
    assert torch.equal(net.state_dict()['fusion.bias'], PLAIN['fusion.bias'] + 1)


def test_weights_that_somebody_has_put_into_safetensors(tmp_path: Path) -> None:
    save_file(mmagic(PLAIN), tmp_path / 'net.safetensors', metadata={'format': 'pt'})
    net: Any = import_network(tmp_path / 'net.safetensors')
    assert net.provenance['source_format'] == 'mmagic'
    assert_computes(net, basicvsr, PLAIN, lrelu)


FLOW = weights(spynet_convs(), seed=1)
FLOW_FILES: dict[str, tuple[Any, str]] = {
    'basicsr': ({'params': FLOW}, 'BasicSR SpyNet'),
    'basicsr-constants': ({'params': {**FLOW, **CONSTANTS}}, 'BasicSR SpyNet'),
    'mmagic': ({mmagic_name(name): tensor for name, tensor in {**FLOW, **CONSTANTS}.items()}, 'mmagic SpyNet'),
    'pytorch-spynet': ({name.replace('basic_module', 'moduleBasic'): tensor for name, tensor in FLOW.items()},
                       'pytorch-spynet'),
    'pytorch-spynet-renamed': ({name.replace('basic_module', 'netBasic'): tensor for name, tensor in FLOW.items()},
                               'pytorch-spynet'),
}


@pytest.mark.parametrize(('content', 'source'), FLOW_FILES.values(), ids=FLOW_FILES)
def test_flow_networks(content: Any, source: str, tmp_path: Path) -> None:
    path = tmp_path / 'flow.pth'
    torch.save(content, path, _use_new_zipfile_serialization=source != 'pytorch-spynet')  # whose files are that old
    net: Any = import_network(path)
    assert type(net).__name__ == 'StandaloneSpyNet' and net.provenance['source_format'] == source
    assert_survives(path, net)
    for file in (path, path.with_name('converted.safetensors')):
        inside: Any = PrunableBasicVSR(num_feat=8, num_block=1, spynet_path=str(file))
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in inside.spynet.state_dict().items())
    assert count_params(net) == 1_440_300 and count_params(net, flow=False) == 0
    one, two = (clip(1, 20, 40, seed=seed, dtype=torch.float64)[:, 0] for seed in (1, 2))
    with torch.no_grad():
        expected, flow = spynet(double(FLOW), one, two), net.double()(one, two)
    assert expected.std() > 0.1 and (flow - expected).abs().max() < 1e-9


def test_flow_and_super_resolution_do_not_take_each_others_place(tmp_path: Path) -> None:
    flow, net = tmp_path / 'flow.pth', tmp_path / 'net.pth'
    torch.save({'params': FLOW}, flow)
    torch.save({'params': PLAIN}, net)
    with pytest.raises(ValueError, match=r'net\.pth does not hold the weights of SpyNet but a Prunable'):
        PrunableBasicVSR(num_feat=8, num_block=1, spynet_path=str(net))
    clips = {'train': {'type': 'ClipFoldersDataset'}}
    with pytest.raises(ValueError, match=r'of the task clip, but .*flow\.pth holds a .*flow: .*spynet_path'):
        read_input_network({**options(flow), 'datasets': clips})
    assert read_input_network({**options(net), 'datasets': clips}).task == 'clip'


# ---- the SSL authors' files

def ssl_content(state: State, lists: dict[str, Any], where: str) -> dict[str, Any]:
    """As their pruner saves: a distributed network has the prefix in the names of layers and of tensors."""
    names = distributed if 'distributed' in where else dict
    content: dict[str, Any] = {name: names(table) for name, table in lists.items()}
    if 'model' in where:
        content['model'] = foreign_module(names(state))
    if 'state_dict' in where:
        content['state_dict'] = names(state)
    return content


def foreign_module(state: State) -> nn.Module:
    """A module tree with these tensors, of a class that only exists while the file is written."""
    root = new_module()
    for name, tensor in state.items():
        *parents, last = name.split('.')
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, new_module())
            module = module._modules[parent]
        module.register_parameter(last, nn.Parameter(tensor))
    root.hook = print  # what a pickle may name besides
    root.index = {0: [torch.float32, torch.Size([2]), {1, 2}]}
    return root


authors = types.ModuleType('ssl_authors_archs')
new_module: Callable[[], Any] = type('Net', (nn.Module,), {'__module__': authors.__name__})
authors.Net = new_module  # type: ignore[attr-defined]


def save_authors(content: object, path: Path, zipped: bool = True) -> None:
    sys.modules[authors.__name__] = authors
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules[authors.__name__]


SSL_WAYS = ['state_dict', 'state_dict-distributed', 'model', 'model-distributed', 'model-state_dict']


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('where', SSL_WAYS)
def test_pruned_networks_of_the_ssl_authors(where: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / 'model_prune_final.pt'
    state, lists = pruned(flow=where == 'state_dict')  # with the flow network once: it is larger than the rest
    save_authors(ssl_content(state, lists, where), path, zipped)
    net: Any = import_network(path)
    assert net.spec.form == 'compact' and net.spec.args['act'] == 'relu' and net.spec.args['tail_feat'] == 64
    assert net.spec.widths['upconv2'] == 9 and net.spec.widths['forward_trunk.main.2.0.mid'] == 3
    assert net.spec.index['forward_trunk.main.2.0.out'] == sorted(lists['kept_wg']['forward_trunk.main.2.0.conv2'])
    assert 'forward_trunk.main.2.1.out' not in net.spec.widths  # nothing was cut there
    assert net.provenance['source_format'] == 'SSL authors, pruned'
    assert net.provenance['param_key'] == ('state_dict' if 'state_dict' in where else 'model')
    assert_survives(path, net)
    assert_computes(net, basicvsr, state, F.relu, lists['kept_wg'], lists['kept_wg_pre'])


def test_frozen_gates_that_stand_for_removed_filters(tmp_path: Path) -> None:
    """As during the authors' finetuning: conv2 has all filters, and gates of 0 where it should have none."""
    path = tmp_path / 'model.pt'
    state, lists = pruned()
    generator = torch.Generator().manual_seed(9)
    for layer in [name.removesuffix('.weight') for name in state if name.endswith('.conv2.weight')]:
        width = state[f'{layer}.weight'].shape[1]
        gates = torch.rand(8, generator=generator) + 0.5
        gates[lists['pruned_wg'][layer]] = 0
        state |= weights({layer: (8, width, 3)}, seed=width)
        state[f'{layer}.act_scale'] = gates.view(1, -1, 1, 1)
    torch.save({**lists, 'state_dict': state}, path)
    net: Any = import_network(path)
    assert net.spec.form == 'compact' and net.conv_last is not None
    assert net.state_dict()['forward_trunk.main.2.0.conv2.weight'].shape[0] == 4
    full = {layer: list(range(8)) for layer in lists['kept_wg']}
    # the gates are multiplied into float32 weights
    assert_computes(net, basicvsr, state, F.relu, full, lists['kept_wg_pre'], tolerance=1e-6)

    gates = state['forward_trunk.main.2.0.conv2.act_scale']
    gates[0, lists['pruned_wg']['forward_trunk.main.2.0.conv2'][0]] = 0.1
    torch.save({**lists, 'state_dict': state}, path)
    with pytest.raises(ValueError, match=r'forward_trunk\.main\.2\.0\.conv2: 1 of the 4 filters .* is not 0'):
        import_network(path)


@pytest.mark.parametrize('where', [*SSL_WAYS, 'params', 'plain'])
def test_gated_networks_of_the_ssl_authors(where: str, tmp_path: Path) -> None:
    """Before pruning all layers are full, whatever the lists say will go."""
    path = tmp_path / 'model_prune_init.pt'
    flow = where in ('state_dict', 'params', 'plain')  # without lists, nothing says that there is none
    lists = pruned(flow=flow)[1]
    state = gated(weights(basicvsr_convs(flow=flow)))
    save_authors({'params': {'params': state}, 'plain': state}.get(where) or ssl_content(state, lists, where), path)
    net: Any = import_network(path)
    assert net.spec.form == 'gated' and net.spec.args['act'] == 'relu'
    own = net.state_dict()
    assert torch.equal(own['upconv1.gate'], state['upconv1.act_scale'].flatten()) and len(own['upconv1.gate']) == 8
    assert torch.equal(own['backward_trunk.main.2.1.conv1.gate_in'],
                       state['backward_trunk.main.2.1.conv1.act_scale_pre'].flatten())
    assert net.provenance['source_format'] == 'SSL authors, not pruned yet'
    if where in SSL_WAYS:
        assert net.provenance['kept']['forward_trunk.main.2.0.in'] == sorted(
            lists['kept_wg_pre']['forward_trunk.main.2.0.conv1'])
    assert_survives(path, net)
    assert_computes(net, basicvsr, state, F.relu)


def change(name: str, layer: str, new: Callable[[list[int]], Any]) -> Callable[[State, dict[str, Any]], object]:
    return lambda state, lists: lists[name].__setitem__(layer, new(lists[name][layer]))


def reshape(layer: str, filters: int, channels: int) -> Callable[[State, dict[str, Any]], object]:
    return lambda state, lists: state.update(weights({layer: (filters, channels, 3)}))


BLOCK = 'forward_trunk.main.2.0'
CONTRADICTIONS: dict[str, tuple[Callable[[State, dict[str, Any]], object], str]] = {
    'both': (change('kept_wg', f'{BLOCK}.conv2', lambda units: [*units[:-1], units[0]]),
             rf'{BLOCK}\.conv2: kept_wg 4 and pruned_wg 4 of its 8 units; .* each once, together all of them'),
    'missing': (change('pruned_wg', 'fusion', lambda units: units[1:]),
                'fusion: kept_wg 5 and pruned_wg 2 of its 8 units'),
    'too-large': (change('kept_wg', 'upconv1', lambda units: [*units[1:], 64]), 'upconv1: kept_wg 6 and '),
    'negative': (change('kept_wg_pre', f'{BLOCK}.conv1', lambda units: [*units[1:], -1]),
                 rf'{BLOCK}\.conv1: kept_wg_pre 6 and '),
    'no-list': (change('kept_wg', 'conv_hr', lambda units: None), 'conv_hr: kept_wg has no list of its units'),
    'text': (change('kept_wg', 'fusion', lambda units: [str(u) for u in units]), 'fusion: kept_wg 5 and .* integers'),
    'no-entry': (lambda state, lists: lists['kept_wg_pre'].pop(f'{BLOCK}.conv1'),
                 rf'{BLOCK}\.conv1: kept_wg_pre has no list of its units'),
    'no-table': (lambda state, lists: lists.pop('pruned_wg'), 'pruned_wg is missing'),
    'empty': (lambda state, lists: (lists['kept_wg'].update(fusion=[]),
                                    lists['pruned_wg'].update(fusion=list(range(8)))),
              'fusion: kept_wg 0 and pruned_wg 8 .* at least one kept'),
    'unprunable': (change('pruned_wg', 'conv_last', lambda units: [1]), 'conv_last: .*never pruned'),
    'unknown-layer': (lambda state, lists: lists['pruned_wg'].update({'conv_first': []}), 'conv_first: .*no weights'),
    'more-kept-than-there': (lambda state, lists: (lists['kept_wg'][f'{BLOCK}.conv2'].append(
        lists['pruned_wg'][f'{BLOCK}.conv2'].pop())),
        rf'{BLOCK}\.conv2: its weight has 4 filters of 3 channels, the lists of kept units ask for 5 of 3'),
    'neighbours': (reshape(f'{BLOCK}.conv2', 4, 5), rf'{BLOCK}\.conv2: its weight has 4 filters of 5 channels, '),
    'pixel-shuffle': (reshape('upconv1', 23, 5), 'upconv1: its weight has 23 filters of 5 channels, .* for 24 of 5'),
    'flat': (lambda state, lists: state.update({f'{BLOCK}.conv2.weight': torch.ones(108)}),
             rf'{BLOCK}\.conv2: its weight has 1 dimensions, expected 4'),
    'flat-first-conv': (lambda state, lists: state.update({'backward_trunk.main.0.weight': torch.ones(8)}),
                        r'backward_trunk\.main\.0: its weight has 1 dimensions, expected 4'),
    'first-conv': (reshape('forward_trunk.main.0', 7, 11), r'7 filters of 11 channels, a BasicVSR has 7 of 10 there'),
    'no-lists': (lambda state, lists: lists.clear(), 'without the lists of what was kept .*model_prune_final.pt'),
}


@pytest.mark.parametrize(('damage', 'message'), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_ssl_files_that_contradict_themselves(damage: Callable, message: str, tmp_path: Path) -> None:
    state, lists = pruned()
    damage(state, lists)
    torch.save({**lists, 'state_dict': state}, tmp_path / 'model.pt')
    with pytest.raises(ValueError, match=rf'model\.pt: .*{message}'):
        import_network(tmp_path / 'model.pt')


# ---- back to BasicSR

@pytest.mark.parametrize('form', ['vsr', 'flow'])
def test_dense_networks_go_back_to_basicsr(form: str, tmp_path: Path) -> None:
    source, ours, back = tmp_path / 'a.pth', tmp_path / 'b.safetensors', tmp_path / 'c.pth'
    state = {**PLAIN, **{f'spynet.{name}': tensor for name, tensor in CONSTANTS.items()}} if form == 'vsr' else FLOW
    torch.save({'params_ema': state, 'params': others(state)}, source)
    assert 'weights params_ema, the moving average' in convert(str(source), str(ours))
    assert str(back) in convert(str(ours), str(back), 'basicsr')
    if form == 'vsr':
        basicsr: nn.Module = BasicVSR(num_feat=8, num_block=2)
        basicsr.load_state_dict(torch.load(back, weights_only=True)['params'], strict=True)
    else:
        basicsr = SpyNet(str(back))  # loads strictly
    assert all(torch.equal(basicsr.state_dict()[name], tensor) for name, tensor in state.items())
    assert_survives(back, import_network(back))


def test_what_basicsr_cannot_hold_is_refused(tmp_path: Path) -> None:
    output = str(tmp_path / 'out.pth')
    for net, message in ((with_gates(tiny_net(flow='spynet', tail_feat=64)), r'knows no gates \(prune first'),
                         (tiny_net(act='relu', scale=2, bidirectional=False),
                          'no act: relu .*no scale 2, only 4, no network that is not bidirectional, no network without '
                          'a flow network, no tail_feat 6, only 64')):
        save_network(net, tmp_path / 'net.safetensors')
        with pytest.raises(ValueError, match=message):
            convert(str(tmp_path / 'net.safetensors'), output, 'basicsr')
    state, lists = pruned()
    torch.save({**lists, 'state_dict': state}, tmp_path / 'model.pt')
    with pytest.raises(ValueError, match=r'no pruned widths .*no act: relu'):
        convert(str(tmp_path / 'model.pt'), output, 'basicsr')
    assert not os.path.exists(output)


def test_convert_keeps_what_our_own_file_says(tmp_path: Path) -> None:
    save_network(tiny_net(), tmp_path / 'a.safetensors', stage='demo/dense', metrics={'held': {'psnr': 30.5}})
    convert(str(tmp_path / 'a.safetensors'), str(tmp_path / 'b.safetensors'))
    assert read_metadata(tmp_path / 'b.safetensors') == read_metadata(tmp_path / 'a.safetensors')


def test_convert_overwrites_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / 'a.pth', tmp_path / 'b.safetensors'
    torch.save(FLOW, source)
    for to, name, message in (('safetensors', 'b.pth', r'output is named \*\.safetensors'), ('onnx', 'b', 'cannot'),
                              ('basicsr', 'b.safetensors', r'named \*\.pth'), ('basicsr', 'a.pth', 'source itself')):
        with pytest.raises(ValueError, match=message):
            convert(str(source), str(tmp_path / name), to)
    convert(str(source), str(output))
    before = output.read_bytes(), output.stat().st_mtime_ns
    assert 'holds it already; nothing was written' in convert(str(source), str(output))
    torch.save(others(FLOW), source)
    with pytest.raises(ValueError, match=r'b\.safetensors exists, and is not this network'):
        convert(str(source), str(output))
    assert before == (output.read_bytes(), output.stat().st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'b.safetensors']


# ---- as the network that a stage starts from

def options(path: object, **network: Any) -> dict[str, Any]:
    return {'path': {'pretrain_network_g': str(path)}, 'scale': 4,
            'network_g': {'type': 'PrunableBasicVSR', **network} if network else None}


def test_the_ssl_authors_list_that_their_code_does_not_read_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / 'model.pt'
    state, lists = pruned()
    del lists['pruned_wg_pre']
    torch.save({**lists, 'state_dict': state}, path)
    net: Any = import_network(path)
    assert_computes(net, basicvsr, state, F.relu, lists['kept_wg'], lists['kept_wg_pre'])
    kept = lists['kept_wg_pre'][f'{BLOCK}.conv1']
    for wrong in ([*kept[1:], kept[-1]], [*kept[1:], 8], [*kept[1:], -1], [*kept[1:], True], []):
        lists['kept_wg_pre'][f'{BLOCK}.conv1'] = wrong
        torch.save({**lists, 'state_dict': state}, path)
        with pytest.raises(ValueError, match=rf'{BLOCK}\.conv1: kept_wg_pre {len(wrong)} of its 8 units'):
            import_network(path)


def test_a_stage_starts_from_any_of_them(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save(VSR_FILES['mmagic'][0], path)
    assert read_input_network(options(path)).spec.form == 'dense'
    # the file does not say its activation, the options may
    assert read_input_network(options(path, num_feat=8, num_block=2, act='relu')).spec.args['act'] == 'relu'
    state, lists = pruned()
    torch.save({**lists, 'state_dict': state}, path)
    assert read_input_network(options(path)).spec.form == 'compact'
    with pytest.raises(ValueError, match=r"holds another network than network_g describes .*act: 'relu' in the file"):
        read_input_network(options(path, num_feat=8, num_block=2))


# ---- wrappers of other trainings

WRAPPED: dict[str, Callable[[State], Any]] = {
    'net': lambda state: {'net': state, 'epoch': 3},
    'model_state_dict': lambda state: {'model_state_dict': state, 'optimizer_state_dict': {}},
    'net_g': lambda state: {'state_dict': {**{f'net_g.{name}': tensor for name, tensor in state.items()},
                                           'net_d.conv.weight': torch.ones(1)}},
    'compiled': lambda state: {'params': {f'_orig_mod.{name}': tensor for name, tensor in state.items()}},
    'twice-distributed': lambda state: {'params': distributed(distributed(state))},
    'distributed-compiled': lambda state: {'net': distributed({f'_orig_mod.{n}': t for n, t in state.items()})},
    'compiled-distributed': lambda state: {f'_orig_mod.{name}': tensor for name, tensor in distributed(state).items()},
    'net_g-compiled-distributed': lambda state: distributed({f'net_g.module._orig_mod.{n}': t
                                                             for n, t in state.items()}),
    'compiled-part': lambda state: {name.replace('spynet.', 'spynet._orig_mod.'): tensor
                                    for name, tensor in state.items()},
}


@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize('kind', ['file', 'memory'])
def test_wrappers_and_prefixes(wrap: Callable, kind: str, tmp_path: Path) -> None:
    content = wrap(PLAIN)
    torch.save(content, tmp_path / 'net.pth')
    net = import_network(tmp_path / 'net.pth' if kind == 'file' else content)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in PLAIN.items())


def test_a_moving_average_under_a_prefix_is_preferred_and_param_key_chooses(tmp_path: Path) -> None:
    content = {f'{prefix}.{name}': tensor for prefix, state in (('net_g', others(PLAIN)), ('net_g_ema', PLAIN))
               for name, tensor in state.items()}
    for key, state in ((None, PLAIN), ('params_ema', PLAIN), ('params', others(PLAIN))):
        assert torch.equal(import_network(content, key).state_dict()['fusion.bias'], state['fusion.bias'])
    torch.save(VSR_FILES['mmagic'][0], tmp_path / 'net.pth')
    with pytest.raises(ValueError, match=r"net\.pth has no 'params_ema', only params: correct param_key_g"):
        import_network(tmp_path / 'net.pth', 'params_ema')


def test_a_stage_says_by_its_network_what_a_file_leaves_open(tmp_path: Path) -> None:
    torch.save(weights(basicvsr_convs(flow=False)), tmp_path / 'net.pth')
    with pytest.raises(ValueError, match=r'path: pretrain_network_g: .*it has no spynet\.\*'):
        read_input_network(options(tmp_path / 'net.pth'))
    net = read_input_network(options(tmp_path / 'net.pth', num_feat=8, num_block=2, flow='none'))
    assert net.spec.args['flow'] == 'none'


def test_a_stage_trains_in_full_precision_whatever_its_input(tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in PLAIN.items()}, tmp_path / 'net.pth')
    assert import_network(tmp_path / 'net.pth').state_dict()['fusion.bias'].dtype == torch.float16
    assert read_input_network(options(tmp_path / 'net.pth')).conv_last.weight.dtype == torch.float32
    torch.save({name: tensor.half() for name, tensor in FLOW.items()}, tmp_path / 'flow.pth')
    inside: Any = PrunableBasicVSR(num_feat=8, num_block=1, spynet_path=str(tmp_path / 'flow.pth'))
    assert {parameter.dtype for parameter in inside.parameters()} == {torch.float32}


# ---- files that want to do harm

def raw_torch(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None,
              compression: int = zipfile.ZIP_STORED) -> None:
    """A file as ``torch.save`` writes it, around any pickle."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', program)
        archive.writestr('archive/byteorder', 'little')
        archive.writestr('archive/version', '3\n')
        for key, data in (storages or {}).items():
            archive.writestr(f'archive/data/{key}', data)


class Call:
    """Pickled, it is a call of ``function``."""

    def __init__(self, function: Callable, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.reduced


def touch(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


def text(value: object) -> bytes:
    data = str(value).encode()
    return b'X' + struct.pack('<I', len(data)) + data


PROGRAMS: dict[str, Callable[[Path], bytes]] = {
    'system': lambda path: pickle.dumps(Call(os.system, f'touch {path}'), 2),
    'eval': lambda path: pickle.dumps(Call(eval, touch(path)), 2),
    'exec-protocol-4': lambda path: pickle.dumps(Call(exec, touch(path)), 4),
    'nested': lambda path: pickle.dumps(Call(map, print, [Call(eval, touch(path))]), 2),
    'inst': lambda path: b'(' + text(touch(path)) + b'i__builtin__\neval\n.',
    'obj': lambda path: b'(c__builtin__\neval\n' + text(touch(path)) + b'o.',
    'newobj': lambda path: b'\x80\x02charmful\nMade\n' + text(path) + b'\x85\x81.',
    'newobj-ex': lambda path: b'\x80\x04charmful\nMade\n' + text(path) + b'\x85}\x92.',
    'build': lambda path: b'\x80\x02charmful\nBuilt\n)\x81' + text(path) + b'b.',
    'stack-global': lambda path: (b'\x80\x04' + text('builtins') + text('eval') + b'\x93' + text(touch(path))
                                  + b'\x85R.'),
    'dotted-name': lambda path: (b'\x80\x04' + text('os') + text('path.os.system') + b'\x93' + text(f'touch {path}')
                                 + b'\x85R.'),
    'import': lambda path: b'cleaves_a_trace\nanything\n.',
}
HARMFUL = """
class Made:
    def __new__(cls, path):
        open(path, 'w').close()
        return object.__new__(cls)

class Built:
    def __setstate__(self, path):
        open(path, 'w').close()
"""
PLACES: dict[str, Callable[[Any], Any]] = {
    'alone': lambda harm: harm,
    'model': lambda harm: {**pruned()[1], 'state_dict': {}, 'model': harm},
    'state-dict-value': lambda harm: {'params': {**PLAIN, 'extra': harm}},
    'beside': lambda harm: {'params': PLAIN, 'optimizer': [{'x': harm}]},
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_nothing_that_a_pickle_names_is_imported_or_called(name: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    trace, path = tmp_path / 'trace.txt', tmp_path / 'net.pth'
    (tmp_path / 'leaves_a_trace.py').write_text(f'{touch(trace)}\nanything = 1\n')
    (tmp_path / 'harmful.py').write_text(HARMFUL)
    program = PROGRAMS[name](trace)
    for contents in (program, program[:-1] + b'0N.'):  # the result itself; made, and thrown away
        raw_torch(path, contents)
        with pytest.raises(ValueError, match=r'net\.pth is a foreign file'):
            import_network(path)
        path.write_bytes(_legacy(contents))
        with pytest.raises(ValueError, match=r'net\.pth is a foreign file'):
            import_network(path)
    assert not trace.exists()
    pickle.loads(program)
    assert trace.exists()  # the test could have failed
    for module in ('leaves_a_trace', 'harmful'):
        sys.modules.pop(module, None)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_harm_anywhere_in_a_network_file_is_data(place: str, zipped: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / 'trace.txt', tmp_path / 'net.pth'
    torch.save(PLACES[place](Call(eval, touch(trace))), path, _use_new_zipfile_serialization=zipped)
    if place in ('beside', 'state-dict-value'):  # what is no tensor is left out
        assert torch.equal(import_network(path).state_dict()['fusion.bias'], PLAIN['fusion.bias'])
    else:
        with pytest.raises(ValueError, match='is a foreign file'):
            import_network(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_harm_within_a_pickled_module_is_data(tmp_path: Path) -> None:
    trace, path = tmp_path / 'trace.txt', tmp_path / 'net.pth'
    state, lists = pruned()
    content = ssl_content(state, lists, 'model')
    content['model'].more = Call(eval, touch(trace))
    content['model'].forward_trunk._buffers['harm'] = Call(eval, touch(trace))
    save_authors(content, path)
    with pytest.raises(ModuleNotFoundError, match='ssl_authors_archs'):
        torch.load(path, weights_only=False)
    trace.unlink(missing_ok=True)
    net = import_network(path)
    assert torch.equal(net.state_dict()['conv_last.bias'], state['conv_last.bias'])
    assert not trace.exists()


def _legacy(program: bytes) -> bytes:
    """The same for the format before torch 1.6."""
    header = b''.join(pickle.dumps(value, 2) for value in (
        0x1950a86a20f9469cfc6c, 1001, {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}))
    return header + program + pickle.dumps([], 2)


def tensor_program(count: int, offset: int, shape: tuple, strides: tuple, storage: str = 'FloatStorage') -> bytes:
    """The pickle of a state dict with one tensor, however it is described."""
    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, obj: Any) -> Any:
            return ('storage', getattr(torch, storage), '0', 'cpu', count) if obj is SENTINEL else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({'forward_trunk.main.0.weight': Call(
        _rebuild_tensor_v2, SENTINEL, offset, shape, strides, False, {})})
    return stream.getvalue()


class SENTINEL:
    """Stands for a storage."""


BOMBS: dict[str, Callable[[], bytes]] = {
    'memo': lambda: b'\x80\x02}r\xff\xff\xff\x7f.',
    'bytes': lambda: b'\x80\x04\x8e' + struct.pack('<Q', 2**62) + b'x.',
    'bytearray': lambda: b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'x.',
    'long': lambda: b'\x80\x02\x8b' + struct.pack('<I', 2**31 - 1) + b'x.',
    'frame': lambda: b'\x80\x04\x95' + struct.pack('<Q', 2**62) + b'}.',
    'decimal': lambda: b'L' + b'9' * 5000 + b'L\n.',
    'deep': lambda: b'\x80\x02' + b']' * 20_000 + b'a' * 19_999 + b'.',
    'twice-and-twice': lambda: b'\x80\x02]' + b'2\x86' * 5000 + b'.',  # 2**5000 paths to one list
    'maker-of-many-paths': lambda: b'\x80\x02]' + b'2\x86' * 5000 + b')R.',
    'deep-maker': lambda: b'\x80\x02]' + b'\x85' * 20_000 + b')R.',
    'deep-calls': lambda: b'\x80\x02cos\nsystem\n' + b')R' * 20_000 + b'.',
    'storage-of-many-paths': lambda: (
        b'\x80\x02}' + text('w') + b'ctorch._utils\n_rebuild_tensor_v2\n((' + text('storage')
        + b'ctorch\nFloatStorage\n]' + b'2\x86' * 5000 + text('cpu') + b'K\x03tQK\x00K\x03\x85K\x01\x85\x89}tRs.'),
    'long-names': lambda: (b'\x80\x02' + text('_modules') + b'q\x000' + text('x' * 100_000) + b'q\x010ca\nb\n)R'
                           + b'q\x020' + b'ca\nb\n)R}h\x00}h\x01h\x02ssbq\x020' * 5000 + b'h\x02.'),
    'itself': lambda: b'\x80\x02}q\x00' + text('params') + b'h\x00s.',
    'module-in-itself': lambda: b'\x80\x02ctorch.nn\nModule\n)Rq\x00}' + text('_modules') + b'}' + text('a')
                                + b'h\x00ssb.',
    'shared-tables': lambda: (b'\x80\x02}q\x00}q\x01' + b''.join(text(f'p{i}') + b'Ns' for i in range(3000)) + b'0'
                              + b'ctorch.nn\nModule\n)R}' + text('_modules') + b'}' + b''.join(
                                  text(f'm{i}') + b'ctorch.nn\nModule\n)R}' + text('_parameters') + b'h\x01sbs'
                                  for i in range(3000)) + b'sb.'),
    'protocol': lambda: b'\x80\x09}.',
    'extension': lambda: b'\x80\x02\x82\x01.',
    'no-stop': lambda: b'\x80\x02}',
    'underflow': lambda: b'\x80\x02\x85\x85.',
    'not-callable': lambda: b'\x80\x02K\x01)R.',
    'storage': lambda: tensor_program(10**12, 0, (10**12,), (1,)),
    'view': lambda: tensor_program(3, 0, (64, 67, 3, 3), (603, 9, 3, 1)),
    'offset': lambda: tensor_program(3, 2, (2,), (1,)),
    'negative': lambda: tensor_program(3, -1, (1,), (1,)),
    'expanded': lambda: tensor_program(3, 0, (10**9, 3), (0, 1)),
    'wrapped': lambda: tensor_program(3, 0, (2**40, 2**40), (2**40, 2**40)),
    'empty': lambda: tensor_program(3, 0, (0, 2**40), (1, 1)),
    'strides': lambda: tensor_program(3, 0, (3,), (1, 1)),
    'half-numbers': lambda: tensor_program(3, 0, (1.5,), (1,)),  # type: ignore[arg-type]
    'type': lambda: tensor_program(3, 0, (3,), (1,), 'DoubleStorage'),
}


@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_memory_follows_the_bytes_that_are_there(name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    program = BOMBS[name]()
    path.write_bytes(_legacy(program)) if legacy else raw_torch(path, program, {'0': bytes(12)})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r'net\.pth( is|: )'):
            import_network(path)
        assert tracemalloc.get_traced_memory()[1] < 60e6 + 20 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    for content in ({'\x1b]0;title\x07.weight': torch.ones(1)}, {**PLAIN, 'a\nb': torch.ones(1)}):
        torch.save(content, tmp_path / 'net.pth')
        with pytest.raises(ValueError, match=r'\\x1b\]0;title|unexpected: a\\nb$'):
            import_network(tmp_path / 'net.pth')


def test_one_storage_cannot_pose_as_a_thousand_tensors(tmp_path: Path) -> None:
    one = torch.ones(8, 8, 3, 3)
    torch.save({f'forward_trunk.main.2.{j}.conv1.weight': one for j in range(1000)}
               | {'forward_trunk.main.0.weight': torch.ones(8, 11, 3, 3)}, tmp_path / 'net.pth')
    assert (tmp_path / 'net.pth').stat().st_size < 400_000
    with pytest.raises(ValueError, match='its tensors would take 2,307,168 bytes, the file has'):
        import_network(tmp_path / 'net.pth')


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    raw_torch(tmp_path / 'net.pth', tensor_program(10**7, 0, (10**7,), (1,)), {'0': bytes(4 * 10**7)},
              zipfile.ZIP_DEFLATED)
    assert (tmp_path / 'net.pth').stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r'net\.pth is corrupted, or was packed again'):
            import_network(tmp_path / 'net.pth')
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


def test_types_and_views_of_tensors_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    tensors = {'view': base[:, 1:].transpose(0, 2), 'half': torch.ones(2).half(), 'bfloat': torch.ones(3).bfloat16(),
               'byte': torch.arange(3, dtype=torch.uint8), 'bool': torch.tensor([True, False]),
               'scalar': torch.tensor(3.),
               'parameter': nn.Parameter(torch.ones(2))}
    for zipped in (True, False):
        torch.save(tensors, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
        with open(tmp_path / 'a.pth', 'rb') as stream, torch_files.opened(
                'a.pth', stream, file_format('a.pth', stream)) as file:
            views = {name: torch_files.stored(value) for name, value in file.content.items()}
            again = file.tensors({name: view for name, view in views.items() if view is not None})
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Their OrderedDict is a call with a list of pairs, and their text has no encoding."""
    program = b"ccollections\nOrderedDict\n((l(S'a'\nI1\nla(S'b'\nI01\nlatR."
    assert pickles.read_pickle(io.BytesIO(program)) == {'a': 1, 'b': True}


def tensor_call(reference: bytes, more: bytes = b'') -> bytes:
    """A tensor of one element, given the operations that push its storage."""
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + reference + b'K\x00K\x01\x85K\x01\x85\x89}' + more + b'tR'


def test_what_describes_a_tensor_is_short(tmp_path: Path) -> None:
    """It is unpacked for each tensor: a long one, memoised and used again, would take quadratic time."""
    storage = text('storage') + b'ctorch\nFloatStorage\n' + text('0') + text('cpu') + b'K\x01'
    name = text('forward_trunk.main.0.weight')
    for program in (tensor_call(b'(' + storage + b'N' * 100_000 + b'tQ'),
                    tensor_call(b'(' + storage + b'tQ', b'N' * 100_000)):
        raw_torch(tmp_path / 'net.pth', b'\x80\x02}' + name + program + b's.', {'0': bytes(4)})
        with pytest.raises(ValueError, match='a tensor is described at a length that makes no sense'):
            import_network(tmp_path / 'net.pth')


COPIES: dict[str, Callable[[], bytes]] = {
    # an OrderedDict of Python 2 is a call with a list of pairs: one list, many calls
    'shared-pairs': lambda: b'\x80\x02](' + b'K\x01K\x02\x86' * 4000 + b'eq\x000' + (
        b'ccollections\nOrderedDict\nh\x00\x85R0') * 1000 + b'}.',
    'useless-pairs': lambda: b'\x80\x02](' + b'N' * 40_000 + b'eq\x000' + (
        b'ccollections\nOrderedDict\nh\x00\x85R0') * 1000 + b'}.',
    'calls': lambda: b'\x80\x02ca\nb\n)' + b'2R' * 1_500_000 + b'.',
    'containers': lambda: b'\x80\x02' + b'}' * 1_000_000 + b'.',
    'tuples': lambda: b'\x80\x02N' + b'\x85' * 1_000_000 + b'.',
    'marks': lambda: b'\x80\x02' + b'(' * 1_000_000 + b'}.',
    'references': lambda: b'\x80\x02' + b'NQ' * 1_000_000 + b'.',
}


@pytest.mark.parametrize('name', COPIES)
def test_work_and_memory_follow_the_operations(name: str) -> None:
    program = COPIES[name]()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='takes more than 3,000,000 operations'):
            pickles.read_pickle(io.BytesIO(program))
        assert tracemalloc.get_traced_memory()[1] < 60e6 + 10 * len(program)
    finally:
        tracemalloc.stop()


def test_names_are_not_cut_prefix_by_prefix() -> None:
    """Seven megabytes, which would be copied a million times."""
    with pytest.raises(ValueError, match='it holds x, not a BasicVSR'):
        import_network({'module.' * 1_000_000 + 'x': torch.ones(1)})


def test_names_are_not_joined_to_be_compared() -> None:
    class Long(str):
        def __str__(self) -> str:
            raise AssertionError('a name of many megabytes would be copied for every call')

        def __format__(self, spec: str) -> str:
            return str(self)

        __add__ = __str__  # type: ignore[assignment]

    name = pickles.Name(Long('collections'), Long('OrderedDict'))
    machine = pickles._Machine([])
    assert machine.made(name, ()) == {}
    called = machine.made(pickles.Name(Long('x'), Long('y')), ())
    assert not called.made_by(name, *torch_files._REBUILD) and called.made_by(pickles.Name('x', 'y'))


def test_modules_that_share_one_table(tmp_path: Path) -> None:
    """Each has its own copy of the table's tensors as far as a state dict goes: their number is bounded."""
    pairs = b''.join(text(f'p{i}') + b'Ns' for i in range(4000))
    module = b'ctorch.nn\nModule\n)R}'
    program = (b'\x80\x02ccollections\nOrderedDict\n)R' + pairs + b'q\x000' + module + text('_modules') + b'}'
               + b''.join(text(f'm{i}') + module + text('_buffers') + b'h\x00sbs' for i in range(4000)) + b'sb.')
    raw_torch(tmp_path / 'net.pth', program)
    with pytest.raises(ValueError, match='more than 50,000 modules and tensors'):
        import_network(tmp_path / 'net.pth')


def test_no_attribute_of_torch_is_looked_up_by_a_name_from_the_file(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, '__getattr__', asked.append)
    storage = text('storage') + b'ctorch.storage\nUntypedStorage\n' + text('0') + text('cpu') + b'K\x04'
    program = (b'\x80\x02}' + text('forward_trunk.main.0.weight') + b'ctorch._utils\n_rebuild_tensor_v3\n((' + storage
               + b'tQK\x00K\x01\x85K\x01\x85\x89}ctorch\nruns_code_of_torch\ntRs.')
    raw_torch(tmp_path / 'net.pth', program, {'0': bytes(4)})
    with pytest.raises(ValueError, match='is a foreign file'):
        import_network(tmp_path / 'net.pth')
    assert 'runs_code_of_torch' not in asked
    raw_torch(tmp_path / 'net.pth', program.replace(b'runs_code_of_torch', b'float32'), {'0': bytes(4)})
    with pytest.raises(ValueError, match='not a whole BasicVSR'):  # so it was read
        import_network(tmp_path / 'net.pth')


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_entries_of_one_name(tmp_path: Path) -> None:
    """One reader takes the first of them and another the last."""
    torch.save(PLAIN, tmp_path / 'net.pth')
    with zipfile.ZipFile(tmp_path / 'net.pth', 'a') as archive:
        archive.writestr('net/data/0', archive.read('net/data/0')[::-1])
    with pytest.raises(ValueError, match=r'net\.pth is corrupted, or made to deceive: it holds two entries'):
        import_network(tmp_path / 'net.pth')


def test_convert_twice_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = {**PLAIN, 'fusion.bias': torch.full((8,), float('nan'))}
    torch.save(state, tmp_path / 'a.pth')
    source, output = str(tmp_path / 'a.pth'), str(tmp_path / 'b.safetensors')
    convert(source, output)
    assert 'holds it already; nothing was written' in convert(source, output)
    state['fusion.bias'] = -state['fusion.bias']  # other bits, other file
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is not this network'):
        convert(source, output)


def test_convert_takes_the_weights_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({'params': others(PLAIN), 'params_ema': PLAIN}, tmp_path / 'a.pth')
    for key, state in (('params', others(PLAIN)), ('params_ema', PLAIN)):
        output = tmp_path / f'{key}.safetensors'
        assert cli.main(['convert', str(tmp_path / 'a.pth'), str(output), '--param-key', key]) == 0
        assert f'weights {key}' in capsys.readouterr().out
        assert torch.equal(load_network(output).state_dict()['fusion.bias'], state['fusion.bias'])


# ---- damage of every kind

def _saved(folder: Path) -> dict[str, Path]:
    """Good files of every kind, small."""
    state, lists = pruned(tail=12, flow=False)
    plain = weights(basicvsr_convs(tail=12, flow=False))
    contents: dict[str, tuple[Any, bool]] = {
        'basicsr': ({'params': plain}, True), 'basicsr-legacy': ({'params': plain}, False),
        'mmagic': ({'state_dict': mmagic(plain)}, True), 'gated': (gated(plain), True),
        'pruned': (ssl_content(state, lists, 'state_dict'), True),
        'pruned-model': (ssl_content(state, lists, 'model-distributed'), True),
        'pruned-model-legacy': (ssl_content(state, lists, 'model'), False)}
    for name, (content, zipped) in contents.items():
        save_authors(content, folder / name, zipped)
    save_network(import_network(folder / 'pruned'), folder / 'own')
    save_file(plain, folder / 'plain-safetensors')
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Any, Path]]:
    files = _saved(tmp_path_factory.mktemp('saved'))
    damaged = tmp_path_factory.mktemp('damaged')
    return {name: (path.read_bytes(), import_network(path, assume=NO_FLOW), damaged / name)
            for name, path in files.items()}


NO_FLOW = {'flow': 'none'}  # the flow network is larger than all the rest
KINDS = ['basicsr', 'basicsr-legacy', 'mmagic', 'gated', 'pruned', 'pruned-model', 'pruned-model-legacy', 'own',
         'plain-safetensors']
CHECKED = {kind for kind in KINDS if 'legacy' not in kind and kind != 'plain-safetensors'}  # by checksums


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(saved: dict, kind: str, share: float) -> None:
    content, _, path = saved[kind]
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match=r'is truncated|is no network file') as caught:
        import_network(path, assume=NO_FLOW)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(bits=st.lists(st.tuples(st.sampled_from([8, 64, 1000, 10_000, 10**9]), st.booleans(), st.integers(0, 10**9),
                               st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_are_found_or_change_nothing(saved: dict, kind: str, bits: list) -> None:
    """Nowhere a crash, a hang or a large allocation; and wrong weights only where a format has no checksum."""
    content, good, path = saved[kind]
    damaged = bytearray(content)
    for reach, from_end, at, bit in bits:  # near the beginning or the end more often than in the weights
        at %= min(reach, len(damaged))
        damaged[-1 - at if from_end else at] ^= 1 << bit
    path.write_bytes(damaged)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        net: Any = import_network(path, assume=NO_FLOW)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 5000
    else:
        assert net.spec.arch == good.spec.arch
        if kind in CHECKED:
            assert net.spec == good.spec
            assert all(torch.equal(tensor, good.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 100_000  # KiB


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind in CHECKED and kind != 'own'])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_descriptions_behind_a_good_checksum(saved: dict, kind: str, changes: list) -> None:
    """The same where the archive's checksums do not stand in front of the reader."""
    content, _, path = saved[kind]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name.split('/', 1)[1]: archive.read(name) for name in archive.namelist()}
    program = bytearray(entries['data.pkl'])
    for at, value in changes:
        program[at % len(program)] = value
    raw_torch(path, bytes(program), {name[5:]: data for name, data in entries.items() if name.startswith('data/')})
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        import_network(path, assume=NO_FLOW)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 5000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 100_000  # KiB


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)] + [
    b'\x80\x02', b'cos\nsystem\n', b'c__builtin__\neval\n', b'ccollections\nOrderedDict\n', text('a'), b'K\x01',
    b'h\x00', b'q\x00', b'r\xff\xff\xff\xff', b'I7\n', b'0', b'(', b't', b'R', b'b', b'.']),
    max_size=40))
def test_any_program_is_data_or_an_error(parts: list[bytes]) -> None:
    try:
        pickles.read_pickle(io.BytesIO(b''.join(parts)))
    except ValueError as error:
        assert len(str(error)) < 500
