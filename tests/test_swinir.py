"""PrunableSwinIR against BasicSR's SwinIR, the papers' figures, and itself before it was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.swinir_arch import SwinIR
from basicsr.utils.matlab_functions import imresize
from clips import write_noise
from nets import random_gates_
from PIL import Image
from tiny_runs import options, write_options
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl import cli, import_network, load_network, save_network
from basicsr_ssl.api import (
    choose_units,
    count_macs,
    count_params,
    cut_network,
    prune_network,
    with_gates,
    without_gates,
)
from basicsr_ssl.archs import PrunableSwinIR
from basicsr_ssl.archs.swinir_arch import whole_windows
from basicsr_ssl.checkpoints.convert import convert
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.pruning import cost
from basicsr_ssl.pruning.gates import GATES, close_gates
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.report.info import describe

TINY: dict[str, Any] = {'embed_dim': 12, 'depths': (2, 1), 'num_heads': (3, 2), 'window_size': 4, 'mlp_ratio': 1.5,
                        'upsampler': 'pixelshuffledirect'}
VARIANTS: dict[str, dict[str, Any]] = {
    'light-x2': {'scale': 2},
    'light-x3-3conv': {'scale': 3, 'resi_connection': '3conv'},
    'classical-x3': {'scale': 3, 'upsampler': 'pixelshuffle'},
    'classical-x4-3conv': {'scale': 4, 'upsampler': 'pixelshuffle', 'resi_connection': '3conv'},
}
LIGHT = {'embed_dim': 60, 'depths': (6,) * 4, 'num_heads': (6,) * 4}
MINI = {'embed_dim': 24, 'depths': (4,) * 3, 'num_heads': (6,) * 3}


@torch.no_grad()
def randomise_(net: nn.Module) -> None:
    """Weights under which every layer matters: BasicSR starts with residuals of next to nothing."""
    for name, parameter in net.named_parameters():
        if 'gate' in name:
            continue
        if parameter.dim() == 1:
            parameter.normal_('norm' in name and name.endswith('weight'), 0.2)
        elif 'table' in name:
            parameter.normal_(0, 1)
        else:
            parameter.normal_(0, parameter[0].numel()**-0.5)


def tiny(seed: int = 0, **args: Any) -> Any:
    torch.manual_seed(seed)
    net = PrunableSwinIR(**{**TINY, **args})
    randomise_(net)
    return net


def theirs_of(args: dict[str, Any], **more: Any) -> SwinIR:
    args = {**TINY, **args, **more}
    torch.manual_seed(0)
    net = SwinIR(**{**args, 'upscale': args.pop('scale')}).eval()
    randomise_(net)
    return net


def image(height: int = 8, width: int = 12, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=dtype)


def some_units(net: Any, seed: int = 3, without: str = '') -> dict[str, list[int]]:
    """A random selection that leaves 1 to all of the units of each group."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator)
            [:int(torch.randint(1, group.size + 1, (), generator=generator))].sort().values.tolist()
            for group in net.groups if group.name != without}


# ---- the dense form

@pytest.mark.parametrize('args', [*VARIANTS.values(), {'scale': 8, 'upsampler': 'pixelshuffle', 'img_range': 3.0}],
                         ids=[*VARIANTS, 'classical-x8'])
def test_dense_equals_basicsr(args: dict[str, Any]) -> None:
    theirs = theirs_of(args, img_size=16).double()
    ours = PrunableSwinIR(**{**TINY, **args}).double()
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if name in ours.state_dict()})
    for size in ((16, 16), (8, 12), (4, 4)):
        with torch.no_grad():
            expected = theirs(image(*size))
            torch.testing.assert_close(ours(image(*size)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', [(9, 7), (4, 5)])
def test_sides_that_are_no_windows_are_padded_as_basicsrs_model_does(size: tuple[int, int]) -> None:
    net, x = tiny(scale=3).double(), image(*size)
    padded = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), 'reflect')
    with torch.no_grad():
        assert torch.equal(net(x), net(padded)[..., :3 * size[0], :3 * size[1]])


def test_mirrored_more_than_once() -> None:
    row = torch.tensor([1., 2, 3]).view(1, 1, 1, 3).expand(1, 1, 8, 3)
    assert whole_windows(row, 8)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2]
    assert whole_windows(row[..., :1], 4)[0, 0, 0].tolist() == [1] * 4


def test_weights_start_as_in_basicsr() -> None:
    torch.manual_seed(0)
    ours, theirs = PrunableSwinIR(**LIGHT), SwinIR(window_size=8, mlp_ratio=2, upscale=4,
                                                   upsampler='pixelshuffledirect', **LIGHT)
    for name, parameter in theirs.named_parameters():
        own = ours.get_parameter(name)
        assert own.shape == parameter.shape
        if parameter.numel() > 1000:
            assert float(own.detach().std()) == pytest.approx(float(parameter.detach().std()), rel=0.1), name
        elif parameter.dim() == 1 and 'conv' not in name and 'upsample' not in name:
            assert torch.equal(own, parameter), name


def test_streamed_images_equal_forward() -> None:
    net, images = tiny(scale=2), [image(dtype=torch.float32), image(5, 8, dtype=torch.float32)]
    for streamed, x in zip(net.stream(iter(images)), images):
        assert torch.equal(streamed, net(x)) and not streamed.requires_grad


# ---- gated and compact

@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kind', GATES)
def test_fresh_gates_change_nothing_and_stand_where_the_groups_say(kind: str, args: dict[str, Any]) -> None:
    dense, x = tiny(residual='aligned', **args), image(dtype=torch.float32)
    gated: Any = with_gates(dense, kind)
    declared = {gate: group.size for group in dense.groups for gate in group.gates if kind != 'mask'}
    assert {name: len(gate) for name, gate in gated.named_parameters() if 'gate' in name} == declared
    with torch.no_grad():
        assert torch.equal(gated(x), dense(x))
    fresh = PrunableSwinIR(**dense.spec.args, gates=kind)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(without_gates(fresh)(x), fresh(x))


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kind', ['scale', 'weight_norm'])
def test_closed_gates_equal_the_cut_network(args: dict[str, Any], kind: str) -> None:
    gated: Any = with_gates(tiny(residual='aligned', **args), kind).double()
    random_gates_(gated)
    x = image(7, 9)
    for seed in (3, 4):
        kept = some_units(gated, seed, without='stream')
        compact: Any = cut_network(gated, kept)
        closed: Any = with_gates(gated, kind)
        closed.load_state_dict(close_gates(gated.state_dict(), gated.groups, kept))
        with torch.no_grad():
            assert not torch.allclose(closed(x), gated(x), atol=1e-3)
            torch.testing.assert_close(compact(x), closed(x), rtol=0, atol=1e-10)
            torch.testing.assert_close(without_gates(closed)(x), closed(x), rtol=0, atol=1e-10)


def test_masked_weights_are_as_good_as_zero() -> None:
    masked: Any = with_gates(tiny(scale=2, resi_connection='3conv'), 'mask').double()
    with torch.no_grad():
        for name, mask in masked.named_buffers():
            if name.endswith('_mask'):
                mask.copy_(torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
        kept, x = some_units(masked), image()
        torch.testing.assert_close(without_gates(masked)(x), masked(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(without_gates(cut_network(masked, kept))(x), cut_network(masked, kept)(x), rtol=0,
                                   atol=1e-12)


def test_a_narrow_stream_is_what_the_layers_make_of_the_channels_left() -> None:
    # each channel left stands where it stood: a dense network in which the others are not connected, and in whose norms
    # they do not count
    net = tiny(scale=2, residual='aligned', depths=(1,), num_heads=(3,)).double()
    kept = [0, 3, 4, 7, 10]
    narrow: Any = cut_network(net, {'stream': kept})
    for group in net.groups:
        for s in group.slices if group.name == 'stream' else ():
            gone = [unit for unit in range(12) if unit not in kept]
            net.state_dict()[s.param].index_fill_(s.dim, torch.tensor(gone), 0)

    def norm(module: nn.LayerNorm, tokens: Tensor) -> Tensor:
        chosen = tokens[..., kept]
        centred = chosen - chosen.mean(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        out[..., kept] = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        return out * module.weight + module.bias

    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = lambda tokens, module=module: norm(module, tokens)  # type: ignore[method-assign]
    with torch.no_grad():
        torch.testing.assert_close(narrow(image()), net(image()), rtol=0, atol=1e-10)


@hypothesis.settings(deadline=None, derandomize=True, max_examples=10)
@hypothesis.given(st.sampled_from(list(VARIANTS)), st.integers(0, 10**6), st.integers(0, 10**6))
def test_cutting_twice_equals_cutting_once_and_costs_what_the_tensors_say(variant: str, first: int,
                                                                          second: int) -> None:
    net = tiny(residual='aligned', **VARIANTS[variant]).double()
    outer, inner = some_units(net, first), some_units(net, second)
    kept = {name: sorted({*units, *inner[name]}) for name, units in outer.items()}
    again = {name: [kept[name].index(unit) for unit in units] for name, units in inner.items()}
    once: Any = cut_network(net, inner)
    twice: Any = cut_network(cut_network(net, kept), again)
    assert once.spec == twice.spec
    assert {name: len(units) for name, units in inner.items()} == {
        name: once.spec.widths.get(name, size) for name, size in net.full_widths(net.spec.args).items()}
    assert count_params(once) == sum(parameter.numel() for parameter in once.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert torch.equal(once(image(7, 9, 1)), twice(image(7, 9, 1)))
    assert 2 * count_macs(once, (7, 9)) == counter.get_total_flops() / 2


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_learns_and_every_layer_is_in_the_table(args: dict[str, Any]) -> None:
    dense = tiny(residual='aligned', **args)
    for net in (dense, with_gates(dense), cut_network(dense, {'stream': [0, 2, 3, 7, 9]})):
        net(image(9, 9, dtype=torch.float32)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        owners = {name.rpartition('.')[0] for name, _ in net.named_parameters()}
        assert {layer.name for layer in net.cost_table} == owners  # type: ignore[union-attr]


def test_groups_that_are_asked_for() -> None:
    assert {group.name for group in tiny(scale=2).groups} == {
        f'layers.{i}.residual_group.blocks.{j}.{what}' for i, j in ((0, 0), (0, 1), (1, 0))
        for what in ('heads', 'hidden')}
    stream = tiny(scale=2, residual='aligned').groups[0]
    assert (stream.name, stream.size, stream.normalised) == ('stream', 12, True)
    # all that reads or writes the embedding's channels: every parameter but three in a block and the tail's bias
    touched = {s.param for s in stream.slices}
    left = {name.rpartition('blocks.')[2] for name in tiny(scale=2).state_dict() if name not in touched}
    assert left == {*(f'{j}.{name}' for j in (0, 1) for name in (
        'attn.qkv.bias', 'attn.relative_position_bias_table', 'mlp.fc1.bias')), 'upsample.0.bias'}


def test_pruning_and_files_know_it(tmp_path: Path) -> None:
    net = tiny(scale=2, residual='aligned')
    small: Any = prune_network(net, 0.5, budget='macs', score='l1')
    assert count_macs(small) <= 0.5 * count_macs(net) and small.spec.widths['stream'] < 12
    save_network(small, tmp_path / 'small.safetensors')
    again: Any = load_network(tmp_path / 'small.safetensors')
    assert again.spec == small.spec and describe(tmp_path / 'small.safetensors')['params'] == count_params(small)
    assert cli.main(['info', str(tmp_path / 'small.safetensors')]) == 0
    with torch.no_grad():
        assert torch.equal(again(image(dtype=torch.float32)), small(image(dtype=torch.float32)))
    # gates choose among what has them
    gated = with_gates(net)
    random_gates_(gated)
    kept = choose_units(gated, PruningOptions.of(ratio=0.3, score='gate'))
    assert kept['stream'] == list(range(12)) and sum(map(len, kept.values())) < 12 + 3 * 18 + 2 * 3 + 2


def test_sparsity_learning_pruning_finetuning_and_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / 'photos', ['a.png', 'b.png'], (30, 42))
    torch.save({'params': theirs_of({'scale': 2}).state_dict()}, 'swinir.pth')
    data = {'dataroot_gt': 'photos', 'gt_size': 18, 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0}
    opt = options(tmp_path, scale=2, path={'pretrain_network_g': 'swinir.pth'}, pruning={
        'ratio': 0.25, 'budget': 'macs', 'score': 'l1', 'lr_size': [12, 12]})
    del opt['network_g'], opt['model_type']
    opt['datasets'] = {'train': {'name': 'photos', 'type': 'ImageFolderDataset', **data},
                       'val': {'name': 'held', 'type': 'ImageFolderTestDataset', 'dataroot_gt': 'photos'}}
    opt['train'].update(total_iter=2, scheduler={'type': 'MultiStepLR', 'milestones': []})
    opt['stages'] = {'sparsity': {'model_type': 'SparsityLearningModel', 'sparsity': {
                         'interval': 1, 'delta': 0.5, 'ceiling': 0.5}},
                     'pruning': {'model_type': 'PruningModel'}, 'finetune': {'model_type': 'ReconstructionModel'}}
    assert cli.main(['train', '-opt', str(write_options(tmp_path / 'run.yml', opt))]) == 0
    gated, compact, last = (load_network(f'experiments/run/{stage}/models/net_g_latest.safetensors')
                            for stage in ('sparsity', 'pruning', 'finetune'))
    assert count_macs(compact, (12, 12)) <= 0.75 * count_macs(gated, (12, 12))
    assert last.spec == compact.spec and compact.spec.form == 'compact'  # type: ignore[attr-defined]
    # what was learnt is what went: the gates of the units that are left, folded, give the same weights
    kept = read_metadata('experiments/run/sparsity/models/net_g_latest.safetensors')['selection']['kept']
    with torch.no_grad():
        x = image(dtype=torch.float32)
        assert torch.equal(cut_network(gated, kept)(x), compact(x))
    tested = {key: opt[key] for key in ('scale', 'num_gpu', 'val')} | {
        'name': 'tested', 'model_type': 'ReconstructionModel', 'datasets': {'test': opt['datasets']['val']},
        'path': {'pretrain_network_g': 'experiments/run/finetune/models/net_g_latest.safetensors'}}
    assert cli.main(['test', '-opt', str(write_options(tmp_path / 'test.yml', tested))]) == 0
    [result] = (tmp_path / 'results').rglob('results.json')
    psnr = []
    for name in ('a.png', 'b.png'):
        gt = np.array(Image.open(tmp_path / 'photos' / name)).astype(np.float64)
        lq = imresize(gt / 255, 0.5).clip(0, 1)
        lq = torch.from_numpy(np.rint(lq * 255) / 255).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            out = last(lq)[0].clamp(0, 1).permute(1, 2, 0).numpy()
        psnr.append(10 * np.log10(255**2 / np.square(np.rint(out * 255) - gt).mean()))
    assert json.loads(result.read_text())['metrics']['psnr'] == pytest.approx(np.mean(psnr), abs=0.01)


# ---- cost: what is published

@pytest.mark.parametrize(('scale', 'params', 'mult_adds'), [(2, 878, 195.6), (3, 886, 87.2), (4, 897, 49.6)])
def test_the_papers_light_network(scale: int, params: int, mult_adds: float) -> None:
    """Table 2 of the paper, which counts in its own way.

    Its parameters are those without the tables of position biases. Its Mult-Adds are what ``flops()`` of the authors'
    code says of HR 1024x720, padded by at least a pixel to whole windows: it adds the norms, and takes 3 columns for
    the 9 of the convolution after the body, and 27 filters for the tail at any scale.
    """
    with torch.device('meta'):
        net = PrunableSwinIR(**LIGHT, scale=scale)  # type: ignore[arg-type]
    assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())
    tables = 24 * 15**2 * 6
    assert round((count_params(net) - tables) / 1000) == params
    h, w = (side // scale // 8 * 8 + 8 for side in (720, 1024))
    published = count_macs(net, (h, w)) + h * w * (24 * 2 * 60 - 60 * 60 * 6 - 60 * 9 * (3 * scale**2 - 3))
    assert published / 1e9 == pytest.approx(mult_adds, abs=0.06)


def test_published_sizes() -> None:
    with torch.device('meta'):
        light, mini = (PrunableSwinIR(**args, scale=2) for args in (LIGHT, MINI))
        classical = PrunableSwinIR(180, (6,) * 6, (6,) * 6, upsampler='pixelshuffle', scale=2)
    theirs = SwinIR(window_size=8, mlp_ratio=2, upscale=2, upsampler='pixelshuffledirect', **LIGHT)
    assert count_params(light) == 910_152 == sum(parameter.numel() for parameter in theirs.parameters())
    assert count_params(mini) == 98_868  # CDISM: about 98.9 K
    assert round(count_params(classical) / 1e6, 1) == 11.8  # table 2 of the paper's supplement
    assert round(cost.macs(light.cost_table, (360, 640)) / 1e9, 1) == 240.9


# ---- files of BasicSR and of the authors

@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('key', ['params', 'params_ema'])
def test_there_and_back(args: dict[str, Any], key: str, tmp_path: Path) -> None:
    theirs = theirs_of(args)
    torch.save({key: theirs.state_dict()}, tmp_path / 'swinir.pth')
    net: Any = load_network(tmp_path / 'swinir.pth', assume={'residual': 'aligned'})
    assert (net.provenance['source_format'], net.provenance['param_key']) == ('BasicSR', key)
    assert net.spec == PrunableSwinIR(**{**TINY, **args, 'residual': 'aligned'}).spec
    with torch.no_grad():
        torch.testing.assert_close(net.double()(image()), theirs.double()(image()), rtol=0, atol=1e-10)
    save_network(net.float(), tmp_path / 'ours.safetensors')
    convert(str(tmp_path / 'ours.safetensors'), str(tmp_path / 'back.pth'), to='basicsr')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['params']
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor.to(back[name].dtype)) for name, tensor in theirs.state_dict().items())


def test_ratios_that_are_no_whole_numbers_of_hidden_units() -> None:
    for embed in (6, 21, 48):
        for hidden in range(1, 2 * embed, 9):
            net = theirs_of({'embed_dim': embed, 'depths': [1], 'num_heads': [3], 'scale': 2,
                             'mlp_ratio': (hidden + 0.5) / embed, 'upsampler': 'pixelshuffledirect'})
            found: Any = import_network(net.state_dict())
            assert found.full_widths(found.spec.args)['layers.0.residual_group.blocks.0.hidden'] == hidden


def changed(**entries: Any) -> dict[str, Tensor]:
    state = {**theirs_of({'scale': 2, 'upsampler': 'pixelshuffledirect'}).state_dict(),
             **{name.replace('__', '.'): value for name, value in entries.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(('state', 'message'), [
    (changed(upsample__0__weight=None), r'not a whole SwinIR: missing or misshapen upsample\.0\.weight'),
    (changed(conv_first__weight=torch.zeros(12)), r'misshapen conv_first\.weight'),
    (changed(layers__1__residual_group__blocks__0__attn__relative_position_bias_table=None), r'missing or misshapen'),
    (changed(layers__0__residual_group__blocks__1__attn__qkv__bias=None), r'blocks\.1\.attn\.qkv\.bias'),
    (changed(layers__0__residual_group__blocks__9__attn__qkv__bias=torch.zeros(3)), r'blocks\.2\.attn'),
    (changed(layers__0__residual_group__blocks__99999999999__attn__qkv__bias=torch.zeros(3)), r'which no network has'),
    (changed(upsample__0__weight=torch.zeros(5, 12, 3, 3)), r'scale must be one of'),
    (changed(conv_up1__weight=torch.zeros(3)), r'a SwinIR with conv_up1\.weight, which is not known here'),
    (changed(absolute_pos_embed=torch.zeros(3)), r'a SwinIR with absolute_pos_embed'),
])
def test_damaged_files_are_refused(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / 'swinir.pth')
    with pytest.raises(ValueError, match=message):
        import_network(tmp_path / 'swinir.pth')


def test_what_basicsrs_class_has_no_place_for_is_listed(tmp_path: Path) -> None:
    dense = tiny(scale=2)
    for net, what in ((with_gates(dense), 'gates'),
                      (cut_network(dense, {'layers.0.residual_group.blocks.0.heads': [1]}), 'pruned widths')):
        save_network(net, tmp_path / 'net.safetensors')
        with pytest.raises(ValueError, match=f'whose class knows no {what}'):
            convert(str(tmp_path / 'net.safetensors'), str(tmp_path / 'net.pth'), to='basicsr')


# ---- arguments

@pytest.mark.parametrize(('args', 'message'), [
    ({'scale': 5}, r'scale must be one of 2, 3, 4, 8, got 5'),
    ({'upsampler': 'nearest+conv'}, r"upsampler must be one of 'pixelshuffledirect', 'pixelshuffle'"),
    ({'resi_connection': '2conv'}, r"resi_connection must be one of '1conv', '3conv'"),
    ({'residual': 'rsc'}, r"residual must be one of 'full', 'aligned', got 'rsc'"),
    ({'depths': ()}, r'the least of depths must be at least 1, got 0'),
    ({'depths': (2,)}, r'depths and num_heads must be of one length, got \[2\] and \[3, 2\]'),
    ({'depths': (9000, 1001)}, r'10001 blocks are more than 10,000'),
    ({'num_heads': (3, 5)}, r'embed_dim must be a multiple of all num_heads, got 12 and \[3, 5\]'),
    ({'num_heads': (3, 0)}, r'embed_dim must be a multiple of all num_heads'),
    ({'img_range': 0}, r'img_range and the hidden units'),
    ({'mlp_ratio': 0.01}, r'img_range and the hidden units'),
    ({'embed_dim': 3, 'num_heads': (3, 1), 'resi_connection': '3conv'}, r'embed_dim must be at least 4, got 3'),
    ({'widths': {'stream': 4}}, r'no such group in this network: stream'),
    ({'widths': {'layers.0.residual_group.blocks.0.heads': 4}}, r'heads must be within 1\.\.3, got 4'),
])
def test_bad_arguments_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**args)
