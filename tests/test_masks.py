"""Masks of single weights and of whole filters, against torch.nn.utils.prune; their files; shares by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import clip, tiny_net
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from basicsr_ssl import load_network, prune_network, save_network
from basicsr_ssl.api import with_gates, without_gates
from basicsr_ssl.archs import PrunableEDSR
from basicsr_ssl.checkpoints.sparse import from_sparse, to_sparse
from basicsr_ssl.checkpoints.store import METADATA_KEY
from basicsr_ssl.cli import main
from basicsr_ssl.report.info import describe

EDSR: dict[str, Any] = {'num_feat': 8, 'num_block': 2, 'scale': 2}


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in net.named_modules()
            if isinstance(layer, nn.Conv2d) and not name.startswith('spynet')}


def masks(net: Any) -> dict[str, Tensor]:
    return {name.removesuffix('.weight_mask'): mask for name, mask in net.named_buffers() if name.endswith('_mask')}


def by_torch(net: Any, structure: str, scope: str, ratio: float) -> dict[str, Tensor]:
    """The masks that PyTorch's own pruning makes."""
    layers = convolutions(net)
    for layer in layers.values():
        if structure == 'filters':
            prune.ln_structured(layer, 'weight', ratio, n=1, dim=0)
        elif scope == 'local':
            prune.l1_unstructured(layer, 'weight', ratio)
    if structure == 'weights' and scope == 'global':
        prune.global_unstructured([(layer, 'weight') for layer in layers.values()], prune.L1Unstructured, amount=ratio)
    return {name: layer.get_buffer('weight_mask').bool() for name, layer in layers.items()}


@pytest.mark.parametrize('ratio', [0.05, 0.4, 0.45, 0.5, 0.9])
@pytest.mark.parametrize(('structure', 'scope'), [('weights', 'global'), ('weights', 'local'), ('filters', 'local')])
def test_what_goes_is_what_goes_with_pytorch(structure: str, scope: str, ratio: float) -> None:
    # sizes for which no share of a layer is just between two counts, where PyTorch rounds halves to even
    net = tiny_net(tail_feat=8, flow='spynet_small' if ratio == 0.4 else 'none')
    pruned: Any = prune_network(net, ratio, structure=structure, score='l1', scope=scope, relative=False)
    before, found = without_gates(net), masks(pruned)
    expected = by_torch(net, structure, scope, ratio)
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        if structure == 'filters' and ratio == 0.9 and len(mask) == 3:  # of 3 filters PyTorch takes all
            continue
        assert torch.equal(found[name], mask), name
        assert torch.equal(pruned.get_parameter(f'{name}.weight'), before.get_parameter(f'{name}.weight') * mask)
    if structure == 'weights':  # exact counts
        total = sum(mask.numel() for mask in found.values())
        removed = sum(int((~mask).sum()) for mask in found.values())
        assert scope == 'local' or removed == math.floor(ratio * total + 0.5)
    if not (structure == 'filters' and ratio == 0.9):
        x = clip(2, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(pruned(x), net(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize('args', [
    {}, {'residual': 'aligned'}, {'residual': 'full'}, {'upsampler': 'pixelshuffledirect'}, {'num_group': 2}],
    ids=['rsc', 'aligned', 'full', 'light', 'groups'])
def test_all_convolutions_of_other_networks_too(args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = PrunableEDSR(**EDSR, **args).double()
    pruned: Any = prune_network(net, 0.5, structure='weights', score='l1', relative=False)
    found, expected = masks(pruned), by_torch(net, 'weights', 'global', 0.5)
    assert found.keys() == expected.keys() == convolutions(net).keys()
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    x = clip(1, 8, 8)[0].double()
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), net(x), rtol=0, atol=1e-10)


def four() -> Any:
    """Weights by hand: in every layer 1, 2, ..., and upconv1 a hundred times as large."""
    net = tiny_net()
    with torch.no_grad():
        for name, layer in convolutions(net).items():
            layer.weight.copy_((torch.arange(layer.weight.numel()) + 1.).view_as(layer.weight))
            layer.weight.mul_(100 if name == 'upconv1' else 1)
    return net


def test_relative_ranks_against_the_layers_mean() -> None:
    plain, relative = (masks(prune_network(four(), 0.5, structure='weights', score='l1', relative=relative))
                       for relative in (False, True))
    assert plain['upconv1'].double().mean() > 0.99  # its weights are the largest
    assert relative['upconv1'].double().mean() == pytest.approx(0.5, abs=0.01)
    assert int((~relative['upconv1']).nonzero()[0, 0]) == 0 and bool(relative['upconv1'].flatten()[-1])


def test_every_layer_keeps_min_keep() -> None:
    net = four()
    with torch.no_grad():
        net.conv_last.weight.mul_(1e-6)
    for structure, least in (('filters', 2), ('weights', 5)):
        for scope in ('global', 'local'):
            pruned = masks(prune_network(net, 0.75, structure=structure, score='l2', scope=scope, relative=False,
                                         min_keep=least))
            left = pruned['conv_last'].flatten(1).any(1) if structure == 'filters' else pruned['conv_last']
            assert int(left.sum()) == max(
                least, left.numel() - math.floor(0.75 * left.numel() + 0.5) if scope == 'local' else 0)
            highest = left.flatten()[-least:]
            assert highest.all()
    with pytest.raises(ValueError, match=r'ratio 0.99 cannot be reached: with min_keep 8 at most 0\.\d+ can be'):
        prune_network(net, 0.99, structure='filters', score='l1', min_keep=8)


def test_what_is_masked_already_counts_as_removed() -> None:
    net = tiny_net()
    once: Any = prune_network(net, 0.3, structure='weights', score='l1', relative=False)
    twice: Any = prune_network(once, 0.5, structure='weights', score='l1', relative=False)
    at_once: Any = prune_network(net, 0.5, structure='weights', score='l1', relative=False)
    assert all(torch.equal(twice.state_dict()[name], tensor) for name, tensor in at_once.state_dict().items())


def test_chance_is_the_seeds() -> None:
    one, same, other = (masks(prune_network(tiny_net(), 0.5, structure='weights', score='random', seed=seed))
                        for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert 0.4 < float((one['upconv1'] == other['upconv1']).double().mean()) < 0.6


@pytest.mark.parametrize(('settings', 'message'), [
    ({'structure': 'weights'}, 'score gate is of units and their gates, not of weights: choose l1, l2 or random'),
    ({'structure': 'filters', 'score': 'l1', 'budget': 'macs'}, 'leave budget, layout and round_to out'),
    ({'structure': 'filters', 'score': 'l1', 'layout': 'runs'}, 'leave budget, layout and round_to out'),
    ({'structure': 'filters', 'score': 'l1', 'round_to': 4}, 'leave budget, layout and round_to out'),
    ({'ratios': {'fusion': 0.5}, 'budget': 'macs'}, 'ratios are shares of the units of each group: leave budget out'),
    ({'ratios': {'fusion': 1.5}}, r'must be in \[0, 1\)'),
    ({'ratios': {'fuzion': 0.5}, 'score': 'l1'}, 'ratios: the network has no group fuzion; it has .*fusion'),
    ({'structure': 'weights', 'ratios': {'fuzion': 0.5}, 'score': 'l1'}, 'no convolution fuzion; it has .*fusion'),
    ({'ratios': 'nowhere.json', 'score': 'l1'}, 'nowhere.json cannot be read as JSON .*give a file that'),
])
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_network(tiny_net(), 0.5, **settings)


# ---- shares by name

def test_shares_by_group_and_by_layer(tmp_path: Path) -> None:
    net = tiny_net()
    file = tmp_path / 'ratios.json'
    file.write_text(json.dumps({'ratios': {'fusion': 0.5, 'forward_trunk.main.2.1.mid': 0.25}}))
    whole: Any = prune_network(net, 0, ratios=str(file), score='l1')
    assert whole.spec.widths == {'fusion': 4, 'forward_trunk.main.2.1.mid': 6}
    other: Any = prune_network(net, 0.125, ratios={'fusion': 0.5}, score='l1')
    kept = {group.name: group.size for group in other.groups}
    assert kept['fusion'] == 4 and kept['upconv1'] == 7 and kept['conv_hr'] == 5
    norms = net.fusion.weight.detach().abs().flatten(1).sum(1)
    torch.testing.assert_close(other.fusion.weight, net.fusion.weight[norms.argsort()[4:].sort().values])
    found = masks(prune_network(net, 0, structure='weights', score='l1', ratios={'conv_last': 0.25}))
    assert int((~found.pop('conv_last')).sum()) == 3 * 6 * 9 // 4 + 1  # 40.5
    assert all(mask.all() for mask in found.values())


# ---- files

@pytest.fixture
def pruned() -> Any:
    return prune_network(tiny_net(num_feat=24, num_block=3, tail_feat=24), 0.5, structure='weights', score='l1')


def test_a_sparse_file_is_the_same_network_in_less_space(pruned: Any, tmp_path: Path) -> None:
    sizes = {}
    for encoding in ('dense', 'sparse'):
        path = tmp_path / f'{encoding}.safetensors'
        save_network(pruned, path, encoding=encoding, method='by hand')  # type: ignore[arg-type]
        read: Any = load_network(path)
        assert read.spec == pruned.spec and read.provenance == {'method': 'by hand'}
        assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in pruned.state_dict().items())
        sizes[encoding] = sum(tensor.numel() * tensor.dtype.itemsize for tensor in load_file(path).values())
    weights, left = sum(mask.numel() for mask in masks(pruned).values()), sum(
        int(mask.sum()) for mask in masks(pruned).values())
    biases = sum(len(parameter) for parameter in pruned.parameters() if parameter.dim() == 1)
    assert sizes['dense'] == 5 * weights + 4 * biases
    assert sizes['sparse'] == 4 * left + 4 * biases + sum(-(-mask.numel() // 8) for mask in masks(pruned).values())
    assert (tmp_path / 'sparse.safetensors').stat().st_size < 0.56 * 4 * weights + 4 * biases


def test_bits_and_values_by_hand() -> None:
    weight, mask = torch.tensor([[1., 0, 3, 4, 0], [0, 0, 0, 0, 10.]]), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, [0, 2, 3]] = mask[1, 4] = True
    encoded, shapes = to_sparse({'a.weight': weight + 7 * ~mask, 'a.weight_mask': mask, 'a.bias': weight[0],
                                 'b.weight': weight, 'b.weight_mask': torch.zeros_like(mask)})
    assert encoded['a.weight_bits'].tolist() == [0b00001101, 0b10] and shapes == {'a.weight': [2, 5]}
    assert encoded['a.weight_values'].tolist() == [1, 3, 4, 10]
    assert set(encoded) == {'a.weight_bits', 'a.weight_values', 'a.bias', 'b.weight', 'b.weight_mask'}
    decoded = from_sparse(encoded, shapes)
    assert torch.equal(decoded['a.weight'], weight) and torch.equal(decoded['a.weight_mask'], mask)


def test_what_is_not_as_its_shape_says_is_refused() -> None:
    bits, values = torch.tensor([3], dtype=torch.uint8), torch.ones(2)
    assert from_sparse({'a_bits': bits, 'a_values': values}, {'a': [2]})['a'].tolist() == [1, 1]
    with pytest.raises(ValueError, match='not as many values as bits'):  # one bit lies beyond the weights
        from_sparse({'a_bits': bits, 'a_values': values}, {'a': [1]})
    with pytest.raises(ValueError, match='is not as its shape says'):
        from_sparse({'a_bits': bits, 'a_values': values}, {'a': [9]})
    with pytest.raises(ValueError, match='more memory than any network'):  # 17 MB that claim to be more than 1 GB
        from_sparse({'a_bits': torch.zeros(17_000_000, dtype=torch.uint8), 'a_values': values}, {'a': [136_000_000]})


def test_filters_by_their_root_mean_square() -> None:
    net = tiny_net(tail_feat=8)
    found = masks(prune_network(net, 0.25, structure='filters', score='l2', scope='local'))
    by_l1 = masks(prune_network(net, 0.25, structure='filters', score='l1', scope='local'))
    for name, layer in convolutions(net).items():
        prune.ln_structured(layer, 'weight', 0.25, n=2, dim=0)
        assert torch.equal(found[name], layer.get_buffer('weight_mask').bool())
    assert any(not torch.equal(found[name], mask) for name, mask in by_l1.items())


@pytest.mark.parametrize('damage', ['values', 'bits', 'shape', 'huge', 'missing', 'type'])
def test_a_damaged_sparse_weight_is_refused(pruned: Any, tmp_path: Path, damage: str) -> None:
    path = tmp_path / 'net.safetensors'
    save_network(pruned, path, encoding='sparse')
    tensors = load_file(path)
    said = json.loads(path.read_bytes()[8:8 + int.from_bytes(path.read_bytes()[:8], 'little')])['__metadata__']
    said = json.loads(said[METADATA_KEY])
    del said['checksum']  # as of one who wants to be read
    if damage == 'values':
        tensors['fusion.weight_values'] = tensors['fusion.weight_values'][1:].clone()
    elif damage == 'bits':
        tensors['fusion.weight_bits'][0] ^= 1
    elif damage == 'missing':
        del tensors['fusion.weight_bits']
    else:
        said['sparse']['fusion.weight'] = {'shape': [24, 24, 1, 1], 'huge': [1 << 20, 1 << 20, 1 << 20, 1],
                                           'type': ['24', 48, 1, 1]}[damage]
    save_file(tensors, path, {METADATA_KEY: json.dumps(said)})
    with pytest.raises(ValueError, match=r'corrupted: (its sparse weight|the shapes)'):
        load_network(path)


def test_convert_and_info(pruned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, sparse, back = (str(tmp_path / f'{name}.safetensors') for name in ('dense', 'sparse', 'back'))
    save_network(pruned, dense, stage='test')
    assert main(['convert', dense, sparse, '--to', 'sparse']) == 0
    assert main(['convert', sparse, back]) == 0
    assert all(torch.equal(tensor, load_file(back)[name]) for name, tensor in load_file(dense).items())
    assert Path(sparse).stat().st_size < 0.5 * Path(dense).stat().st_size
    expected = {name: [int(mask.sum()), mask.numel()] for name, mask in masks(pruned).items()}
    assert describe(sparse)['left'] == describe(dense)['left'] == expected
    capsys.readouterr()
    assert main(['info', sparse]) == 0
    shown = capsys.readouterr().out
    left, size = map(sum, zip(*expected.values()))
    assert f'Weights left by the mask: {left:,} of {size:,} (50%)' in shown
    assert f'conv_last              {expected["conv_last"][0]} of {expected["conv_last"][1]}' in shown
    save_network(without_gates(pruned), back)
    assert describe(back)['left'] is None
    assert main(['convert', back, str(tmp_path / 'no.safetensors'), '--to', 'sparse']) == 1
    assert 'has no mask, and all its weights count' in capsys.readouterr().err


def test_masks_of_gated_networks_are_of_the_weights_that_count() -> None:
    net = with_gates(tiny_net(), 'scale')
    with torch.no_grad():
        net.get_parameter('conv_hr.gate')[2] = 1e-9
    pruned: Any = prune_network(net, 0.2, structure='filters', score='l1', scope='local')
    assert not pruned.conv_hr.weight_mask[2].any() and pruned.spec.gates == 'mask'
