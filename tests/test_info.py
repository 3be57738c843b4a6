"""What `basicsr-ssl info` says of files: figures against independent counts, the text word by word."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.spynet_arch import SpyNet
from safetensors.torch import load_file, save_file
from torch import nn

import basicsr_ssl
from basicsr_ssl import cli, save_network, zoo
from basicsr_ssl.api import cut_network, with_gates
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.report.info import _columns, describe, format_info
from tests.nets import tiny_net

H, W = 180, 320
BLOCK = 'forward_trunk.main.2.{}.{}'


def counted_macs(net: nn.Module, flow: bool) -> int:
    """Multiply-accumulates of one frame in a long clip, from the layers alone, by what runs where and how often."""
    total = 0
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        pixels, weights = H * W, layer.weight.numel()
        if name.startswith('spynet'):
            level = int(name.split('.')[2])
            pixels = math.ceil(H / 32) * 32 * math.ceil(W / 32) * 32 // 4**(5 - level) * 2 * flow
        elif name == 'upconv2':
            pixels *= 4
        elif name in ('conv_hr', 'conv_last'):
            pixels *= 16
        total += pixels * weights
    return total


def cut(net: nn.Module) -> Any:
    """Of 2 blocks and 8 channels: without some inputs, middles and outputs, and without most of the tail."""
    return cut_network(net, {BLOCK.format(0, 'in'): [0, 1, 2, 3, 5, 7], BLOCK.format(0, 'mid'): [4],
                             BLOCK.format(1, 'mid'): [0, 1, 2], BLOCK.format(1, 'out'): [6, 7],
                             'upconv1': [1, 2, 3, 4], 'conv_hr': [0]})


UNITS = {BLOCK.format(0, 'in'): [6, 8], BLOCK.format(0, 'mid'): [1, 8], BLOCK.format(0, 'out'): [8, 8],
         BLOCK.format(1, 'in'): [8, 8], BLOCK.format(1, 'mid'): [3, 8], BLOCK.format(1, 'out'): [2, 8],
         'upconv1': [4, 8], 'upconv2': [6, 6], 'conv_hr': [1, 6]}


def test_a_compact_network(tmp_path):
    net, path = cut(tiny_net(bidirectional=False)), tmp_path / 'small.safetensors'
    save_network(net, path, stage='run/finetune', model_type='TemporalFinetuneModel', parents={'teacher': 'ab' * 32},
                 metrics={'REDS4': {'psnr': 31.0649, 'ssim': 0.88331}}, fingerprint='f', options={'scale': 4})
    described = describe(path)
    shapes = {name: tensor.numel() for name, tensor in load_file(path).items()}
    assert described == {
        'file': str(path), 'size': path.stat().st_size, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
        'checksum': True, 'param_keys': [], 'format': 'basicsr_ssl', 'arch': 'PrunableBasicVSR', 'form': 'compact',
        'args': {'num_feat': 8, 'num_block': 2, 'tail_feat': 6, 'scale': 4, 'bidirectional': False, 'act': 'lrelu',
                 'flow': 'none'},
        'kept': UNITS, 'selected': None, 'left': None,
        'params': sum(size for name, size in shapes.items() if name.endswith(('weight', 'bias'))),
        'params_with_flow': sum(size for name, size in shapes.items() if name.endswith(('weight', 'bias'))),
        'macs': counted_macs(net, False), 'macs_with_flow': counted_macs(net, False), 'lr_size': [H, W],
        'dtype': 'float32', 'not_finite': [], 'stage': 'run/finetune', 'method': None,
        'parents': {'teacher': 'ab' * 32}, 'figures': {'REDS4': {'psnr': 31.0649, 'ssim': 0.88331}},
        'versions': described['versions'],
        'provenance': {'model_type': 'TemporalFinetuneModel', 'fingerprint': 'f', 'options': {'scale': 4}}}
    assert set(described['versions']) == {'basicsr_ssl', 'torch', 'basicsr', 'python'}
    assert json.loads(json.dumps(described)) == described


TEXT = '''\
small.safetensors: PrunableBasicVSR, compact

file        some/where/small.safetensors, 12.3KB
sha256      {sha256}
checksum    verified
format      basicsr_ssl
arguments   num_feat 8, num_block 2, tail_feat 6, scale 4, bidirectional False,
            act lrelu, flow none
params      2.24K
MACs        298M per LR frame of 180x320
numbers     float32, all finite
stage       run/finetune
made from   teacher with sha256 abab
measured    REDS4: psnr 31.06, ssim 0.8833
made with   torch 2.4
model_type  TemporalFinetuneModel

Units kept: 39 of 68 (57%); {full} is all of a layer
forward_trunk.main.2.0 to 1
  in     14 of 16  6 to 8 of 8 each  {i}
  mid    4 of 16   1 to 3 of 8 each  {mid}
  out    10 of 16  2 to 8 of 8 each  {out}
upconv1  4 of 8                      {upconv1}
upconv2  6 of 6                      {upconv2}
conv_hr  1 of 6                      {conv_hr}'''
DESCRIBED: dict[str, Any] = {
    'file': 'some/where/small.safetensors', 'size': 12_345, 'sha256': 'cd' * 32, 'checksum': True, 'param_keys': [],
    'format': 'basicsr_ssl',
    'arch': 'PrunableBasicVSR', 'form': 'compact',
    'args': {'num_feat': 8, 'num_block': 2, 'tail_feat': 6, 'scale': 4, 'bidirectional': False, 'act': 'lrelu',
             'flow': 'none'},
    'kept': UNITS, 'selected': None, 'params': 2_242, 'params_with_flow': 2_242, 'macs': 298_000_000,
    'macs_with_flow': 298_000_000, 'lr_size': [180, 320], 'dtype': 'float32', 'not_finite': [],
    'stage': 'run/finetune', 'method': None, 'parents': {'teacher': 'abab'},
    'figures': {'REDS4': {'psnr': 31.0649, 'ssim': 0.88331, 'frames': 4}}, 'versions': {'torch': '2.4'},
    'provenance': {'model_type': 'TemporalFinetuneModel', 'fingerprint': 'f', 'options': {'scale': 4}, 'iteration': -1}}


def test_the_text_with_blocks():
    assert format_info(DESCRIBED, 80, blocks=True) == TEXT.format(
        sha256='cd' * 32, full='█', i='▆█', mid='▁▃', out='█▂', upconv1='█' * 16, upconv2='█' * 32,
        conv_hr='█' * 5 + '▍')


def test_the_text_in_ascii():
    assert format_info(DESCRIBED, 80, blocks=False) == TEXT.format(
        sha256='cd' * 32, full='#', i='7#', mid='13', out='#2', upconv1='#' * 16, upconv2='#' * 32, conv_hr='#' * 5)


@pytest.mark.parametrize('width', [40, 60, 80, 200])
@pytest.mark.parametrize('blocks', [True, False])
def test_a_chart_of_many_blocks_fits_the_terminal(width, blocks):
    """45 blocks of 64 channels that keep 20 to 64: each block has its column, in order."""
    widths = [20 + j for j in range(45)]
    kept = {f'trunk.body.{j}.{part}': [units, 64] for j, units in enumerate(widths) for part in ('mid', 'out')}
    lines = format_info({**DESCRIBED, 'sha256': 'x', 'kept': kept}, width, blocks).splitlines()
    chart = lines[lines.index('trunk.body.0 to 44') + 1:]
    assert all(len(line) <= width for line in chart)
    last = 'each' if width > 40 else '2880'
    indent = chart[0].index(last) + len(last) + 2
    half = len(chart) // 2
    for label, rows in (('mid', chart[:half]), ('out', chart[half:])):
        assert rows[0][:indent].split('  ')[1:-1] == [label, '1890 of 2880', *(
            ['20 to 64 of 64 each'] if width > 40 else [])]
        assert not any(row[:indent].strip() for row in rows[1:])
        assert ''.join(row[indent:] for row in rows) == ''.join(
            ('█' if units == 64 else '▁▂▃▄▅▆▇'[units * 7 // 64]) if blocks else
            ('#' if units == 64 else str(units * 10 // 64)) for units in widths)


def test_columns_rise():
    shares = [units / 64 for units in range(1, 65)]
    assert _columns(shares, True) == ''.join('▁▂▃▄▅▆▇'[units * 7 // 64] for units in range(1, 64)) + '█'
    assert _columns(shares, False) == ''.join(str(units * 10 // 64) for units in range(1, 64)) + '#'


@pytest.mark.parametrize(('encoding', 'shown'), [('utf-8', '█'), ('ascii', '#'), ('latin-1', '#'), ('cp437', '#')])
def test_the_terminals_encoding_decides(monkeypatch, encoding, shown):
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert f'; {shown} is all of a layer' in format_info(DESCRIBED, 80)


def test_the_terminals_width_decides(monkeypatch):
    monkeypatch.setenv('COLUMNS', '70')
    text = format_info(DESCRIBED, blocks=False)
    assert text == format_info(DESCRIBED, 70, False) != format_info(DESCRIBED, 80, False)


def test_a_dense_network_with_flow(tmp_path):
    net = tiny_net(flow='spynet')
    save_network(net, tmp_path / 'dense.safetensors')
    described = describe(tmp_path / 'dense.safetensors')
    own = sum(p.numel() for name, p in net.named_parameters() if not name.startswith('spynet'))
    assert (described['params'], described['params_with_flow']) == (own, own + 1_440_300)
    assert (described['macs'], described['macs_with_flow']) == (counted_macs(net, False), counted_macs(net, True))
    assert described['kept'] == {group.name: [group.size] * 2 for group in net.groups} and described['form'] == 'dense'
    assert [described[key] for key in ('stage', 'method', 'parents', 'figures')] == [None] * 4
    text = format_info(described, 100, False)
    units = 12 * 8 + 8 + 8 + 6 + 6  # in, mid, out of 2 x 2 blocks; fusion, upconv1; upconv2, conv_hr
    assert f'units      {units} that can be pruned, none removed' in text and 'Units' not in text
    assert 'with the flow network per LR frame of 180x320' in text


def test_a_gated_network_and_what_will_be_kept(tmp_path):
    net = with_gates(tiny_net(bidirectional=False))
    kept = {group.name: list(range(group.size)) for group in net.groups} | {'upconv1': [0, 5]}  # type: ignore
    save_network(net, tmp_path / 'gated.safetensors', selection={'kept': kept}, options={
        'pruning': {'score': 'l1', 'scope': 'global', 'ratio': 0.7276, 'budget': 'macs'}})
    described = describe(tmp_path / 'gated.safetensors')
    assert described['method'] == 'l1, global, 72.76% of macs'
    dense = tiny_net(bidirectional=False)
    assert described['form'] == 'gated' and described['params'] == sum(p.numel() for p in dense.parameters())
    assert described['selected'] == {**described['kept'], 'upconv1': [2, 8]}
    text = format_info(described, 100, False)
    assert 'Units to be kept: 62 of 68 (91%)' in text and 'Units kept' not in text
    assert 'upconv1  2 of 8                 ########\n' in text


def test_type_and_damage_of_numbers(tmp_path):
    net = tiny_net(flow='spynet')
    save_network(net, tmp_path / 'net.safetensors')
    state = load_file(tmp_path / 'net.safetensors')
    state['conv_hr.weight'][0, 0, 0, 0] = math.inf
    state['conv_last.bias'][1] = math.nan
    torch.save({'params': {name: tensor.half() for name, tensor in state.items()}}, tmp_path / 'half.pth')
    described = describe(tmp_path / 'half.pth')
    assert described['dtype'] == 'float16'
    assert sorted(described['not_finite']) == ['conv_hr.weight', 'conv_last.bias']
    assert 'numbers' in (text := format_info(described, 200, False))
    assert 'float16; NOT FINITE: conv_hr.weight, conv_last.bias' in text


def test_files_of_basicsr(tmp_path):
    net = BasicVSR(num_feat=8, num_block=2)
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    described = describe(tmp_path / 'net.pth')
    parameters = {name: p.numel() for name, p in net.named_parameters()}
    assert described['params_with_flow'] == sum(parameters.values())
    assert described['params'] == sum(n for name, n in parameters.items() if not name.startswith('spynet'))
    assert described['macs_with_flow'] == counted_macs(net, True)
    assert (described['format'], described['form'], described['versions']) == ('BasicSR', 'dense', None)
    assert described['provenance']['param_key'] == 'params_ema'
    text = format_info(described, 100, False)
    assert text.count(described['sha256']) == 1 and 'weights    params_ema; there are params_ema, params' in text


def test_a_flow_network(tmp_path):
    torch.save({'params': SpyNet().state_dict()}, tmp_path / 'spynet.pth')
    described = describe(tmp_path / 'spynet.pth')
    assert described['kept'] and (described['params'], described['params_with_flow']) == (0, 1_440_300)
    assert 'params' in format_info(described, 100, False)


def test_safetensors_of_somebody_else(tmp_path):
    net = BasicVSR(num_feat=8, num_block=1)
    path = tmp_path / 'net.safetensors'
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in net.state_dict().items()}, path)
    described = describe(path)
    assert (described['format'], described['dtype'], described['form']) == ('BasicSR', 'bfloat16', 'dense')


def test_numbers_of_eight_bits(tmp_path):
    path = tmp_path / 'net.safetensors'
    state = {name: tensor.to(torch.float8_e5m2) for name, tensor in BasicVSR(8, 1).state_dict().items()}
    state['conv_last.bias'][1] = math.inf
    save_file(state, path)
    described = describe(path)
    assert (described['dtype'], described['not_finite']) == ('float8_e5m2', ['conv_last.bias'])


def test_figures_that_json_does_not_know(tmp_path, capsys):
    path = tmp_path / 'net.safetensors'
    options = {'pruning': {'score': 'l1', 'scope': 'global', 'ratio': 10**400, 'budget': 'units'}}
    save_network(tiny_net(), path, metrics={'Vid4': {'psnr': math.inf, 'ssim': 1.0}}, options=options)
    assert cli.main(['info', '--json', str(path)]) == 0
    described = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert described['figures'] == {'Vid4': {'psnr': None, 'ssim': 1.0}} and described['method'] is None


@pytest.mark.parametrize('change', [{'args': {'\x1b[2J': 1}}, {'arch': '\x1b[2J'}, {'format': '\x1b[2J'},
                                    {'widths': {'\x1b[2J': 1}}, {'\x1b[2J': 1}])
def test_refusals_do_not_steer_the_terminal(tmp_path, capsys, change):
    path = tmp_path / 'net.safetensors'
    spec = {**json.loads(tiny_net().spec.to_json()), **change}
    save_file(tiny_net().state_dict(), path, metadata={'basicsr_ssl': json.dumps({'spec': spec})})
    assert cli.main(['info', str(path)]) == 1
    assert (said := capsys.readouterr().err) and said.replace('\n', '').isprintable()


@pytest.mark.parametrize('value', [31.0, 'text', ['a', 1], {'a': 1}, {'a': {'b': 'c'}}, {'kept': {'a': [1]}}, None])
def test_provenance_of_any_kind(tmp_path, value):
    path = tmp_path / 'net.safetensors'
    save_network(with_gates(tiny_net()), path, parents=value, metrics=value, options=value, selection=value,
                 kept=value, stage=value, method=value)
    described = describe(path)
    assert described['stage'] == described['parents'] == described['figures'] == value
    assert described['selected'] is None and 'PrunableBasicVSR, gated' in format_info(described, 100)


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path):
    path = tmp_path / 'net.safetensors'
    save_network(tiny_net(), path, stage='a\x1b[2Jb', note='schön\r\n\u202e')
    text = format_info(describe(path), 100, True)
    assert 'a?[2Jb' in text and 'schön???' in text and text.replace('\n', '').isprintable()
    assert 'sch?n???' in format_info(describe(path), 100, False)


def test_what_is_no_network_of_ours(tmp_path, capsys):
    save_file({'x': torch.zeros(3)}, tmp_path / 'x.safetensors')
    torch.save({'params': nn.Conv2d(1, 1, 1).state_dict()}, tmp_path / 'conv.pth')
    (tmp_path / 'text.pth').write_text('hello')
    for name in ('x.safetensors', 'conv.pth', 'text.pth'):
        with pytest.raises(ValueError, match=name):
            describe(tmp_path / name)
        assert cli.main(['info', str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.startswith(f'basicsr-ssl: {tmp_path / name}')
    with pytest.raises(FileNotFoundError, match=r'missing\.pth'):
        describe(tmp_path / 'missing.pth')


def test_a_real_edsr(test_data):
    described = describe(test_data / 'weights' / 'EDSR_x2_f64b8.pth')
    assert (described['arch'], described['form'], described['format']) == ('PrunableEDSR', 'dense', 'BasicSR')
    # 3 to 64, 17 times 64 to 64, 64 to 256, 64 to 3 channels
    assert described['params'] == 1792 + 17 * 36_928 + 147_712 + 1731


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    save_network(cut(tiny_net(bidirectional=False)), tmp_path / 'net.safetensors', stage='cut')
    described = describe(tmp_path / 'net.safetensors')
    assert cli.main(['info', str(tmp_path / 'net.safetensors'), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == described
    assert cli.main(['info', str(tmp_path / 'net.safetensors')]) == 0
    assert capsys.readouterr().out == format_info(described, 90) + '\n'


def test_a_published_size(tmp_path):
    """BasicVSR as published: 4,851,011 parameters, 6,291,311 with SPyNet, 337.8 G MACs."""
    path = tmp_path / 'basicvsr.safetensors'
    save_network(PrunableBasicVSR(), path)
    described = describe(path)
    assert (described['params'], described['params_with_flow']) == (4_851_011, 6_291_311)
    assert described['macs'] == pytest.approx(337.8e9, rel=1e-3)
    assert replace(basicsr_ssl.load_network(path).spec).form == described['form'] == 'dense'  # type: ignore[attr-defined]


def test_which_weights_there_are_and_which_are_shown(tmp_path, capsys):
    one, two = BasicVSR(num_feat=8, num_block=1), BasicVSR(num_feat=12, num_block=1)
    path = tmp_path / 'net.pth'
    torch.save({'params': one.state_dict(), 'params_ema': two.state_dict()}, path)
    for key, feat in ((None, 12), ('params_ema', 12), ('params', 8)):
        described = describe(path, key)
        assert described['param_keys'] == ['params_ema', 'params'] and described['args']['num_feat'] == feat
        assert cli.main(['info', str(path), *(['--param-key', key] if key else [])]) == 0
        said = capsys.readouterr().out
        said = ' '.join(said.split())
        assert f'weights {key or "params_ema"}; there are params_ema, params' in said and f'num_feat {feat}' in said
    torch.save(one.state_dict(), path)
    assert describe(path)['param_keys'] == [] and '\nweights' not in format_info(describe(path), 100)


def test_whether_a_checksum_was_verified(tmp_path):
    path = tmp_path / 'net.safetensors'
    save_network(tiny_net(), path)
    assert describe(path)['checksum'] is True and 'checksum   verified\n' in format_info(describe(path), 100)
    metadata = read_metadata(path)
    del metadata['checksum']
    save_file(load_file(path), path, metadata={'basicsr_ssl': json.dumps(metadata)})
    assert describe(path)['checksum'] is False and 'checksum   absent: ' in format_info(describe(path), 100)
    torch.save(BasicVSR(num_feat=8, num_block=1).state_dict(), path)
    assert describe(path)['checksum'] is None and '\nchecksum' not in format_info(describe(path), 100)


def test_what_tensors_cannot_tell_is_said(tmp_path, capsys):
    path = tmp_path / 'net.pth'
    torch.save({name: tensor for name, tensor in BasicVSR(num_feat=8, num_block=1).state_dict().items()
                if not name.startswith('spynet')}, path)
    assert cli.main(['info', str(path)]) == 1 and '--assume flow=none' in capsys.readouterr().err
    assert cli.main(['info', str(path), '--json', '--assume', 'flow=none', '--assume', 'act=relu']) == 0
    args = json.loads(capsys.readouterr().out)['args']
    assert (args['flow'], args['act']) == ('none', 'relu')


def test_several_files_at_once(tmp_path, capsys):
    good = [str(tmp_path / 'a.safetensors'), str(tmp_path / 'b.safetensors')]
    for seed, path in enumerate(good):
        save_network(tiny_net(seed=seed), path)
    assert cli.main(['info', *good]) == 0
    assert capsys.readouterr().out == '\n\n'.join(format_info(describe(path)) for path in good) + '\n'
    assert cli.main(['info', good[0], str(tmp_path / 'gone.pth'), good[1], '--json']) == 1
    said = capsys.readouterr()
    assert [entry['file'] for entry in json.loads(said.out)] == good
    assert said.err == f'basicsr-ssl: no such file: {tmp_path}/gone.pth\n'


def test_entries_of_the_zoo(tmp_path, capsys, monkeypatch):
    path = tmp_path / 'net.safetensors'
    save_network(tiny_net(), path)
    asked = []
    monkeypatch.setattr(zoo, 'resolve', lambda name: asked.append(name) or str(path))
    assert cli.main(['info', 'zoo://NAME']) == 0 and 'net.safetensors: PrunableBasicVSR' in capsys.readouterr().out
    assert cli.main(['convert', 'zoo://NAME', str(tmp_path / 'copy.safetensors')]) == 0
    assert asked == ['zoo://NAME'] * 2 and (tmp_path / 'copy.safetensors').exists()


def test_long_provenance_is_cut(tmp_path):
    said: dict[str, Any] = {'stage': 'x' * 10**6, 'note': 'y' * 10**6, 'z' * 10**6: 1}
    save_network(tiny_net(), tmp_path / 'net.safetensors', **said)
    assert len(format_info(describe(tmp_path / 'net.safetensors'), 100)) < 5000
