"""From density to size, against the published networks; and which weights go into a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.swinir_arch import SwinIR
from nets import random_gates_
from tiny_runs import write_options

from basicsr_ssl import config, count_macs, count_params, load_network, prune_network, save_network
from basicsr_ssl.api import with_gates
from basicsr_ssl.archs import PrunableEDSR, PrunableSwinIR
from basicsr_ssl.cli import main
from basicsr_ssl.pruning.body import Body, Size, Stack
from basicsr_ssl.pruning.compression import block_density, body_density, densest, smaller

EDSR_M: dict[str, Any] = {'num_feat': 64, 'num_block': 16, 'scale': 2}
LIGHT: dict[str, Any] = {'scale': 2}
TINY_SWINIR: dict[str, Any] = {'embed_dim': 12, 'depths': (4, 4), 'num_heads': (2, 2), 'window_size': 4, 'scale': 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(**compression: Any) -> int:
    opt = {'name': 'run', 'model_type': 'CompressionModel', 'scale': 2, 'num_gpu': 0,
           'compression': {'init': 'teacher', **compression},
           'path': {'pretrain_network_g': 'sparse.safetensors'}, 'logger': {'use_tb_logger': False}}
    return main(['train', '-opt', str(write_options(Path('run.yml'), opt))])


def small() -> Any:
    return load_network('experiments/run/models/net_g_latest.safetensors')


@torch.no_grad()
def thin_(net: Any, shares: dict[str, float]) -> None:
    """Leave this share of each weight of the modules, the large ones."""
    for name, parameter in net.named_parameters():
        share = next((share for module, share in shares.items() if name.startswith(f'{module}.')), 1)
        if parameter.dim() > 1:
            gone = parameter.abs().flatten().argsort()[:round((1 - share) * parameter.numel())]
            parameter.view(-1)[gone] = 0


def test_published_networks_at_the_assumed_densities() -> None:
    # the shares of the teachers' weights that the published small networks have in their blocks
    edsr: Any = PrunableEDSR(**EDSR_M)
    assert count_params(edsr) == 1_369_859
    assert smaller(edsr.body_table(edsr.spec.args), 1 / 32, 0.4, 8) == Size(16, 1, 8)
    swinir: Any = PrunableSwinIR(**LIGHT)
    assert smaller(swinir.body_table(swinir.spec.args), 0.08, 0.4) == Size(24, 3, 4)
    # and how far from them it would be the same
    for density, size in ((0.023, True), (0.022, False), (0.042, True), (0.043, False)):
        assert (smaller(edsr.body_table(edsr.spec.args), density, 0.4, 8) == Size(16, 1, 8)) == size
    for density, size in ((0.073, True), (0.072, False), (0.135, True), (0.137, False)):
        assert (smaller(swinir.body_table(swinir.spec.args), density, 0.4) == Size(24, 3, 4)) == size


@pytest.mark.parametrize('init', ['teacher', 'random'])
def test_edsr_mini(init: str) -> None:
    net = PrunableEDSR(**EDSR_M)
    thin_(net, {'body': 1 / 32})
    save_network(net, 'sparse.safetensors')
    assert run(init=init, args={'res_scale': 2.0}) == 0
    assert (count_params(small()), small().spec.args['res_scale']) == (49_603, 2)
    assert round(count_macs(small(), (360, 640)) / 1e9, 2) == 11.65
    report = json.loads(Path('experiments/run/report.json').read_text())
    assert report['density'] == pytest.approx(1 / 32, rel=1e-3) and len(report['block_density']) == 16
    assert report['params'] == {'before': 1_369_859, 'after': 49_603}


def test_swinir_mini() -> None:
    save_network(PrunableSwinIR(**LIGHT), 'sparse.safetensors')
    assert run(density=0.08, round_to=6) == 0
    assert count_params(small()) == 98_868
    assert {key: small().spec.args[key] for key in ('embed_dim', 'depths', 'num_heads', 'mlp_ratio')} == {
        'embed_dim': 24, 'depths': [4] * 3, 'num_heads': [6] * 3, 'mlp_ratio': 2}


def test_weights_are_conserved() -> None:
    body = Body(1000, (Stack(tuple(map(str, range(1000)))),) * 1000)
    for density in (0.9, 0.3, 0.05):
        for share in (0, 0.25, 0.5):
            size = smaller(body, density, share)
            assert (size.channels / 1000)**2 * size.stacks * size.blocks / 1e6 == pytest.approx(density, rel=0.01)
    assert smaller(body, 1, 0.4) == Size(1000, 1000, 1000)
    # never more than there is, unless not even one multiple is there
    assert smaller(Body(60, (Stack(tuple('abcde')),), multiple=6, step=2), 1, 0.4, 8) == Size(48, 1, 4)
    assert smaller(Body(8, (Stack(('a', 'b')),), multiple=4, step=2), 1e-9, 0.4, 3) == Size(12, 1, 2)


def test_density_counts_weights_of_blocks_only() -> None:
    state = {'a.weight': torch.tensor([[1., 0], [0, 0]]), 'a.bias': torch.zeros(2), 'b.weight': torch.ones(1, 4),
             'tail.weight': torch.zeros(3, 3), 'ab.weight': torch.zeros(3, 3)}
    body = Body(2, (Stack(('a', 'b')),))
    assert block_density(state, body) == {'a': 0.25, 'b': 1} and body_density(state, body) == 5 / 8


def test_the_densest_blocks_are_taken_in_their_order_and_in_pairs() -> None:
    stacks = tuple(Stack(tuple(f'{s}{j}' for j in range(4)), (f'{s}end',)) for s in 'abc')
    densities = {'a0': .1, 'a1': .2, 'a2': .9, 'a3': .1, 'b0': 0, 'b1': 0, 'b2': 0, 'b3': 0,
                 'c0': .5, 'c1': .3, 'c2': .7, 'c3': 0}
    assert densest(densities, Body(8, stacks), Size(8, 2, 2)) == [
        Stack(('a1', 'a2'), ('aend',)), Stack(('c0', 'c2'), ('cend',))]
    assert densest(densities, Body(8, stacks, step=2), Size(8, 1, 2)) == [Stack(('c0', 'c1'), ('cend',))]


@torch.no_grad()
def test_a_teacher_that_is_zero_elsewhere_is_found_again() -> None:
    """A network that uses half its channels and blocks only is the same small network."""
    torch.manual_seed(0)
    args: dict[str, Any] = {'num_block': 4, 'scale': 2, 'img_range': 1.0}
    mini, large = PrunableEDSR(num_feat=4, **{**args, 'num_block': 2}), PrunableEDSR(num_feat=8, **args)
    used = [1, 2, 5, 7]
    state = {name: torch.zeros_like(tensor) for name, tensor in large.state_dict().items()}
    for name, tensor in mini.state_dict().items():
        name = name.replace('body.1.', 'body.3.')  # blocks 0 and 3; the others add nothing
        filters = [4 * unit + i for unit in used for i in range(4)] if name.startswith('upsample') else used
        where = state[name]
        if tensor.dim() == 1:
            where[filters if len(where) > 3 else slice(None)] = tensor
        else:
            part = where[filters] if len(where) > 3 else where
            part[:, used if part.shape[1] > 3 else slice(None)] = tensor
            where[filters if len(where) > 3 else slice(None)] = part
    large.load_state_dict(state)
    save_network(large, 'sparse.safetensors')
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(large(x), mini(x))
    assert run(density=1 / 8, channel_share=1 / 3, round_to=4) == 0
    assert all(torch.equal(small().state_dict()[name], tensor) for name, tensor in mini.state_dict().items())


def test_swinir_takes_heads_features_hidden_units_and_blocks_that_belong_together() -> None:
    torch.manual_seed(0)
    net = PrunableSwinIR(**TINY_SWINIR)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(1 if 'norm' in name else 0, 0.3)
    thin_(net, {'layers.0': 0.2, 'layers.1.residual_group.blocks.0': 0.1, 'layers.1.residual_group.blocks.1': 0.1})
    state = net.state_dict()
    save_network(net, 'sparse.safetensors')
    assert run(density=1 / 16, channel_share=0.25, round_to=6) == 0
    args = small().spec.args
    assert (args['embed_dim'], args['depths'], args['num_heads']) == (6, [2], [2])
    # by l1 over all that holds a unit: the channels of the stream
    theirs, ours = 'layers.1.residual_group.blocks.2', 'layers.0.residual_group.blocks.0'
    score = sum((tensor.abs().movedim(dim, 0).flatten(1).sum(1) for name, tensor in state.items()
                 for dim in range(tensor.dim()) if tensor.dim() > 1 and tensor.shape[dim] == 12 and not (
                     (dim == 1 and 'attn.proj' in name) or (dim == 0 and 'upsample' in name))), torch.zeros(12))
    stream = score.topk(6).indices.sort().values
    qkv = state[f'{theirs}.attn.qkv.weight'].view(3, 2, 6, 12)
    proj = state[f'{theirs}.attn.proj.weight'].view(12, 2, 6)
    features = (qkv.abs().sum((0, 1, 3)) + proj.abs().sum((0, 1))).topk(3).indices.sort().values
    new = small().state_dict()
    assert torch.equal(new[f'{ours}.attn.qkv.weight'], qkv[:, :, features][..., stream].reshape(18, 6))
    assert torch.equal(new[f'{ours}.attn.proj.weight'], proj[stream][..., features].reshape(6, 6))
    assert torch.equal(new['layers.0.conv.weight'], state['layers.1.conv.weight'][stream][:, stream])
    assert torch.equal(new[f'{ours}.attn.relative_position_bias_table'],
                       state[f'{theirs}.attn.relative_position_bias_table'])


def test_random_weights_are_new() -> None:
    net = PrunableEDSR(8, 2, scale=2)
    save_network(net, 'sparse.safetensors')
    assert run(density=1, init='random') == 0
    new = small().state_dict()
    assert new.keys() == net.state_dict().keys() and not torch.equal(new['conv_first.weight'], net.conv_first.weight)
    assert run(density=1) == 0
    assert all(torch.equal(small().state_dict()[name], tensor) for name, tensor in net.state_dict().items())


@torch.no_grad()
def test_what_a_mask_removed_counts_as_removed_and_gates_are_folded() -> None:
    torch.manual_seed(0)
    net = PrunableEDSR(8, 4, scale=2, img_range=1.0)
    masked = prune_network(net, 0.5, structure='weights', scope='local', score='l1')
    save_network(masked, 'sparse.safetensors')
    assert run() == 0
    assert json.loads(Path('experiments/run/report.json').read_text())['density'] == pytest.approx(0.5)
    gated = with_gates(net)
    random_gates_(gated)
    save_network(gated, 'sparse.safetensors')
    assert run(density=1) == 0
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(small()(x), gated(x), rtol=1e-5, atol=1e-6)


# ---- the option files

ROOT = Path(__file__).parents[1] / 'options/train/CDISM'


@pytest.fixture
def data(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real photograph in the folders of the option files."""
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    photo = sorted((test_data / 'photos').iterdir())[0]
    for folder in ('photos', 'DF2K/DF2K_train_HR_sub'):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / photo.name).symlink_to(photo)


def short(**changes: Any) -> list[str]:
    return ['num_gpu=0', 'val=null', 'datasets:val=null', 'datasets:val_2=null', 'report=null',
            'logger:use_tb_logger=false', 'datasets:train:batch_size_per_gpu=1', 'datasets:train:num_worker_per_gpu=0',
            *(f'{key.replace("__", ":")}={value}' for key, value in changes.items())]


@pytest.mark.parametrize(('file', 'size', 'img_range'), [
    ('train_EDSRmini_x2', {'num_feat': 16, 'num_block': 8, 'res_scale': 2.0}, 255),
    ('train_SwinIRmini_x2', {'embed_dim': 24, 'depths': [4, 4, 4]}, 1),
    ('photos_EDSRmini_x2', {'num_feat': 16, 'num_block': 8, 'res_scale': 2.0}, 2),
])
def test_recipes_run(file: str, size: dict[str, Any], img_range: float, data: None, test_data: Path, tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are but for lengths and tests; the real EDSR, or networks of the published sizes and formats."""
    teacher = Path('teacher.pth')
    if file.startswith('photos'):
        assert main(['convert', str(test_data / 'weights/EDSR_x2_f64b8.pth'), 'teacher.safetensors', '--assume',
                     'img_range=2']) == 0
        teacher = Path('teacher.safetensors')
    else:
        theirs = EDSR(3, 3, num_feat=64, num_block=16, upscale=2) if 'EDSR' in file else SwinIR(
            embed_dim=60, window_size=8, mlp_ratio=2, upsampler='pixelshuffledirect')
        torch.save({'params': theirs.state_dict()}, teacher)
    monkeypatch.setenv('TEACHER', str(teacher))
    force = short(stages__sparsity__train__total_iter=1, stages__distillation__train__total_iter=1)
    assert main(['train', '-opt', str(ROOT / f'{file}.yml'), '--force_yml', f'path:root={tmp_path}', *force]) == 0
    name = config.load_options(ROOT / f'{file}.yml')['name']
    net: Any = load_network(tmp_path / 'experiments' / name / 'distillation/models/net_g_latest.safetensors')
    assert {key: net.spec.args[key] for key in size} == size and net.img_range == img_range


def test_swinir_from_nothing_is_taught_by_an_edsr(data: None, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(PrunableEDSR(8, 1, scale=2), 'teacher.safetensors')
    monkeypatch.setenv('TEACHER', 'teacher.safetensors')
    file = str(ROOT / 'photos_SwinIRmini_x2.yml')
    assert main(['train', '-opt', file, '--force_yml', f'path:root={tmp_path}', *short(train__total_iter=1)]) == 0
    net = load_network(tmp_path / 'experiments/photos_SwinIRmini_x2/models/net_g_latest.safetensors')
    assert count_params(net) == 98_868


# ---- what goes wrong

@pytest.mark.parametrize(('net', 'message'), [
    (PrunableSwinIR(**{**TINY_SWINIR, 'depths': (4, 2)}), 'different numbers of blocks'),
    (PrunableEDSR(8, 2, scale=2, residual='aligned', widths={'stream': 4}), 'holds a compact PrunableEDSR'),
    (None, 'all weights of its blocks are 0'),
])
def test_what_cannot_be_compressed_is_told(net: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if net is None:
        net = PrunableEDSR(8, 2, scale=2)
        thin_(net, {'body': 0})
    save_network(net, 'sparse.safetensors')
    assert run() == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('compression', 'message'), [
    ({'args': {'res_scal': 2}}, 'a PrunableEDSR has no res_scal; it has num_feat, num_block'),
    ({'round_to': 12}, 'larger than the sparse one in stream'),
    ({'args': {'num_block': 1}}, 'how many blocks there are is what the density says'),
])
def test_what_the_small_network_cannot_be_is_told(compression: dict[str, Any], message: str,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    save_network(PrunableEDSR(8, 2, scale=2), 'sparse.safetensors')
    assert run(density=1, **compression) == 1
    assert message in capsys.readouterr().err
