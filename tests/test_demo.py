"""The demo from its option file to its report, by the command line, at a tiny size; and what a second run does."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.matlab_functions import imresize
from PIL import Image

from basicsr_ssl import config, zoo
from basicsr_ssl.checkpoints.store import load_network, read_metadata
from basicsr_ssl.cli import main

OPTIONS = Path(__file__).parents[1] / 'options/demo'
DEMO = OPTIONS / 'demo_from_scratch.yml'
STAGES = ['dense', 'sparsity', 'prune', 'finetune', 'prune_l1', 'finetune_l1']
ROWS = ['bicubic', 'dense', 'ssl_cut', 'ssl', 'l1_cut', 'l1']
SMALL = [
    'name=demo', 'num_gpu=0',
    'datasets:train:gt_size=32', 'datasets:train:num_frame=2', 'datasets:train:batch_size_per_gpu=1',
    'datasets:test:gt_size=[64, 96]', 'datasets:test:num_frame=3', 'train:total_iter=4', 'train:warmup_iter=-1',
    *(f'stages:{stage}:train:scheduler:periods=[4]' for stage in ('dense', 'finetune', 'finetune_l1')),
    *(f'stages:dense:network_g:{size}' for size in ('num_feat=8', 'num_block=1', 'tail_feat=8')),
    'pruning:round_to=1', 'pruning:min_keep=1', 'pruning:lr_size=[16, 24]',
    'report:lr_size=[16, 24]', 'report:crop=12', 'logger:save_checkpoint_freq=2', 'logger:print_freq=2',
    # four iterations improve nothing
    'report:expect=[{row: dense, metric: psnr, over: bicubic, at_least: -9}, '
    '{row: ssl, metric: psnr, over: dense, at_least: -9}, {row: ssl, metric: macs, ratio_of: dense, at_most: 0.3334}]',
]


def run(root: Path, *overrides: str, code: int = 0) -> str:
    """Run the demo in the folder ``root``; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(['train', '-opt', str(DEMO), '--force_yml', *SMALL, *overrides]) == code
    return printed.getvalue()


@pytest.fixture(scope='module')
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a finished run, and what it printed."""
    root = tmp_path_factory.mktemp('demo')
    return root, run(root)


@pytest.fixture
def finished(first_run: tuple[Path, str], tmp_path: Path) -> Path:
    """A finished run for a test to change."""
    return Path(shutil.copytree(first_run[0], tmp_path / 'demo'))


def read_rows(root: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((root / 'results/demo/summary.json').read_text())
    assert [row['network'] for row in rows] == ROWS
    return {row['network']: row for row in rows}


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of every stage."""
    folder = root / 'experiments/demo'
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(folder.rglob('*')) if path.is_file()}


def touched(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    """The stages in whose folders something was written, moved or added."""
    return {name.split('/')[0].split('_archived_')[0] for name in before.keys() | after.keys()
            if before.get(name) != after.get(name)}


def output(root: Path, stage: str) -> Path:
    return root / 'experiments/demo' / stage / 'models/net_g_latest.safetensors'


def test_figures(first_run: tuple[Path, str]) -> None:
    rows = read_rows(first_run[0])
    keys = ('params', 'params_with_flow', 'macs', 'macs_with_flow', 'ms_per_frame', 'psnr', 'ssim')
    for row in rows.values():
        assert all(np.isfinite(row[key]) for key in keys)
        # there is no flow network in the demo
        assert (row['params_with_flow'], row['macs_with_flow']) == (row['params'], row['macs'])
        assert row['ms_per_frame'] > 0 and 5 < row['psnr'] < 50 and 0 < row['ssim'] < 1
    assert (rows['bicubic']['params'], rows['bicubic']['macs']) == (0, 0)
    for label in ROWS[2:]:
        assert 0 < rows[label]['macs'] <= rows['dense']['macs'] / 3
    assert [first_run[0] / rows[label]['file'] for label in ROWS[1:]] == [
        output(first_run[0], stage) for stage in ('dense', 'prune', 'finetune', 'prune_l1', 'finetune_l1')]


def test_bicubic_figures_are_those_of_basicsr(first_run: tuple[Path, str]) -> None:
    """BasicSR's imresize on the held-out clips, its metrics on the rounded frames: means of clips of frames."""
    options = config.stage_options(config.load_options(DEMO, SMALL))['dense']
    dataset = build_dataset(options['datasets']['test'])
    clips = []
    for item in (dataset[i] for i in range(len(dataset))):
        scores = []
        for lq, gt in zip(item['lq'], item['gt'], strict=True):
            truth = gt.numpy().transpose(1, 2, 0)[..., ::-1]
            small = np.floor(imresize(truth.astype(np.float64), 0.25).clip(0, 255) + 0.5)
            np.testing.assert_array_equal(small, lq.numpy().transpose(1, 2, 0)[..., ::-1])
            image = np.rint(imresize(small.astype(np.float64), 4).clip(0, 255)).astype(np.uint8)
            scores.append([metric(image, truth, crop_border=4, test_y_channel=True)
                           for metric in (calculate_psnr, calculate_ssim)])
        clips.append(np.mean(scores, axis=0))
    assert len(clips) == 2
    seen = read_rows(first_run[0])['bicubic']
    # an output halfway between two levels may be rounded either way
    assert [seen['psnr'], seen['ssim']] == pytest.approx(np.mean(clips, axis=0).tolist(), abs=1e-3)


def test_table_is_printed(first_run: tuple[Path, str]) -> None:
    root, printed = first_run
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in printed.splitlines() if '|' in line]
    head, table = lines[0], {line[0]: line for line in lines}
    for label, row in read_rows(root).items():
        assert table[label][head.index('PSNR')] == f'{row["psnr"]:.2f}'
        assert table[label][head.index('SSIM')] == f'{row["ssim"]:.4f}'


def test_picture(first_run: tuple[Path, str]) -> None:
    """Two photographs; LR, six networks and GT of each, none smaller than a stamp nor larger than a screen."""
    with Image.open(first_run[0] / 'results/demo/comparison.png') as image:
        image.load()
        pixels = np.asarray(image.convert('RGB'))
    height, width = pixels.shape[:2]
    assert 8 * 200 < width < 8 * 400 and 2 * 200 < height < 2 * 400
    panels = [pixels[:height // 2, i * width // 8:(i + 1) * width // 8] for i in range(8)]
    assert all(panel.std() > 5 for panel in panels)  # none is blank


def test_networks_say_where_they_come_from(first_run: tuple[Path, str]) -> None:
    forms = dict(zip(STAGES, ('dense', 'gated', 'compact', 'compact', 'compact', 'compact')))
    for stage in STAGES:
        metadata = read_metadata(output(first_run[0], stage))
        assert metadata['stage'] == f'demo/{stage}'
        spec = metadata['spec']
        assert ('gated' if spec['gated'] else 'compact' if spec['widths'] else 'dense') == forms[stage]
    finetune = read_metadata(output(first_run[0], 'finetune'))
    assert set(finetune['parents']) == {'pretrain_network_g', 'pretrain_network_teacher'}


def test_a_second_call_trains_nothing(finished: Path) -> None:
    before = files(finished)
    run(finished)
    assert touched(before, files(finished)) == set()


@pytest.mark.parametrize('stage', ['dense', 'finetune'])
def test_a_missing_output_is_made_again_from_the_last_state(finished: Path, stage: str) -> None:
    before = files(finished)
    content = output(finished, stage).read_bytes()
    output(finished, stage).unlink()
    run(finished)
    assert output(finished, stage).read_bytes() == content  # so the stages that start from it stay
    assert touched(before, files(finished)) == {stage}


@pytest.mark.parametrize('stage', ['sparsity', 'prune_l1'])
def test_a_missing_stage_is_made_again_and_nothing_else(finished: Path, stage: str) -> None:
    before = files(finished)
    content = output(finished, stage).read_bytes()
    shutil.rmtree(finished / 'experiments/demo' / stage)
    run(finished)
    assert output(finished, stage).read_bytes() == content
    assert touched(before, files(finished)) == {stage}


def test_a_changed_stage_changes_what_depends_on_it(finished: Path) -> None:
    before = files(finished)
    content = output(finished, 'sparsity').read_bytes()
    run(finished, 'stages:sparsity:sparsity:delta=0.05')
    assert output(finished, 'sparsity').read_bytes() != content
    after = files(finished)
    assert touched(before, after) == {'sparsity', 'prune', 'finetune'}
    # and what was there is kept beside it
    aside = [name for name in after if name.startswith('sparsity_archived_') and name.endswith('latest.safetensors')]
    assert [after[name][1] for name in aside] == [content]


def test_a_missed_figure_fails_the_command(finished: Path) -> None:
    run(finished, 'report:expect=[{row: dense, metric: psnr, at_least: 60}]', code=2)


def test_the_demo_begins_with_the_network_that_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [change for change in SMALL if 'stages:dense' not in change]
    assert main(['train', '-opt', str(OPTIONS / 'demo.yml'), '--force_yml', *changes, 'train:total_iter=1',
                 'stages:dense:train:total_iter=0', 'report:expect=[]']) == 0
    rows, carried = read_rows(tmp_path), load_network(zoo.resolve('zoo://basicvsr_small_x4'), dtype=torch.float32)
    dense = load_network(output(tmp_path, 'dense'))
    assert all(torch.equal(a, b) for a, b in zip(dense.state_dict().values(), carried.state_dict().values()))
    assert rows['dense']['params'] == 291_363 > 2 * rows['ssl']['params']
    # what was trained on real clips is better than bicubic at once, on any clip
    assert rows['dense']['psnr'] > rows['bicubic']['psnr'] + 0.3
    page = (tmp_path / 'results/demo/report.html').read_text()
    for part in ('Tests', 'Recipes', 'Crops', 'Along time', 'Frame by frame', 'Kept units'):
        assert f'<h2>{part}</h2>' in page


@pytest.mark.parametrize('name, promises', [
    ('demo', [{'row': 'dense', 'metric': 'psnr', 'value': 28.38, 'tolerance': 0.02},
              {'row': 'ssl_cut', 'metric': 'psnr', 'over': 'l1_cut', 'at_least': 0.5},
              {'row': 'ssl', 'metric': 'psnr', 'over': 'ssl_cut', 'at_least': 0.0}]),
    ('demo_from_scratch', [{'row': 'dense', 'metric': 'psnr', 'over': 'bicubic', 'at_least': 0.3},
                           {'row': 'ssl', 'metric': 'psnr', 'over': 'dense', 'at_least': -0.3}])])
def test_what_the_demo_promises(name: str, promises: list[dict[str, Any]]) -> None:
    """At full size: what the cut costs and what training brings back, at a third of the MACs at most."""
    expected = [{key: value for key, value in entry.items() if value is not None}
                for entry in config.load_options(OPTIONS / f'{name}.yml')['report']['expect']]
    for promise in [*promises, {'row': 'ssl', 'metric': 'macs', 'ratio_of': 'dense', 'at_most': 0.3334}]:
        assert promise in expected
