"""Network files: what goes in comes out, and what cannot be read or written is said in one message."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs.basicvsr_arch import BasicVSR
from nets import VARIANTS, clip, random_gates_, randomise_, tiny_net
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils import prune

import basicsr_ssl
from basicsr_ssl import files, load_network, prune_network, save_network
from basicsr_ssl.api import with_gates
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints import store
from basicsr_ssl.checkpoints.store import build_network, read_metadata
from basicsr_ssl.files import file_sha256, write_atomically, write_text
from basicsr_ssl.pruning.spec import Spec


def net_of(form: str, **args: Any) -> Any:
    dense = tiny_net(**args)
    if form == 'dense':
        return dense
    gated = with_gates(dense)
    random_gates_(gated)
    return gated if form == 'gated' else prune_network(gated, 0.4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good file, for the tests to damage."""
    path = tmp_path / 'net.safetensors'
    save_network(net_of('compact'), path)
    return path


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the file says about itself, and leave the tensors alone; without its checksum, as older files are."""
    metadata = read_metadata(path)
    del metadata['checksum']
    change(metadata)
    save_file(load_file(path), path, metadata={store.METADATA_KEY: json.dumps(metadata)})


# ---- round trip

@pytest.mark.parametrize('args', [*VARIANTS.values(), {'flow': 'spynet'}], ids=[*VARIANTS, 'spynet'])
@pytest.mark.parametrize('form', ['dense', 'gated', 'compact'])
def test_round_trip(form: str, args: dict[str, Any], tmp_path: Path) -> None:
    net, path = net_of(form, **args), tmp_path / 'new' / 'folder' / 'net.safetensors'
    with torch.no_grad():
        expected = net(clip())
    save_network(net.to(memory_format=torch.channels_last), path)
    again: Any = load_network(path)
    assert again.spec == net.spec and again.spec.form == form
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(clip()), expected)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    save_network(net_of('compact'), path, stage='prune', parent='ab12', options={'ratio': 0.4})
    metadata = read_metadata(path)
    assert metadata['stage'] == 'prune' and metadata['parent'] == 'ab12' and metadata['options'] == {'ratio': 0.4}
    assert metadata['spec']['arch'] == 'PrunableBasicVSR' and metadata['spec']['format'] == 1
    assert metadata['versions']['basicsr_ssl'] == basicsr_ssl.__version__
    assert metadata['versions']['torch'] == torch.__version__
    assert set(metadata['versions']) == {'basicsr_ssl', 'torch', 'basicsr', 'python'}
    assert set(metadata) == {'spec', 'stage', 'parent', 'options', 'versions', 'checksum'}
    assert load_network(path).provenance == {'stage': 'prune', 'parent': 'ab12', 'options': {'ratio': 0.4}}


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        save_network(net_of('compact'), tmp_path / name, stage='prune')
    assert file_sha256(tmp_path / 'a') == file_sha256(tmp_path / 'b')


def test_bicubic_is_a_network_by_name() -> None:
    x = torch.full((1, 2, 3, 5, 6), 0.25)
    torch.testing.assert_close(load_network('bicubic')(x), torch.full((1, 2, 3, 20, 24), 0.25))


def test_foreign_networks_and_values_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match='Conv2d carries no spec'):
        save_network(nn.Conv2d(3, 3, 3), tmp_path / 'net.safetensors')
    with pytest.raises(TypeError, match='not JSON serializable'):
        save_network(net_of('dense'), tmp_path / 'net.safetensors', stage=object())
    assert not list(tmp_path.iterdir())


# ---- BasicSR's files

@pytest.fixture(scope='module')
def basicsr_net() -> BasicVSR:
    torch.manual_seed(0)
    net = BasicVSR(num_feat=8, num_block=2)
    randomise_(net)
    return net.eval()


def other_weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize('content', [
    lambda net: {'params': net.state_dict()},
    lambda net: {'params_ema': net.state_dict(), 'params': other_weights(net)},
    lambda net: net.state_dict(),
    lambda net: {'params': {f'module.{name}': tensor for name, tensor in net.state_dict().items()}},
    lambda net: {'params': {name: tensor for name, tensor in net.state_dict().items() if name[-4:] not in
                            ('mean', '.std')}},
], ids=['params', 'params_ema-preferred', 'plain', 'module-prefix', 'without-mean-and-std'])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_basicsr_files_load(content: Callable, zipped: bool, basicsr_net: BasicVSR, tmp_path: Path) -> None:
    torch.save(content(basicsr_net), tmp_path / 'net.pth', _use_new_zipfile_serialization=zipped)
    net: Any = load_network(tmp_path / 'net.pth')
    assert net.spec == Spec('PrunableBasicVSR', {'num_feat': 8, 'num_block': 2, 'tail_feat': 64, 'scale': 4,
                                                 'bidirectional': True, 'act': 'lrelu', 'flow': 'spynet'})
    own = net.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in basicsr_net.state_dict().items())


def test_param_key_chooses(basicsr_net: BasicVSR, tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save({'params_ema': basicsr_net.state_dict(), 'params': other_weights(basicsr_net)}, path)
    assert torch.equal(load_network(path, 'params').state_dict()['fusion.bias'],
                       basicsr_net.state_dict()['fusion.bias'] + 1)
    torch.save({'params': basicsr_net.state_dict()}, path)
    with pytest.raises(ValueError, match="has no 'params_ema', only params: correct param_key_g"):
        load_network(path, 'params_ema')


@pytest.mark.parametrize('args', [*VARIANTS.values(), {'flow': 'spynet'}], ids=[*VARIANTS, 'spynet'])
def test_a_state_dict_tells_its_arguments(args: dict[str, Any], tmp_path: Path) -> None:
    net = tiny_net(**{**args, 'prune_flow': False})  # what may be pruned leaves no trace
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    again: Any = load_network(tmp_path / 'net.pth', assume=net.spec.args)
    assert again.spec == net.spec
    # the activation leaves no trace in the weights
    usual: Any = load_network(tmp_path / 'net.pth', assume={**net.spec.args, 'act': 'lrelu'})
    assert usual.spec.args == {**net.spec.args, 'act': 'lrelu'}


BAD_PTH: dict[str, tuple[Callable[[BasicVSR, Path], object], str]] = {
    'text': (lambda net, path: path.write_text('hello'), 'is no network file: it is text'),
    'empty': (lambda net, path: path.write_bytes(b''), 'is no network file: it is empty'),
    'zeros': (lambda net, path: path.write_bytes(bytes(1000)), 'it is full of zeros'),
    'list': (lambda net, path: torch.save([1, 2], path), 'is a foreign file: it holds a list, and no weights'),
    'tensor': (lambda net, path: torch.save(torch.ones(2), path), 'it holds a single object, and no weights'),
    'params-list': (lambda net, path: torch.save({'params': [1]}, path), 'it holds the entries params, and no weights'),
    'training-state': (lambda net, path: torch.save({'epoch': 3, 'iter': 5, 'optimizers': []}, path),
                       'it holds the entries epoch, iter, optimizers, and no weights'),
    'number-keys': (lambda net, path: torch.save({1: torch.ones(1)}, path), 'it holds the entries 1, and no weights'),
    'another-arch': (lambda net, path: torch.save({'params': {'conv.weight': torch.ones(1)}}, path),
                     r'is a foreign file: it holds conv\.weight, not a BasicVSR, SpyNet, EDSR or SwinIR'),
    'no-blocks': (lambda net, path: torch.save({n: t for n, t in net.state_dict().items() if 'main.2' not in n}, path),
                  'not a whole BasicVSR: missing or misshapen the residual blocks'),
    'gap': (lambda net, path: torch.save({n.replace('main.2.1.', 'main.2.999999999.'): t
                                          for n, t in net.state_dict().items()}, path),
            'it has 2 residual blocks, the last is number 999999999'),
    'scalar': (lambda net, path: torch.save({**net.state_dict(), 'conv_hr.weight': torch.ones(())}, path),
               'conv_hr.weight'),
    'integers': (lambda net, path: torch.save({**net.state_dict(), 'conv_hr.bias': torch.ones(64).long()}, path),
                 r'no weights: conv_hr\.bias is torch\.int64'),
}


@pytest.mark.parametrize(('make', 'message'), BAD_PTH.values(), ids=BAD_PTH)
def test_bad_pth_files_are_refused(make: Callable, message: str, basicsr_net: BasicVSR, tmp_path: Path) -> None:
    make(basicsr_net, tmp_path / 'net.pth')
    with pytest.raises(ValueError, match=message) as caught:
        load_network(tmp_path / 'net.pth')
    assert 'net.pth' in str(caught.value)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_pth_file_damaged_anywhere_is_refused_or_read_but_never_breaks(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save({'params': tiny_net().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(20):  # most of the file are weights, where damage does not show: hit the front and the end
            at = int(torch.randint(0, 3000, (), generator=generator))
            damaged[at if at < 1500 else -at] = int(torch.randint(0, 256, (), generator=generator))
        path.write_bytes(damaged)
        try:
            load_network(path)
        except ValueError as error:
            assert str(path) in str(error)
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='truncated|it is empty|known format' if zipped else 'truncated|it is'):
            load_network(path)


# ---- safetensors that cannot be read

def test_missing_files(tmp_path: Path) -> None:
    for name in ('gone.safetensors', 'gone.pth'):
        with pytest.raises(FileNotFoundError, match=rf'no such file: .*{name}'):
            load_network(tmp_path / name)


@pytest.mark.parametrize('share', [0.001, 0.1, 0.5, 0.99])
def test_truncated_files(share: float, saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match=r'net\.safetensors is truncated: '):
        load_network(saved)


def test_a_file_that_says_more_or_less_than_it_holds(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b'more')
    with pytest.raises(ValueError, match=r'net\.safetensors is corrupted: .*header contradicts its contents'):
        load_network(saved)
    content = saved.read_bytes()
    saved.write_bytes(content[:9] + b'}' + content[10:])
    with pytest.raises(ValueError, match=r'net\.safetensors is corrupted: .*damaged header'):
        load_network(saved)


@pytest.mark.parametrize('where', ['tensor', 'metadata', 'checksum'])
def test_a_single_flipped_bit_is_found(where: str, saved: Path) -> None:
    save_network(load_network(saved), saved, iteration=5000)
    content = bytearray(saved.read_bytes())
    at = {'tensor': len(content) - 3, 'metadata': content.index(b'5000'),
          'checksum': content.index(b'checksum') + 20}[where]
    content[at] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r'net\.safetensors is corrupted: its checksum differs'):
        load_network(saved)


def test_older_files_without_a_checksum_load(saved: Path) -> None:
    before = load_network(saved).state_dict()
    rewrite_header(saved, lambda metadata: None)
    assert 'checksum' not in read_metadata(saved)
    after = load_network(saved).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_any_other_name_is_provenance(tmp_path: Path) -> None:
    said: dict[str, Any] = {'net': 1, 'path': 'x', 'self': None}
    save_network(net_of('dense'), tmp_path / 'net.safetensors', **said)
    assert load_network(tmp_path / 'net.safetensors').provenance == said


@pytest.mark.parametrize('key', ['spec', 'versions', 'checksum', 'sparse'])
def test_provenance_cannot_pose_as_what_the_store_says(key: str, tmp_path: Path) -> None:
    said: dict[str, Any] = {key: {}}
    with pytest.raises(ValueError, match=f'provenance must not name {key}'):
        save_network(net_of('dense'), tmp_path / 'net.safetensors', **said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('content', 'message'), [
    (b'\x89PNG\r\n\x1a\n' + bytes(100), 'is no network file: it is a PNG picture'),
    (b'hello', 'is no network file: it is text'),
    (b'', 'is no network file: it is empty'),
    (b'\n <!DOCTYPE html><title>Quota exceeded</title>', 'is no network file: it is an HTML page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'a git-lfs pointer.*git lfs pull'),
    (b'\x08\x08\x12\x07pytorch' + bytes(100), 'an ONNX network'),
    (b'\x1f\x8b\x08' + bytes(100), 'a gzip archive: unpack it first'),
    (b'\x80\x02}q\x00.', 'a Python pickle that torch.save did not write'),
    (bytes(range(200, 256)), 'of no known format'),
    (struct.pack('<Q', 2**60) + b'{}', 'is truncated: .*header alone takes 1,152,921,504,606,846,976'),
    (struct.pack('<Q', 10) + b'{"a": 1   ', 'is corrupted: a safetensors file with a damaged header'),
    (struct.pack('<Q', 2) + b'{}', 'is a foreign file'),
], ids=['png', 'text', 'empty', 'html', 'lfs', 'onnx', 'gzip', 'pickle', 'binary', 'huge', 'json', 'no-tensors'])
def test_other_content_under_our_name(content: bytes, message: str, saved: Path) -> None:
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r'net\.safetensors.*' + message):
        load_network(saved)


def test_zip_archives_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    with pytest.raises(ValueError, match=r'net\.pth is no network file: it is a zip archive of something.*readme'):
        load_network(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('net/data.pkl', b'N.')
        archive.writestr('net/code/__torch__/net.py', 'class Net: pass')
    with pytest.raises(ValueError, match=r'net\.pth is no network file: it is a TorchScript program'):
        load_network(path)
    with pytest.raises(ValueError, match='is a folder'):
        load_network(tmp_path)


@pytest.mark.parametrize('metadata', [None, {'format': 'pt'}], ids=['none', 'foreign'])
def test_safetensors_of_other_projects(metadata: dict[str, str] | None, saved: Path) -> None:
    save_file({'a': torch.ones(2)}, saved, metadata=metadata)
    with pytest.raises(ValueError, match='is a foreign file: it holds a, not a BasicVSR, SpyNet, EDSR or SwinIR'):
        load_network(saved)
    with pytest.raises(ValueError, match='a foreign file: safetensors, but not of basicsr_ssl, without a network spec'):
        read_metadata(saved)


@pytest.mark.parametrize('text', ['{', '[]', '{}', '"text"', 'null', '[' * 100_000])
def test_damaged_metadata(text: str, saved: Path) -> None:
    save_file(load_file(saved), saved, metadata={store.METADATA_KEY: text})
    with pytest.raises(ValueError, match=r'net\.safetensors is corrupted: damaged metadata'):
        load_network(saved)


def of_spec(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata['spec'].__setitem__(key, value)


BAD_SPECS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    'future': (of_spec('format', 3), r'has format 3, this version of basicsr_ssl reads format 2: install a newer'),
    'no-format': (lambda m: m['spec'].pop('format'), 'not a network spec'),
    'list': (lambda m: m.update(spec=[1]), 'not a network spec'),
    'null': (lambda m: m.update(spec=None), 'not a network spec'),
    'missing-entry': (lambda m: m['spec'].pop('widths'), 'missing, unknown or ill-typed entries: widths'),
    'unknown-entry': (of_spec('extra', 1), 'missing, unknown or ill-typed entries: extra'),
    'ill-typed': (of_spec('args', 'x'), 'missing, unknown or ill-typed entries: args'),
    'unknown-arch': (of_spec('arch', 'PrunableNothing'), "unknown arch 'PrunableNothing'; this version has PrunableB"),
    'foreign-arch': (of_spec('arch', 'BasicVSR'), "unknown arch 'BasicVSR'"),
    'unknown-argument': (lambda m: m['spec']['args'].update(depth=3), 'the spec does not fit PrunableBasicVSR.*depth'),
    'bad-argument': (lambda m: m['spec']['args'].update(scale=3), 'scale must be one of 2, 4, got 3'),
    'unknown-group': (lambda m: m['spec']['widths'].update(nothing=3), 'no such group in this network: nothing'),
    'text-width': (lambda m: m['spec']['widths'].update(fusion='3'), 'widths should hold integers only'),
    'truth-width': (lambda m: m['spec']['widths'].update(fusion=True), 'widths should hold integers only'),
    'mapped-index': (of_spec('index', {'forward_trunk.main.2.0.in': {'0': 1}}), 'index should hold integers only'),
    'nan-index': (of_spec('index', {'forward_trunk.main.2.0.in': [math.nan]}), 'index should hold integers only'),
    'text-direction': (lambda m: m['spec']['args'].update(bidirectional='no'), 'bidirectional must be one of True, F'),
    'bad-width': (lambda m: m['spec']['widths'].update(fusion=9), r'fusion must be within 1\.\.8, got 9'),
    'no-index': (of_spec('index', {}), 'needs an index of them'),
    'file-name': (lambda m: m['spec']['args'].update(spynet_path='/etc/passwd'), 'the spec names a file'),
    'many-blocks': (lambda m: m['spec']['args'].update(num_block=10**4), 'arguments of the spec add up to 1001'),
    'many-channels': (lambda m: m['spec']['args'].update(num_feat=9000), 'different shapes'),
    'too-many-channels': (lambda m: m['spec']['args'].update(num_feat=10**12), 'which no network has; at most 10000'),
    'other-widths': (lambda m: m['spec']['widths'].update(fusion=1), r'does not fit the network.*\n.*different shapes'),
}


@pytest.mark.parametrize(('change', 'message'), BAD_SPECS.values(), ids=BAD_SPECS)
def test_specs_that_cannot_be_built(change: Callable, message: str, saved: Path) -> None:
    rewrite_header(saved, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(saved)
    assert 'net.safetensors' in str(caught.value)


def test_all_names_and_shapes_that_do_not_fit_are_listed_together(saved: Path) -> None:
    tensors = load_file(saved)
    del tensors['fusion.bias'], tensors['conv_last.weight']
    tensors |= {'conv_last.bias': torch.ones(7), 'extra': torch.ones(1)}
    metadata = {**read_metadata(saved), 'checksum': None}
    save_file(tensors, saved, metadata={store.METADATA_KEY: json.dumps(metadata)})
    with pytest.raises(ValueError) as caught:
        load_network(saved)
    assert str(caught.value).split('\n') == [
        f'{saved} does not fit the network PrunableBasicVSR:',
        '  missing: conv_last.weight, fusion.bias',
        '  unexpected: extra',
        '  different shapes: conv_last.bias is (7,), the network has (3,)',
    ]


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match=r'missing: .* and \d+ more\n'):
        build_network(tiny_net().spec, {f'other.{i}': torch.ones(1) for i in range(9)})



# ---- what is saved can be loaded

def assert_same(net: nn.Module, expected: nn.Module) -> None:
    own, there = net.state_dict(), expected.state_dict()
    assert own.keys() == there.keys() and all(torch.equal(own[name], there[name]) for name in there)


WRAPPINGS: dict[str, Callable[[Any], nn.Module]] = {
    'compiled': torch.compile,  # type: ignore[dict-item]
    'parallel': nn.DataParallel,
    'compiled-parallel': lambda net: torch.compile(nn.DataParallel(net)),  # type: ignore[return-value]
    'parallel-compiled': lambda net: nn.DataParallel(torch.compile(net)),  # type: ignore[arg-type]
    'compiled-part': lambda net: setattr(net, 'forward_trunk', torch.compile(net.forward_trunk)) or net,
    'compiled-in-place': lambda net: net.compile() or net,
}


@pytest.mark.parametrize('wrap', WRAPPINGS.values(), ids=WRAPPINGS)
def test_what_distribution_and_compilation_put_around_a_network_is_not_saved(wrap: Callable, tmp_path: Path) -> None:
    save_network(wrap(net_of('compact')), tmp_path / 'net.safetensors')
    assert_same(load_network(tmp_path / 'net.safetensors'), net_of('compact'))


def test_distributed_networks_are_saved(tmp_path: Path) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        save_network(nn.parallel.DistributedDataParallel(tiny_net()), tmp_path / 'net.safetensors')
    finally:
        torch.distributed.destroy_process_group()
    assert_same(load_network(tmp_path / 'net.safetensors'), tiny_net())


def replaced(name: str, layer: nn.Module) -> Callable[[Any], object]:
    return lambda net: net.set_submodule(name, layer)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    'masked': (lambda net: prune.l1_unstructured(net.conv_hr, 'weight', 0.5),
               r'(?s)unexpected: conv_hr\.weight_mask, conv_hr\.weight_orig.*call torch\.nn\.utils\.prune\.remove'),
    'weight-norm': (lambda net: nn.utils.weight_norm(net.fusion),
                    r'(?s)unexpected: fusion\.weight_g, fusion\.weight_v.*call torch\.nn\.utils\.remove_weight_norm'),
    'parametrized': (lambda net: nn.utils.parametrizations.weight_norm(net.fusion),
                     r'(?s)fusion\.parametrizations\.weight\.original0.*parametrize\.remove_parametrizations'),
    'wider': (replaced('conv_hr', nn.Conv2d(6, 7, 3, padding=1)),
              r'conv_hr\.weight is \(7, 6, 3, 3\), the network has'),
    'more': (lambda net: net.add_module('extra', nn.Conv2d(1, 1, 1)), r'unexpected: extra\.bias, extra\.weight'),
    'other-padding': (replaced('conv_hr', nn.Conv2d(6, 6, 3, padding=1, padding_mode='reflect')),
                      r'conv_hr is Conv2d\(.*reflect.*\), the spec builds Conv2d'),
    'other-activation': (replaced('act', nn.GELU()), r'act is GELU\(.*\), the spec builds LeakyReLU'),
    'integers': (lambda net: setattr(net.fusion, 'bias', nn.Parameter(torch.ones(8).int(), requires_grad=False)),
                 r'no weights: fusion\.bias is torch\.int32'),
}


@pytest.mark.filterwarnings('ignore:.*weight_norm.*deprecated')
@pytest.mark.parametrize(('change', 'message'), CHANGES.values(), ids=CHANGES)
def test_what_could_not_be_loaded_is_not_saved(change: Callable, message: str, tmp_path: Path) -> None:
    net = tiny_net()
    change(net)
    with pytest.raises(ValueError, match=r'^the network cannot be saved, since its file could not be loaded: '):
        save_network(net, tmp_path / 'net.safetensors')
    with pytest.raises(ValueError, match=message):
        save_network(net, tmp_path / 'net.safetensors')
    assert not list(tmp_path.iterdir())


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    net = tiny_net(flow='spynet')
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    save_network(net, tmp_path / 'net.safetensors')
    assert torch.equal(torch.rand(3), expected)


def test_two_names_of_one_tensor_are_saved_twice(tmp_path: Path) -> None:
    net = tiny_net()
    net.backward_trunk = net.forward_trunk
    save_network(net, tmp_path / 'net.safetensors')
    assert_same(load_network(tmp_path / 'net.safetensors'), net)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_a_saved_precision_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    net = tiny_net(flow='spynet').to(dtype)
    save_network(net, path)
    assert {parameter.dtype for parameter in load_network(path).parameters()} == {dtype}
    assert_same(load_network(path), net)
    single = load_network(path, dtype=torch.float32)
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    assert_same(single, net.float())
    save_file({**load_file(path), 'fusion.bias': torch.ones(8)}, tmp_path / 'mixed.safetensors')
    assert load_network(tmp_path / 'mixed.safetensors').state_dict()['fusion.weight'].dtype == torch.float32


def test_the_device_can_be_named(saved: Path) -> None:
    assert {tensor.device.type for tensor in load_network(saved, device='meta').state_dict().values()} == {'meta'}


@pytest.mark.parametrize('kind', ['safetensors', 'zip', 'legacy'])
def test_open_files_load(kind: str, basicsr_net: BasicVSR, tmp_path: Path) -> None:
    path = tmp_path / 'net'
    if kind == 'safetensors':
        save_network(load_network({'params': basicsr_net.state_dict()}), path)
    else:
        torch.save(basicsr_net.state_dict(), path, _use_new_zipfile_serialization=kind == 'zip')
    assert_same(load_network(io.BytesIO(path.read_bytes())), basicsr_net)
    with open(path, 'rb') as stream:
        for _ in range(2):
            assert_same(load_network(stream), basicsr_net)
    (tmp_path / 'bad').write_bytes(path.read_bytes()[:-10])
    with open(tmp_path / 'bad', 'rb') as stream, pytest.raises(ValueError, match=r'bad is (truncated|corrupted)'):
        load_network(stream)


def test_state_dicts_load(basicsr_net: BasicVSR) -> None:
    state = basicsr_net.state_dict()
    for content in (state, {'params': state}, {'params_ema': state, 'params': other_weights(basicsr_net)}):
        net: Any = load_network(content)
        assert_same(net, basicsr_net)
        assert net.provenance['source_format'] == 'BasicSR' and 'source_sha256' not in net.provenance
    assert not any(own is given for own in load_network(state).parameters() for given in state.values())
    with pytest.raises(ValueError, match='the state dict is incomplete: it has no'):
        load_network(tiny_net().state_dict())


@pytest.mark.parametrize('kind', ['safetensors', 'zip', 'legacy'])
def test_a_file_that_is_replaced_while_it_is_read(kind: str, basicsr_net: BasicVSR, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / 'net', tmp_path / 'other'
    if kind == 'safetensors':
        save_network(load_network(basicsr_net.state_dict()), path)
    else:
        torch.save(basicsr_net.state_dict(), path, _use_new_zipfile_serialization=kind == 'zip')
    before = file_sha256(path)
    other.write_bytes(b'another file')
    real = store.file_format

    def replacing(*args: Any) -> str:
        os.replace(other, path)
        return real(*args)

    monkeypatch.setattr(store, 'file_format', replacing)
    net: Any = load_network(path)
    assert path.read_bytes() == b'another file'
    assert_same(net, basicsr_net)
    assert net.provenance.get('source_sha256', before) == before


# ---- damage that must not make another network of a file

@pytest.mark.parametrize('word', [b'__metadata__', b'basicsr_ssl', b'checksum'])
def test_a_flipped_bit_in_a_key_does_not_hide_the_checksum(word: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    save_network(tiny_net(act='relu'), path)
    content = path.read_bytes()
    for bit in range(8 * len(word)):
        damaged = bytearray(content)
        damaged[content.index(word) + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for read in (lambda: load_network(path, assume={'flow': 'none'}), lambda: load_network(path)):
            with pytest.raises(ValueError, match=r'net\.safetensors is corrupted'):
                read()


MISSING = {'flow': ('spynet.', 'none'), 'scale': ('upconv2.', 2)}


@pytest.mark.parametrize('argument', MISSING)
@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'state'])
def test_incomplete_files_are_no_other_networks(argument: str, kind: str, tmp_path: Path) -> None:
    prefix, value = MISSING[argument]
    state = {name: tensor for name, tensor in BasicVSR(num_feat=64, num_block=1).state_dict().items()
             if not name.startswith(prefix)}
    source: Any = state if kind == 'state' else tmp_path / f'net.{kind}'
    if kind == 'pth':
        torch.save({'params': state}, source)
    elif kind == 'safetensors':
        save_file(state, source)
    said = (rf'is incomplete: it has no {prefix}\*\. If it is a network with {argument}: {value}, say so: in network_g '
            rf'.* with --assume {argument}={value}, .* assume=\{{\'{argument}\': ')
    with pytest.raises(ValueError, match=said):
        load_network(source)
    with pytest.raises(ValueError, match='is incomplete'):
        load_network(source, assume={argument: PrunableBasicVSR(num_block=1).spec.args[argument]})
    net: Any = load_network(source, assume={'num_feat': 64, argument: value})
    assert net.spec.args[argument] == value


def test_a_file_without_its_backward_trunk_is_incomplete(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in BasicVSR(num_feat=8, num_block=1).state_dict().items()
             if not name.startswith(('backward_trunk', 'fusion'))}
    with pytest.raises(ValueError, match=r'it has no backward_trunk\.\*'):
        load_network(state)


# ---- little work for little files

class Counting(io.FileIO):
    """A file that counts what is read of it, and refuses much."""

    count = 0

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        content = super().read(size)
        self.count += len(content)
        assert self.count < 1 << 22, 'far more is read than is written there'
        return content


def sparse(path: Path, header: bytes, size: int) -> Counting:
    path.write_bytes(struct.pack('<Q', size if header == b'{' else len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    return Counting(path)


def test_a_sparse_header_is_not_read(tmp_path: Path) -> None:
    with sparse(tmp_path / 'a', b'{', 4 << 30) as stream, pytest.raises(ValueError, match='header alone takes 4,294,9'):
        load_network(stream)


def test_sparse_tensors_are_not_read(tmp_path: Path) -> None:
    size = 2 << 30
    for name, message in (('a', 'is a foreign file'), ('fusion.bias', 'is a foreign file'),
                          ('forward_trunk.main.0.weight', 'holds 2,147,483,648 bytes of tensors, which no network')):
        header = json.dumps({name: {'dtype': 'F32', 'shape': [size // 4], 'data_offsets': [0, size]}}).encode()
        with sparse(tmp_path / 'a', header, size) as stream, pytest.raises(ValueError, match=message):
            load_network(stream)


def test_empty_tensors_are_no_weights(saved: Path) -> None:
    """They cost a file nothing; a spec of thousands of blocks would be built to find out that they do not fit."""
    metadata = read_metadata(saved)
    del metadata['checksum']
    metadata['spec']['args']['num_block'] = 5000
    names = [f'{trunk}_trunk.main.2.{j}.{layer}' for trunk in ('forward', 'backward') for j in range(5000)
             for layer in ('conv1.weight', 'conv1.bias', 'conv2.weight', 'conv2.bias')]
    for count, message in ((len(names), 'holds 40,000 tensors, which no network does'), (100, 'is empty')):
        save_file({name: torch.empty(0) for name in names[:count]}, saved,
                  metadata={store.METADATA_KEY: json.dumps(metadata)})
        with pytest.raises(ValueError, match=message):
            load_network(saved)


def test_building_stops_where_the_file_has_no_tensors(saved: Path) -> None:
    built: list[object] = []
    rewrite_header(saved, lambda metadata: metadata['spec'].update(
        args={**metadata['spec']['args'], 'num_block': 5000}, widths={}, index={}))
    hook = register_module_parameter_registration_hook(lambda *args: built.append(args))
    try:
        with pytest.raises(ValueError, match=r'describes more than 1,060 parameters, far more than there are tensors'):
            load_network(saved)
    finally:
        hook.remove()
    assert len(built) < 1200
    build_network(tiny_net(num_block=2).spec)  # the bound is gone


@pytest.mark.parametrize('key', ['widths', 'index', 'arch', 'args'])
def test_arguments_that_are_named_as_parts_of_the_spec(key: str, saved: Path) -> None:
    rewrite_header(saved, lambda metadata: metadata['spec']['args'].update({key: 'x'}))
    with pytest.raises(ValueError, match=f'the spec names {key} among the arguments'):
        load_network(saved)


@pytest.mark.parametrize('value', ['x', None, [1], {'a': 1}, 1.5, -1], ids=str)
@pytest.mark.parametrize('key', ['num_feat', 'num_block', 'tail_feat', 'scale', 'bidirectional', 'act', 'flow'])
def test_arguments_of_any_kind_are_refused_by_one_message(key: str, value: object, saved: Path) -> None:
    rewrite_header(saved, lambda metadata: metadata['spec']['args'].update({key: value}))
    with pytest.raises(ValueError, match=r'net\.safetensors'):
        load_network(saved)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize('levels', [101, 500, 100_000])
def test_deeply_nested_provenance(levels: int, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(ValueError, match='provenance is nested in more than 100 levels'):
        save_network(tiny_net(), saved, said=nested(levels))
    assert saved.read_bytes() == before
    if levels < 1000:
        rewrite_header(saved, lambda metadata: metadata.update(said=nested(levels)))
        for read in (load_network, read_metadata):
            with pytest.raises(ValueError, match=r'net\.safetensors is corrupted: damaged metadata'):
                read(saved)
    save_network(tiny_net(), saved, said=nested(98))
    assert load_network(saved).provenance == {'said': nested(98)}


def test_keys_that_are_one_in_json(saved: Path) -> None:
    before = saved.read_bytes()
    for value in ({1: 'a', '1': 'b'}, {'deep': [{True: 1, 'true': 2}]}):
        with pytest.raises(ValueError, match='two keys that are one in JSON'):
            save_network(tiny_net(), saved, said=value)
    assert saved.read_bytes() == before
    save_network(tiny_net(), saved, said={1: (2, 3)})
    assert load_network(saved).provenance == {'said': {'1': [2, 3]}}


def test_provenance_that_a_header_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='the provenance takes 17,'):
        save_network(tiny_net(), tmp_path / 'net.safetensors', said='x' * 17_000_000)
    assert not list(tmp_path.iterdir())


# ---- what is no file, and names that are not ordinary

def test_what_cannot_be_opened_is_named_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='pipe is a pipe, not a network file'):
        load_network(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='/dev/zero is a device, not a network file'):
        load_network('/dev/zero')
    with pytest.raises(OSError, match=r'cannot read x.*: File name too long') as caught:
        load_network('x' * 3_000_000)
    assert len(str(caught.value)) < 500
    real = os.open

    def forbidden(path: Any, *args: Any) -> int:
        if str(path).endswith('secret'):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *args)

    monkeypatch.setattr(os, 'open', forbidden)
    with pytest.raises(OSError, match=r'^cannot read .*secret: Permission denied$'):
        load_network(tmp_path / 'secret')


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b'/n\xe9t.safetensors')
    save_network(tiny_net(), path)
    assert_same(load_network(path), tiny_net())


def test_names_of_megabytes_are_not_printed_whole(saved: Path) -> None:
    long = 'x' * 3_000_000
    content = saved.read_bytes()
    for change in (lambda m: m['spec'].update(arch=long), lambda m: m['spec']['args'].update({long: 1}),
                   lambda m: m['spec']['widths'].update({long: 1}), lambda m: m['spec']['args'].update(act=long),
                   lambda m: m['spec'].update({long: 1}), lambda m: m['spec'].update(format=long),
                   lambda m: m['spec']['args'].update({f'{long}path': 1})):
        saved.write_bytes(content)
        rewrite_header(saved, change)
        with pytest.raises(ValueError) as caught:
            load_network(saved)
        assert len(str(caught.value)) < 1500
    saved.write_bytes(content)
    for tensors in ({long: torch.ones(1)}, {**load_file(saved), long: torch.ones(1)}):
        for kind in ('safetensors', 'pth'):
            save_file(tensors, saved) if kind == 'safetensors' else torch.save(tensors, saved)
            with pytest.raises(ValueError) as caught:
                load_network(saved, assume={'flow': 'none'})
            assert len(str(caught.value)) < 1500


# ---- files that cannot be written

@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4 KiB: the operating system refuses further writes, as on a full disk.

    Not a fixture: pytest writes its own progress between fixtures and tests, perhaps into a file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    assert len(before) > 4096
    net = tiny_net(seed=1)
    with small_disk(), pytest.raises(OSError, match=r'cannot save .*net\.safetensors: .*[Ff]ile too large.*'
                                                    'Nothing was changed'):
        save_network(net, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_no_space_left_is_reported_and_cleaned_up(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(path: Path, content: bytes) -> None:
        with open(path, 'wb') as stream:
            stream.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = saved.read_bytes()
    monkeypatch.setattr(Path, 'write_bytes', half_written)
    with pytest.raises(OSError, match=r'No space left on device.*free some space or choose another folder'):
        save_network(net_of('dense'), saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_an_interruption_while_writing_leaves_no_temporary_file(saved: Path) -> None:
    def interrupted(path: str) -> None:
        Path(path).write_bytes(b'half')
        raise KeyboardInterrupt

    before = saved.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_atomically(saved, interrupted)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_a_rename_that_fails_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, 'Permission denied')

    before = saved.read_bytes()
    monkeypatch.setattr(files.os, 'replace', refuse)
    with pytest.raises(OSError, match=r'cannot save .*Permission denied'):
        save_network(tiny_net(seed=1), saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission(saved: Path) -> None:
    saved.parent.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r'cannot save .*Permission denied'):
            save_network(tiny_net(seed=1), saved)
        assert list(saved.parent.iterdir()) == [saved]
    finally:
        saved.parent.chmod(0o700)


def test_a_folder_that_is_a_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(OSError, match=r'cannot save .*net.safetensors/inner'):
        save_network(tiny_net(), saved / 'inner.safetensors')
    assert saved.read_bytes() == before


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / 'abc').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'abc') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


# ---- modes, links, devices, and what killed processes leave

@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize(('value', 'expected'), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_networks_are_readable_by_whom_the_umask_lets(value: int, expected: int, tmp_path: Path) -> None:
    with umask(value):
        save_network(tiny_net(), tmp_path / 'net.safetensors')
        write_text(tmp_path / 'a.txt', 'ü')
    assert mode(tmp_path / 'net.safetensors') == mode(tmp_path / 'a.txt') == expected
    assert (tmp_path / 'a.txt').read_bytes() == 'ü'.encode()


def test_overwriting_takes_nobodys_access_away(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(files.os, 'fchown', lambda fd, owner, group: given.append((owner, group)))
    saved.chmod(0o664)
    with umask(0o077):
        save_network(tiny_net(), saved)
    assert mode(saved) == 0o664
    assert given == [(saved.stat().st_uid, -1), (-1, saved.stat().st_gid)]


def test_an_owner_that_cannot_be_kept_is_no_failure(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, 'Operation not permitted')

    monkeypatch.setattr(files.os, 'fchown', refuse)
    save_network(tiny_net(seed=1), saved)
    assert torch.equal(load_network(saved).state_dict()['fusion.bias'], tiny_net(seed=1).state_dict()['fusion.bias'])


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / 'elsewhere' / 'net.safetensors', tmp_path / 'link.safetensors'
    link.symlink_to(target)
    for seed in (0, 1):  # it points nowhere at first
        save_network(tiny_net(seed=seed), link)
        assert link.is_symlink() and target.is_file()
        assert torch.equal(load_network(target).state_dict()['fusion.bias'],
                           tiny_net(seed=seed).state_dict()['fusion.bias'])
    assert sorted(path.name for path in target.parent.iterdir()) == ['net.safetensors']


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'null').symlink_to('/dev/null')
    for name, what in (('pipe', 'a pipe'), ('folder', 'a folder'), ('null', 'a device')):
        with pytest.raises(OSError, match=rf'cannot save .*{name}: it is {what}, which a file must not replace'):
            save_network(tiny_net(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['folder', 'null', 'pipe']
    assert not Path('/dev/null').is_file()


def test_what_killed_processes_left_is_removed_at_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    old = time.time() - 3600
    names = {'dead': '.net.safetensors.0123456789abcdef.tmp', 'living': '.net.safetensors.1123456789abcdef.tmp',
             'new': '.net.safetensors.2123456789abcdef.tmp', 'of another': '.net.pth.0123456789abcdef.tmp',
             'not ours': '.net.safetensors.tmp', 'not ours either': '.net.safetensors.0123456789ABCDEF.tmp'}
    for name in names.values():
        (tmp_path / name).write_bytes(b'half')
        if name != names['new']:
            os.utime(tmp_path / name, (old, old))
    with open(tmp_path / names['living'], 'rb') as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_text(path, 'whole')
    assert {entry.name for entry in tmp_path.iterdir()} == {'net.safetensors', *names.values()} - {names['dead']}


def test_a_writer_holds_the_lock_by_which_others_know_that_it_lives(tmp_path: Path) -> None:
    def write(name: str) -> None:
        Path(name).write_text('outer')
        os.utime(name, (0, 0))
        write_text(tmp_path / 'a.txt', 'inner')  # as another process would
        assert Path(name).exists()

    write_atomically(tmp_path / 'a.txt', write)
    assert (tmp_path / 'a.txt').read_text() == 'outer' and len(list(tmp_path.iterdir())) == 1


def test_long_names(tmp_path: Path) -> None:
    write_text(tmp_path / ('ü' * 127), 'as long as they may be')
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match=r'File name too long.*choose a shorter name') as caught:
        write_text(tmp_path / ('x' * 3_000_000), 'longer')
    assert len(str(caught.value)) < 1500
    assert len(list(tmp_path.iterdir())) == 1



# ---- the spec

def test_spec_json_round_trip() -> None:
    spec = Spec('A', {'n': 3, 'on': True, 'path': None}, {'g': 2}, {'g': [0, 5]})
    assert Spec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json()) == {'format': 1, 'arch': 'A', 'args': {'n': 3, 'on': True, 'path': None},
                                          'widths': {'g': 2}, 'index': {'g': [0, 5]}, 'gated': False}
    assert (spec.form, Spec('A', gates='scale').form, Spec('A').form) == ('compact', 'gated', 'dense')


@pytest.mark.parametrize('text', ['', 'x', '[]', '3', 'null', '"format"', '{}'])
def test_spec_of_something_else(text: str) -> None:
    with pytest.raises(ValueError, match='not a network spec: expected a JSON object with the keys format, arch'):
        Spec.from_json(text)
