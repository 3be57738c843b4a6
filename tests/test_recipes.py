"""Every recipe of BasicVSR runs, from the files that it names to its report; only the sizes are smaller."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.spynet_arch import SpyNet
from safetensors.torch import load_file

from basicsr_ssl import config, load_network, pipeline, save_network, zoo
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints.store import read_metadata

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / 'options/train/BasicVSR').glob('*.yml'))
# one of each kind and dataset; all of them with `-m slow`
QUICK = ('BasicVSR_REDS_l1', 'BasicVSR_Vimeo90K_BDx4', 'BasicVSR_Vimeo90K_BIx4_oneshot_l1',
         'BasicVSR_REDS_BIx4_assl', 'BasicVSRuni_REDS_dense_BIx4')
RATIO = 0.7276  # of MACs, as docs/method.md says
LR = 16  # side of the LR frames
SMALL = [
    'num_gpu=0', 'network_g:num_feat=8', 'network_g:num_block=1',
    'datasets:train:gt_size=32', 'datasets:train:num_frame=2', 'datasets:train:num_worker_per_gpu=0',
    'datasets:val:max_frames=2', 'datasets:test:max_frames=2',
    'datasets:val:allow_partial=true', 'datasets:test:allow_partial=true',
    # the flow network is frozen in the first iteration and thaws in the second
    'train:total_iter=2', 'train:scheduler:periods=[2]', 'train:fix_flow=2', 'logger:print_freq=1',
]
ALSO_PRUNED = [f'pruning:lr_size=[{LR}, {LR}]', f'report:lr_size=[{LR}, {LR}]', 'report:crop=8']


@pytest.fixture(scope='module')
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """REDS, Vimeo90K and Vid4 as datasets/README.md lays them out, in tiny; every clip of a set is the same one."""
    root = tmp_path_factory.mktemp('datasets')
    rng = np.random.default_rng(0)

    def write(folder: Path, names: list[str], side: int) -> Path:
        folder.mkdir(parents=True)
        picture = cv2.GaussianBlur(rng.random((side + len(names), side, 3)), (0, 0), 2)
        picture = (picture - picture.min()) / np.ptp(picture) * 255
        for j, name in enumerate(names):
            cv2.imwrite(str(folder / name), picture[j:j + side].round().astype(np.uint8))
        return folder

    shutil.copytree(ROOT / 'datasets/meta_info', root / 'meta_info')
    for part, side in (('train_sharp', 4 * LR), ('train_sharp_bicubic/X4', LR)):
        clip = write(root / 'clips' / part, [f'{j:08d}.png' for j in range(100)], side)
        (root / 'REDS' / part).mkdir(parents=True)
        for number in range(270):
            (root / 'REDS' / part / f'{number:03d}').symlink_to(clip)
    septuplets = root / 'vimeo90k/vimeo_septuplet'
    for name in ('00001/0001', '00001/0002', '00096/0936'):
        write(septuplets / 'sequences' / name, [f'im{j}.png' for j in range(1, 8)], 4 * LR)
    (septuplets / 'sep_trainlist.txt').write_text('00001/0001\n00001/0002\n00096/0936\n\n')
    for name in ('calendar', 'city', 'foliage', 'walk'):
        write(root / 'Vid4/GT' / name, [f'{j:08d}.png' for j in range(3)], 4 * LR)
    return root


@pytest.fixture
def folder(tmp_path: Path, benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the recipe runs: with the benchmarks, and with the files that somebody else made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'datasets').symlink_to(benchmarks)
    yield tmp_path
    shutil.rmtree(tmp_path)  # with the flow network in it, a training state is tens of megabytes


def make_inputs(named: set[str]) -> set[str]:
    """The networks that a recipe starts from, where it looks for them; a list of networks that has their checksums."""
    zoo_list = yaml.safe_load((ROOT / zoo.LIST).read_text())
    files = {name: str(Path(zoo.FOLDER, zoo.find(name).file)) if name.startswith(zoo.PREFIX) else name
             for name in named}
    for reference, name in files.items():
        torch.manual_seed(0)
        path = Path(name)
        path.parent.mkdir(parents=True)
        if path.name.startswith('spynet'):
            torch.save({'params': SpyNet().state_dict()}, path)
        elif path.suffix == '.pth':  # as BasicSR trains and saves it
            net = BasicVSR(num_feat=8, num_block=1)
            torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, path)
        else:  # as the recipe of the dense unidirectional network leaves it
            assert 'uni' in name and 'dense' in name
            net = PrunableBasicVSR(num_feat=8, num_block=1, bidirectional=False)
            torch.nn.init.normal_(net.conv_last.weight, std=0.05)  # 0 at the start: no gate would learn anything
            save_network(net, path)
        if reference.startswith(zoo.PREFIX):
            zoo_list['networks'][reference.removeprefix(zoo.PREFIX)]['sha256'] = sha256(name)
    Path(zoo.LIST).parent.mkdir()
    Path(zoo.LIST).write_text(yaml.safe_dump(zoo_list))
    return set(files.values())


def macs(path: Path) -> int:
    """Multiply-accumulates for one frame without the flow network, from the shapes of the saved weights alone."""
    pixels = {'upconv2': 4, 'conv_hr': 16, 'conv_last': 16}  # for each LR pixel, at x4
    return sum(weight.numel() * pixels.get(name.split('.')[0], 1) * LR * LR for name, weight in load_file(path).items()
               if weight.dim() == 4 and not name.startswith('spynet.'))


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('path', [pytest.param(path, id=path.stem.removeprefix('train_'), marks=(
    () if path.stem.removeprefix('train_') in QUICK else pytest.mark.slow)) for path in RECIPES])
def test_recipe(folder: Path, path: Path) -> None:
    written = config.load_options(path)
    recipe = bool(written.get('stages'))
    overrides = [*SMALL, *(ALSO_PRUNED if recipe else ())]
    stages = config.stage_options(written) if recipe else {'': written}
    if any(stage['sparsity'] and stage['sparsity']['select_iter'] for stage in stages.values()):
        overrides.append('stages:sparsity:sparsity:select_iter=1')
    inputs = {value for stage in stages.values() for value in
              (stage['path']['pretrain_network_g'], stage['path']['pretrain_network_teacher'],
               (stage['network_g'] or {}).get('spynet_path')) if value and not value.startswith('stage://')}
    assert inputs
    inputs = make_inputs(inputs)

    assert pipeline.train(str(path), overrides=overrides) == 0

    outputs = {name: Path('experiments', written['name'], name, 'models/net_g_latest.safetensors') for name in stages}
    for name, output in outputs.items():
        check_stage(name, output, outputs, config.load_options(output.parents[1] / 'options.yml'))
    if not recipe:
        flow = torch.load(next(iter(inputs)), weights_only=True)['params']
        for name, weight in load_file(outputs['']).items():
            if name.startswith('spynet.'):  # one small step away from the file; a random start would differ by 0.01
                torch.testing.assert_close(weight, flow[name.removeprefix('spynet.')], rtol=0, atol=1e-4)
        return

    dense, compact = Path(next(name for name in inputs if 'dense' in name or name.endswith('.pth'))), list(outputs)[-1]
    if dense.suffix == '.pth':
        whole = Path('dense.safetensors')
        save_network(load_network(dense), whole)
    else:
        whole = dense
    assert macs(outputs['pruning']) <= (1 - RATIO) * macs(whole)
    assert macs(outputs[compact]) == macs(outputs['pruning'])  # finetuning does not change the shape
    report = json.loads((outputs['pruning'].parents[1] / 'report.json').read_text())
    assert (report['macs']['before'], report['macs']['after']) == (macs(whole), macs(outputs['pruning']))
    assert report['selection'] == ('one-shot' if 'oneshot' in path.stem else 'sparsity learning')

    rows = json.loads(Path('results', written['name'], 'summary.json').read_text())
    assert [row['network'] for row in rows] == ['bicubic', 'dense', 'compact']
    assert [row['macs'] for row in rows] == [0, macs(whole), macs(outputs['pruning'])]
    assert all(np.isfinite([row['psnr'], row['ssim'], row['ms_per_frame']]).all() for row in rows)
    test_set = 'Vid4' if 'Vimeo90K' in path.stem else 'REDS4'
    assert list(rows[0]['metrics']) == [test_set]
    table = Path('results', written['name'], 'summary.md').read_text()
    assert f'\n{test_set}: PSNR in dB and SSIM on {"Y" if test_set == "Vid4" else "RGB"}, ' in table
    assert 'only a part of the benchmark: ' in table

    before = times(folder / 'experiments')
    assert pipeline.train(str(path), overrides=overrides) == 0
    assert times(folder / 'experiments') == before


def check_stage(name: str, output: Path, outputs: dict[str, Path], opt: dict[str, Any]) -> None:
    """The network loads, and its file says where it comes from."""
    net: Any = load_network(output)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    metadata = read_metadata(output)
    assert metadata['stage'] == opt['name'] and metadata['model_type'] == opt['model_type']
    assert metadata['options']['train']['total_iter'] == (0 if opt['model_type'] == 'PruningModel' else 2)
    parents = {key: os.path.normpath(value) for key, value in opt['path'].items()
               if key.startswith('pretrain_network') and value}
    assert metadata['parents'] == {key: sha256(value) for key, value in parents.items()}
    # a recipe's stage goes on from the one before it
    names = list(outputs)
    if names.index(name):
        assert parents['pretrain_network_g'] == str(outputs[names[names.index(name) - 1]])
    learns = 'dense' if opt['sparsity'] and opt['sparsity']['type'] == 'SRP' else 'gated'
    assert net.spec.form == {'SparsityLearningModel': learns, 'PruningModel': 'compact',
                             'TemporalFinetuneModel': 'compact'}.get(opt['model_type'], net.spec.form)
    if net.spec.form == 'compact':  # a later stage inherits it
        assert metadata['method'].startswith(('sparsity learning: ', 'one-shot: '))
    assert (output.parents[1] / 'train.log').stat().st_size
    if metadata['options']['train']['total_iter']:
        assert (output.parents[1] / 'training_states/2.state').is_file()


def test_the_quick_ones_exist() -> None:
    assert set(QUICK) <= {path.stem.removeprefix('train_') for path in RECIPES}
