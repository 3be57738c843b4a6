"""`basicsr-ssl sensitivity`: every figure again by hand, and its ratios in an option file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from nets import tiny_net
from tiny_runs import write_clips, write_options

from basicsr_ssl import load_network, save_network
from basicsr_ssl.api import cut_network
from basicsr_ssl.archs import StandaloneSpyNet
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.cli import main
from basicsr_ssl.data.degradations import degrade
from basicsr_ssl.report.sensitivity import measure_parts, parts, shares_within


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / 'clips', clips=2, frames=3, size=(32, 40))
    net = tiny_net()
    with torch.no_grad():
        net.conv_last.weight.mul_(0.3)  # frames that are not clipped everywhere
    save_network(net, 'net.safetensors')
    return tmp_path


def psnr_by_hand(net: Any, clips: Path, frames: int) -> float:
    """Mean over clips of the mean over frames, of the Y channel of 8-bit frames."""
    means = []
    for clip in sorted(clips.iterdir()):
        gt: Any = [cv2.imread(str(file)) for file in sorted(clip.iterdir())[:frames]]
        lq = torch.stack([degrade(torch.from_numpy(image[..., ::-1].copy()).movedim(2, 0).float() / 255, 'BI', 4)
                          for image in gt])
        lq = (lq.clamp(0, 1) * 255).round() / 255
        with torch.no_grad():
            out = net(lq[None])[0]
        shown = [np.ascontiguousarray((frame.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()[..., ::-1])
                 for frame in out]
        means.append(np.mean([calculate_psnr(a, b, crop_border=0, test_y_channel=True) for a, b in zip(shown, gt)]))
    return float(np.mean(means))


def weakest_removed(net: Any, group: str, layer: str, count: int) -> Any:
    norms = net.get_submodule(layer).weight.detach().abs().sum((1, 2, 3))
    if group.startswith('upconv'):
        norms = norms.view(-1, 4).sum(1)
    if group.endswith('.in'):
        norms = net.get_submodule(layer).weight.detach().abs().sum((0, 2, 3))
    return sorted(norms.argsort()[count:].tolist())


def test_every_figure_is_that_of_the_network_without_these_units(folder: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['sensitivity', 'net.safetensors', '--data', 'clips', '--max-frames', '2', '--shares', '0.25', '0.5',
                 '--max-drop=-0.005', '--output', 'out']) == 0
    said, net = json.loads(Path('out/sensitivity.json').read_text()), load_network('net.safetensors')
    assert said['psnr'] == pytest.approx(psnr_by_hand(net, folder / 'clips', 2), abs=1e-6)
    layers: dict[str, dict[str, str]] = {'fusion': {'fusion': 'fusion'}, 'upconv2': {'upconv2': 'upconv2'}}
    for kind, layer in (('in', 'conv1'), ('mid', 'conv1'), ('out', 'conv2')):
        layers[kind] = {f'{trunk}.main.2.{j}.{kind}': f'{trunk}.main.2.{j}.{layer}'
                        for trunk in ('backward_trunk', 'forward_trunk') for j in range(2)}
    sizes = {group.name: group.size for group in net.groups}  # type: ignore[union-attr]
    values = []
    for kind, groups in layers.items():
        assert said['parts'][kind]['groups'] == list(groups)
        for share, value in zip((0.25, 0.5), said['parts'][kind]['psnr'], strict=True):
            kept = {group: weakest_removed(net, group, layer, int(share * sizes[group] + 0.5))
                    for group, layer in groups.items()}
            assert value == pytest.approx(psnr_by_hand(cut_network(net, kept), folder / 'clips', 2), abs=1e-6)
            values.append(value)
    assert len(set(values)) == len(values) and set(said['parts']) == {*layers, 'upconv1', 'conv_hr'}
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith('| fusion'))
    assert [float(cell) for cell in row.split('|')[2:4]] == [round(v, 2) for v in said['parts']['fusion']['psnr']]
    assert Path('out/heatmap.png').stat().st_size and Path('out/table.md').read_text().splitlines()[2] in shown

    # what the file says is what an option file removes
    ratios = {name: share for name, share in said['ratios'].items() if share}
    assert ratios and len(ratios) < len(sizes)
    options = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0,
               'pruning': {'ratios': 'out/sensitivity.json', 'score': 'l1'},
               'path': {'pretrain_network_g': 'net.safetensors'}, 'logger': {'use_tb_logger': False}}
    assert main(['train', '-opt', str(write_options(Path('o.yml'), options))]) == 0
    output = 'experiments/pruned/models/net_g_latest.safetensors'
    pruned: Any = load_network(output)
    assert pruned.spec.widths == {name: sizes[name] - int(share * sizes[name] + 0.5) for name, share in ratios.items()}
    # the file's contents are part of what was asked for, and not its name
    told = read_metadata(output)
    assert told['options']['pruning']['ratios'] == said['ratios'] and 'ratios of units' in told['method']


def test_single_groups() -> None:
    net = tiny_net(bidirectional=False)
    named = parts(net, 'group')
    assert named == {group.name: [group.name] for group in net.groups}
    seen = []

    def psnr(pruned: Any) -> float:
        seen.append(pruned.spec.widths)
        return float(len(seen))

    found = measure_parts(net, psnr, named, (0.25, 0.5), 'l2', lambda line: None)
    assert found['psnr'] == 1 and found['parts']['upconv1'] == {'groups': ['upconv1'], 'psnr': [14.0, 15.0]}
    assert seen[13:15] == [{'upconv1': 6}, {'upconv1': 4}] and seen[0] == {}


def test_the_largest_share_within_a_drop() -> None:
    found = {'psnr': 30.0, 'parts': {
        'a': {'groups': ['x.a', 'y.a'], 'psnr': [29.95, 29.92, 29.0]},
        'b': {'groups': ['b'], 'psnr': [29.8, 29.99, 29.99]},
        'c': {'groups': ['c'], 'psnr': [30.5, float('nan'), 30.0]},
        'd': {'groups': ['d'], 'psnr': [30.0, 29.95, 30.1]}}}
    assert shares_within(found, (0.1, 0.2, 0.3), 0.1) == {'x.a': 0.2, 'y.a': 0.2, 'b': 0, 'c': 0.1, 'd': 0.3}
    reverse = {**found, 'parts': {name: {**part, 'psnr': part['psnr'][::-1]} for name, part in found['parts'].items()}}
    assert shares_within(reverse, (0.3, 0.2, 0.1), 0.1) == {'x.a': 0.2, 'y.a': 0.2, 'b': 0, 'c': 0.1, 'd': 0.3}


def test_what_cannot_be_measured_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_network(StandaloneSpyNet(), 'flow.safetensors')
    assert main(['sensitivity', 'flow.safetensors', '--data', 'clips']) == 1
    assert 'holds a StandaloneSpyNet, which makes no frames' in capsys.readouterr().err
    assert main(['sensitivity', 'net.safetensors', '--data', 'clips', '--shares', '1']) == 1
    assert 'must be in [0, 1)' in capsys.readouterr().err
