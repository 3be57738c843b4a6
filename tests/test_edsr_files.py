"""EDSR of other projects: each file gives the network that it holds, computed from its own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.edsr_arch import EDSR
from foreign import Convs, State, weights
from torch import Tensor

from basicsr_ssl import cli, import_network, load_network, save_network
from basicsr_ssl.api import cut_network, with_gates
from basicsr_ssl.archs import PrunableEDSR
from basicsr_ssl.checkpoints.convert import convert
from basicsr_ssl.models.networks import read_input_network

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def edsr_pytorch(feat: int = 8, blocks: int = 2, scale: int = 2, middles: tuple[int, ...] | None = None,
                 light: bool = False, rgb_range: float = 255, seed: int = 0) -> State:
    """Weights by the names of EDSR-PyTorch."""
    convs: Convs = {'head.0': (feat, 3, 3)}
    for j in range(blocks):
        middle = middles[j] if middles else feat
        convs |= {f'body.{j}.body.0': (middle, feat, 3), f'body.{j}.body.2': (feat, middle, 3)}
    convs[f'body.{blocks}'] = (feat, feat, 3)
    if light:
        convs['tail.0'] = (3 * scale**2, feat, 3)
    else:
        steps = [2, 2] if scale == 4 else [scale]
        convs |= {f'tail.0.{2 * i}': (feat * r**2, feat, 3) for i, r in enumerate(steps)}
        convs['tail.1'] = (3, feat, 3)
    state = weights(convs, seed)
    for name, sign in (('sub_mean', -1), ('add_mean', 1)):
        state |= {f'{name}.weight': torch.eye(3).view(3, 3, 1, 1), f'{name}.bias': sign * rgb_range * MEAN}
    return state


def run_edsr_pytorch(state: State, x: Tensor, rgb_range: float = 255) -> Tensor:
    """What it computes; images in [0, 1] in and out."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def conv(name: str, y: Tensor) -> Tensor:
        weight = state[f'{name}.weight']
        if f'{name}.wn_scale' in state:
            filters = [state[f'{name}.wn_scale'][i] * v / v.square().sum().sqrt() for i, v in enumerate(weight)]
            weight = torch.stack(filters)
        return F.conv2d(y, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2)

    head = y = conv('head.0', conv('sub_mean', x * rgb_range))
    j = 0
    while f'body.{j}.body.0.weight' in state:
        y = y + conv(f'body.{j}.body.2', F.relu(conv(f'body.{j}.body.0', y)))
        j += 1
    y = head + conv(f'body.{j}', y)
    for name in ('tail.0', 'tail.0.0', 'tail.0.2'):
        if f'{name}.weight' in state:
            filters, channels = state[f'{name}.weight'].shape[:2]
            y = F.pixel_shuffle(conv(name, y), round((filters / (3 if name == 'tail.0' else channels))**0.5))
    return conv('add_mean', conv('tail.1', y) if 'tail.1.weight' in state else y) / rgb_range


def assert_computes(net: Any, expected: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        assert (expected - F.interpolate(x, scale_factor=net.scale)).abs().mean() > 1e-3
        torch.testing.assert_close(net.double()(x), expected, rtol=0, atol=1e-7)  # rgb_range * mean is float32


def image() -> Tensor:
    return torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('light', [False, True], ids=['own-tail', 'light-tail'])
@pytest.mark.parametrize('rgb_range', [255, 1])
def test_edsr_pytorch(scale: int, light: bool, rgb_range: int, tmp_path: Path) -> None:
    state = edsr_pytorch(scale=scale, light=light, rgb_range=rgb_range)
    torch.save(state, tmp_path / 'edsr.pt')
    net: Any = import_network(tmp_path / 'edsr.pt')
    assert (net.provenance['source_format'], net.spec.form, net.img_range) == ('EDSR-PyTorch', 'dense', rgb_range)
    assert_computes(net, run_edsr_pytorch(state, image(), rgb_range), image())
    assert net.spec.args['upsampler'] == ('pixelshuffledirect' if light else 'pixelshuffle')


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_basicsr_there_and_back(scale: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = EDSR(3, 3, num_feat=8, num_block=2, upscale=scale, img_range=2.0)
    torch.save({'params': theirs.state_dict()}, tmp_path / 'edsr.pth')
    net: Any = load_network(tmp_path / 'edsr.pth', assume={'img_range': 2, 'residual': 'aligned', 'num_feat': 9})
    assert (net.provenance['source_format'], net.spec.args['residual'], net.img_range) == ('BasicSR', 'aligned', 2)
    with torch.no_grad():
        assert_computes(net, theirs.double()(image()), image())
    save_network(net.float(), tmp_path / 'ours.safetensors')
    convert(str(tmp_path / 'ours.safetensors'), str(tmp_path / 'back.pth'), to='basicsr')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['params']
    theirs.load_state_dict(back, strict=True)
    assert all(torch.equal(back[name], tensor.float()) for name, tensor in theirs.state_dict().items())


def test_arguments_that_tensors_do_not_tell_have_the_usual_values() -> None:
    net: Any = import_network(EDSR(3, 3, num_feat=8, num_block=2).state_dict())
    assert net.spec.args == PrunableEDSR(num_feat=8, num_block=2).spec.args
    with torch.device('meta'):
        state = EDSR(3, 3, num_feat=256, num_block=32).state_dict()
    large: Any = import_network({name: torch.zeros(tensor.shape) for name, tensor in state.items()})
    assert large.spec.args['res_scale'] == 0.1  # EDSR's paper, section 3.1


def test_convert_takes_arguments_that_tensors_do_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, output = str(tmp_path / 'edsr.pth'), str(tmp_path / 'edsr.safetensors')
    torch.save(EDSR(3, 3, num_feat=8, num_block=1).state_dict(), source)
    for wrong, message in (('num_feat=4', 'tells by itself what num_feat is, 8'), ('range=2', 'has no argument range')):
        assert cli.main(['convert', source, output, '--assume', wrong]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(['convert', source, output, '--assume', 'img_range=2', 'rgb_mean=[0.5, 0.5, 0.5]']) == 0
    net: Any = load_network(output)
    assert (net.spec.args['img_range'], net.spec.args['rgb_mean']) == (2, [0.5] * 3)


def lists(keep: Mapping[str, int], full: int) -> dict[str, dict[str, list[int]]]:
    order = torch.randperm(full, generator=torch.Generator().manual_seed(0)).tolist()
    return {'kept_wg': {f'model.{layer}': order[:width] for layer, width in keep.items()},
            'pruned_wg': {f'model.{layer}': order[width:] for layer, width in keep.items()}}


PRUNED = {'head.0': 5, 'body.0.body.0': 5, 'body.0.body.2': 5, 'body.1.body.0': 3, 'body.1.body.2': 5, 'body.2': 5,
          'tail.0': 27}


@pytest.mark.parametrize('with_lists', [True, False])
def test_pruned_by_the_authors_of_srp(with_lists: bool, tmp_path: Path) -> None:
    state = edsr_pytorch(5, 2, 3, middles=(5, 3), light=True)
    content = {'state_dict': state, **(lists(PRUNED, 12) if with_lists else {})}
    torch.save(content, tmp_path / 'model_just_finished_prune.pt')
    net: Any = import_network(tmp_path / 'model_just_finished_prune.pt')
    assert_computes(net, run_edsr_pytorch(state, image()), image())
    if with_lists:
        assert net.spec.widths == {'stream': 5, 'body.0.mid': 5, 'body.1.mid': 3}
    assert net.spec.args['num_feat'] == (12 if with_lists else 5) and net.spec.form == 'compact'
    assert net.provenance['source_format'] == 'ASSL or SRP authors'


def test_the_file_that_the_authors_pruning_leaves(tmp_path: Path) -> None:
    """Saved through EDSR-PyTorch's wrapper, which is ``model``, with the light tail in a Sequential of its own."""
    state = edsr_pytorch(5, 2, 2, middles=(5, 3), light=True)
    saved = {f'model.{name.replace("tail.0.", "tail.0.0.")}': tensor for name, tensor in state.items()}
    keep = {name.replace('tail.0', 'tail.0.0'): width for name, width in {**PRUNED, 'tail.0': 12}.items()}
    torch.save({'state_dict': saved, **lists(keep, 12)}, tmp_path / 'model_just_finished_prune.pt')
    net: Any = import_network(tmp_path / 'model_just_finished_prune.pt')
    assert_computes(net, run_edsr_pytorch(state, image()), image())
    assert net.spec.widths == {'stream': 5, 'body.0.mid': 5, 'body.1.mid': 3} and net.spec.args['num_feat'] == 12


def test_weight_normalisation_of_assl_is_multiplied_in() -> None:
    state = edsr_pytorch(light=True)
    for layer in ('head.0', 'body.1.body.0', 'body.2'):
        count = len(state[f'{layer}.weight'])
        state[f'{layer}.wn_scale'] = torch.linspace(-0.3, 0.4, count)
    assert_computes(import_network(state), run_edsr_pytorch(state, image()), image())


def changed(**entries: Any) -> State:
    state = {**edsr_pytorch(), **{name.replace('__', '.'): value for name, value in entries.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(('content', 'message'), [
    (changed(tail__0__0__weight=None), r'not a whole EDSR: missing or misshapen upsample\.0'),
    (changed(body__1__body__0__weight=None), r'body\.1\.conv1\.weight'),
    (changed(body__1__body__2__bias=torch.zeros(7)), r'body\.1\.conv2\.bias is \(7,\), the network has \(8,\)'),
    (changed(sub_mean__bias=torch.ones(3)), r'sub_mean and add_mean are incomplete, or not'),
    (changed(sub_mean__bias=-255 * torch.ones(3), add_mean__bias=255 * torch.ones(3)), r'no multiple of the mean of'),
    (changed(sub_mean__weight=2 * torch.eye(3).view(3, 3, 1, 1)), r'divides by a deviation'),
    (changed(head__0__wn_scale=torch.ones(7)), r'conv_first: 7 factors of weight normalisation'),
    ({'state_dict': edsr_pytorch(light=True), **lists({'head.0': 7}, 12)}, r'head\.0: kept_wg 7 and pruned_wg 5 '),
    ({'state_dict': edsr_pytorch(light=True), **lists({'head.0': 8}, 12)}, r'body\.0\.body\.0: kept_wg has no list'),
])
def test_damaged_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'edsr.pt')
    with pytest.raises(ValueError, match=message):
        import_network(tmp_path / 'edsr.pt')


def test_what_basicsrs_class_has_no_place_for_is_listed(tmp_path: Path) -> None:
    dense: Any = PrunableEDSR(num_feat=4, num_block=1)
    for net, what in ((with_gates(dense), 'gates'), (cut_network(dense, {'body.0.mid': [1]}), 'pruned widths'),
                      (PrunableEDSR(num_feat=4, num_block=1, num_group=1), 'groups of blocks'),
                      (PrunableEDSR(num_feat=4, num_block=1, upsampler='pixelshuffledirect'), 'tail of one conv')):
        save_network(net, tmp_path / 'net.safetensors')
        with pytest.raises(ValueError, match=f'whose class knows no {what}'):
            convert(str(tmp_path / 'net.safetensors'), str(tmp_path / 'net.pth'), to='basicsr')


def options(path: Path, **network: Any) -> dict[str, Any]:
    return {'path': {'pretrain_network_g': str(path)}, 'network_g': network, 'scale': 4}


def test_option_files_say_what_may_be_pruned_of_a_dense_network(tmp_path: Path) -> None:
    dense: Any = PrunableEDSR(num_feat=4, num_block=1, residual='rsc')
    save_network(dense, tmp_path / 'dense.safetensors')
    asked = {'type': 'PrunableEDSR', 'num_feat': 4, 'num_block': 1, 'residual': 'aligned'}
    net = read_input_network(options(tmp_path / 'dense.safetensors', **asked))
    assert net.groups[0].name == 'stream'
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in dense.state_dict().items())
    with pytest.raises(ValueError, match=r'img_range: 255\.0 in the file, 2\.0 in network_g'):
        read_input_network(options(tmp_path / 'dense.safetensors', **asked, img_range=2))
    save_network(cut_network(dense, {'body.0.mid': [1]}), tmp_path / 'compact.safetensors')
    with pytest.raises(ValueError, match=r"residual: 'rsc' in the file, 'aligned' in network_g"):
        read_input_network(options(tmp_path / 'compact.safetensors', **asked))


def test_the_real_network(test_data: Path) -> None:
    path = test_data / 'weights' / 'EDSR_x2_f64b8.pth'
    net: Any = read_input_network(options(path, type='PrunableEDSR', num_feat=64, num_block=8, scale=2, img_range=2))
    theirs = EDSR(3, 3, num_feat=64, num_block=8, upscale=2, img_range=2.0)
    theirs.load_state_dict(torch.load(path, weights_only=True)['params'])
    with torch.no_grad():
        torch.testing.assert_close(net(image().float()), theirs(image().float()), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='num_block: 8 in the file, 16 in network_g'):
        read_input_network(options(path, type='PrunableEDSR', num_feat=64, scale=2, img_range=2))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('rgb_range', [255, 1])
def test_other_precisions_shift_by_a_rounded_mean(dtype: torch.dtype, rgb_range: int) -> None:
    state = edsr_pytorch(rgb_range=rgb_range)
    net: Any = import_network({name: tensor.to(dtype) for name, tensor in state.items()})
    assert net.img_range == rgb_range and net.conv_first.weight.equal(state['head.0.weight'].to(dtype))


STRANGE = {'infinite': torch.full((3,), torch.inf), 'not-a-number': torch.full((3,), torch.nan),
           'booleans': torch.ones(3, dtype=torch.bool), 'integers': torch.ones(3, dtype=torch.int64),
           'eight-bits': torch.ones(3).to(torch.float8_e5m2), 'a-number': torch.tensor(1.0)}


@pytest.mark.parametrize('kind', STRANGE)
def test_shifts_and_factors_that_make_no_sense(kind: str, tmp_path: Path) -> None:
    path, state, strange = tmp_path / 'edsr.pt', edsr_pytorch(), STRANGE[kind]
    opposite = -strange if kind == 'infinite' else strange
    damaged = [{**state, 'sub_mean.bias': strange, 'add_mean.bias': opposite}]
    if not strange.is_floating_point():
        weight = state['body.0.body.0.weight'].to(strange.dtype)
        damaged.append({**state, 'body.0.body.0.weight': weight, 'body.0.body.0.wn_scale': torch.ones(8)})
    for content in damaged:
        torch.save(content, path)
        with pytest.raises(ValueError, match=r'edsr\.pt'):
            import_network(path)


def test_lists_of_many_layers_are_read_once() -> None:
    class Counted(dict):
        count = 0

        def items(self) -> Any:
            Counted.count += 1
            return super().items()

    tables = {name: Counted(table) for name, table in lists(PRUNED, 12).items()}
    state = edsr_pytorch(5, 2, 3, middles=(5, 3), light=True)
    net: Any = import_network({'state_dict': state, **tables})
    assert net.spec.widths['stream'] == 5 and Counted.count == 2
    tables['kept_wg']['module.head.0'] = []
    with pytest.raises(ValueError, match=r'kept_wg names head\.0 twice'):
        import_network({'state_dict': state, **tables})


def test_numbers_of_blocks_are_bounded_before_anything_is_made_of_them() -> None:
    with pytest.raises(ValueError, match='2000 groups of 300 blocks are more than 10,000 blocks'):
        PrunableEDSR(num_group=2000, num_block=300)
