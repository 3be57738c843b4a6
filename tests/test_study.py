"""The study of naive pruning: its recipes and its script, at a small size, against what the networks are."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import tiny_net
from safetensors.torch import load_file
from tiny_runs import write_clips

from basicsr_ssl import load_network, prune_network, save_network
from basicsr_ssl.checkpoints.store import read_metadata

ROOT = Path(__file__).parents[1]
SMALL = ['num_gpu=0', 'network_g:num_feat=8', 'network_g:num_block=2', 'network_g:tail_feat=6',
         'datasets:train:num_worker_per_gpu=0', 'datasets:train:batch_size_per_gpu=1', 'train:amp=~',
         'datasets:val:max_frames=2', 'datasets:val_2:max_frames=2', 'path:pretrain_network_g=dense.safetensors',
         'logger:print_freq=1', 'logger:save_checkpoint_freq=2']
FEW = ['stages:finetune:train:total_iter=2', 'stages:finetune:train:scheduler:periods=[2]']


def script() -> Any:
    spec = importlib.util.spec_from_file_location('pruning_study', ROOT / 'scripts/pruning_study.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    samples = tmp_path / 'datasets/samples'
    for name in ('videos', 'redstiles', 'vimeo90k/sequences'):
        write_clips(samples / name, clips=1, frames=5, size=(136, 144))
    write_clips(samples / 'allphotos', clips=1, frames=1, size=(300, 300))
    write_clips(samples / 'vid4/GT', clips=2, frames=3, size=(32, 32))
    write_clips(samples / 'vid4/BIx4', clips=2, frames=3, size=(8, 8))
    for name, size in (('GT', 32), ('BIx4', 8)):
        (write_clips(samples / 'reds' / name, clips=1, frames=3, size=(size, size)) / 'clip_0').rename(
            samples / 'reds' / name / 'seq_3')
    (tmp_path / 'options').symlink_to(ROOT / 'options')
    net = tiny_net()
    with torch.no_grad():
        net.conv_last.weight.mul_(0.3)
    save_network(net, 'dense.safetensors')
    return tmp_path


def study(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, 'argv', ['pruning_study.py', *arguments])
    return script().main()


def test_the_whole_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ['--rows', 'grouped:0', 'unstructured:0.5', 'naive:0.15', 'grouped:0.25', 'aware:0.25']
    aware = ['stages:aware:train:total_iter=2', 'stages:aware:sparsity:interval=1']
    # first what needs no training
    assert study(monkeypatch, *rows[:-1], '--before', '--force_yml', *SMALL, *FEW) == 0
    said = json.loads(Path('results/pruning_vsr_clips/study.json').read_text())
    assert [(row['method'], row['ratio'], row['after']) for row in said] == [
        ('unstructured', 0.5, None), ('naive', 0.15, None), ('grouped', 0.0, None), ('grouped', 0.25, None)]
    pruned = load_file('experiments/pruning_vsr_clips_naive_15/pruning/models/net_g_latest.safetensors')
    dense: Any = load_network('dense.safetensors')
    expected: Any = prune_network(dense, 0.15, structure='filters', score='l1', scope='local')
    assert all(torch.equal(pruned[name], tensor) for name, tensor in expected.state_dict().items())
    before = {path: path.stat().st_mtime_ns for path in Path('experiments').rglob('*.safetensors')}

    # then the rest; what is there stays as it is
    assert study(monkeypatch, *rows[:-1], '--force_yml', *SMALL, *FEW) == 0
    assert study(monkeypatch, '--rows', rows[-1], '--force_yml', *SMALL, *FEW, *aware) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said = {(row['method'], row['ratio']): row
            for row in json.loads(Path('results/pruning_vsr_clips/study.json').read_text())}
    assert len(said) == 5 and list(said[('aware', 0.25)]['after']) == ['Vid4', 'REDS_000']
    for (method, ratio), row in said.items():
        stages = Path(f'experiments/pruning_vsr_clips_{method}_{ratio * 100:g}')
        files = [stages / stage / 'models/net_g_latest.safetensors' for stage in ('pruning', 'finetune')]
        assert [row['before'], row['after']] == [read_metadata(file)['metrics'] for file in files]
        net: Any = load_network(files[1])
        if method in ('naive', 'unstructured'):
            masks = [mask for name, mask in net.named_buffers() if name.endswith('_mask')]
            assert row['left'] == sum(int(mask.sum()) for mask in masks)
            assert row['weights'] == sum(mask.numel() for mask in masks)
            assert row['bytes_sparse'] < row['bytes'] and net.spec.widths == {}
        else:
            assert row['params'] == sum(p.numel() for p in net.parameters()) and bool(net.spec.widths) == bool(ratio)
        learnt = [read_metadata(file)['iteration'] for file in files]
        assert learnt == [-1, -1] and row['before'] != row['after']
    table = Path('results/pruning_vsr_clips/tables.md').read_text()
    nothing = ['-'] * 3
    for (method, ratio), published in {
            ('grouped', 0.0): ['31.41', '-', '0.8909'], ('unstructured', 0.5): ['22.35', '30.59', '0.8736'],
            ('naive', 0.15): ['6.95', '22.74', '-'], ('grouped', 0.25): nothing, ('aware', 0.25): nothing}.items():
        row, name = said[method, ratio], method if ratio else 'dense'
        ours = [f'{row["before"]["Vid4"]["psnr"]:.2f}', f'{row["after"]["Vid4"]["psnr"]:.2f}',
                f'{row["after"]["Vid4"]["ssim"]:.4f}']
        lines = [[cell.strip() for cell in line.split('|')[1:9]] for line in table.splitlines()
                 if line.startswith(f'| {name}')]
        assert lines == [[name, f'{ratio:.0%}', *published, *ours]] * (1 if ratio else 2)
    for name in ('before.png', 'after.png'):
        assert Path('results/pruning_vsr_clips', name).stat().st_size > 5000

    # nothing is left to do
    before = {path: path.stat().st_mtime_ns for path in Path('experiments').rglob('*') if path.is_file()}
    assert study(monkeypatch, *rows[:-1], '--force_yml', *SMALL, *FEW) == 0
    assert {path: path.stat().st_mtime_ns for path in Path('experiments').rglob('*') if path.is_file()} == before
    shutil.rmtree(folder / 'experiments')


def test_pruning_aware_training_from_a_new_network(folder: Path) -> None:
    from basicsr_ssl import pipeline
    overrides = [entry for entry in SMALL if not entry.startswith('path')] + FEW + [
        'path:pretrain_network_g=~', 'stages:aware:train:total_iter=2', 'stages:aware:sparsity:interval=1',
        'pruning:ratio=0.25']
    assert pipeline.train('options/train/pruning_vsr/train_clips_aware.yml', overrides=overrides) == 0
    stages = {name: Path(f'experiments/pruning_vsr_clips_aware/{name}/models/net_g_latest.safetensors')
              for name in ('aware', 'pruning', 'finetune')}
    kept = read_metadata(stages['aware'])['selection']['kept']
    pruned: Any = load_network(stages['pruning'])
    assert {group.name: group.size for group in pruned.groups} == {name: len(units) for name, units in kept.items()}
    assert pruned.spec.widths['fusion'] == 6
    assert read_metadata(stages['finetune'])['method'].startswith('sparsity learning: l2, local, 25.00% of units')


@pytest.mark.parametrize('row', ['naive', 'naive:', 'naive:1', 'naive:x', 'clever:0.1'])
def test_rows_that_are_none_are_refused(row: str, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study(monkeypatch, '--rows', row)
    assert 'should look like naive:0.15, with unstructured, naive, grouped, aware' in capsys.readouterr().err
