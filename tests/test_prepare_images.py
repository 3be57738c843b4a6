"""``basicsr-ssl prepare`` of single images: sub-images, LR, lists and LMDB, as BasicSR makes and reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from clips import write_noise
from PIL import Image

from basicsr_ssl import cli
from basicsr_ssl.data.degradations import degrade
from basicsr_ssl.data.preparation import image_sets


@pytest.fixture
def div2k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a DIV2K of two images, cut to pieces of 48 pixels that overlap by a half."""
    write_noise(tmp_path / 'DIV2K' / 'DIV2K_train_HR', ['0001.png'], (96, 120))
    write_noise(tmp_path / 'DIV2K' / 'DIV2K_train_HR', ['0002.png'], (62, 109), seed=1)
    monkeypatch.setattr(image_sets, 'SUB_IMAGE', 48)
    monkeypatch.setattr(image_sets, 'STEP', 24)
    small = replace(image_sets._TRAINING['div2k'], parts=(('DIV2K/DIV2K_train_HR', '{:04d}', 2),))
    monkeypatch.setitem(image_sets._TRAINING, 'div2k', small)
    return tmp_path


def run(root: Path, *arguments: str, name: str = 'div2k') -> int:
    return cli.main(['prepare', name, '--root', str(root), '--workers', '1', *arguments])


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def state_of(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob('*') if path.is_file()}


def test_sub_images_and_their_lr_are_those_of_the_whole_image(div2k: Path) -> None:
    assert run(div2k) == 0
    home = div2k / 'DIV2K'
    for name, rows, columns in (('0001', (0, 24, 48), (0, 24, 48, 72)), ('0002', (0, 12), (0, 24, 48, 60))):
        whole = pixels(home / 'DIV2K_train_HR' / f'{name}.png')
        whole = whole[:whole.shape[0] // 12 * 12, :whole.shape[1] // 12 * 12]
        places = [(top, left) for top in rows for left in columns]
        assert sorted(path.name for path in (home / 'DIV2K_train_HR_sub').glob(f'{name}*')) == \
            [f'{name}_s{i:03d}.png' for i in range(1, len(places) + 1)]
        for scale in (1, 2, 3, 4):
            folder = home / (f'DIV2K_train_LR_bicubic/X{scale}_sub' if scale > 1 else 'DIV2K_train_HR_sub')
            image = whole if scale == 1 else degrade(torch.from_numpy(whole).permute(2, 0, 1), 'BI', scale,
                                                              rounds_twice=True).permute(
                1, 2, 0).numpy()
            for number, (top, left) in enumerate(places, 1):
                piece = image[top // scale:(top + 48) // scale, left // scale:(left + 48) // scale]
                assert np.array_equal(pixels(folder / f'{name}_s{number:03d}.png'), piece)
    lines = (div2k / 'meta_info' / 'meta_info_DIV2K800sub_GT.txt').read_text().splitlines()
    assert len(lines) == 12 + 8 and lines[0] == '0001_s001.png (48,48,3)'


def test_places_are_those_of_basicsr() -> None:
    """extract_subimages.py of BasicSR: every step, and the last one flush with the edge."""
    for side in (480, 492, 720, 1356, 2040):
        begins = [*range(0, side - 480 + 1, 240)]
        if side - (begins[-1] + 480) > 0:
            begins.append(side - 480)
        assert image_sets._spans(side) == [(begin, begin + 480) for begin in begins]
    assert image_sets._spans(300) == [(0, 300)]


def test_a_second_run_does_nothing_and_a_damaged_file_is_made_anew(div2k: Path, capsys: Any) -> None:
    assert run(div2k, '--lmdb', '--scale', '2') == 0
    before = state_of(div2k)
    assert not any('X3' in str(path) for path in before)
    capsys.readouterr()
    assert run(div2k, '--lmdb', '--scale', '2') == 0
    assert 'Nothing to do: all is there.' in capsys.readouterr().out and state_of(div2k) == before
    damaged = div2k / 'DIV2K' / 'DIV2K_train_LR_bicubic' / 'X2_sub' / '0002_s003.png'
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert run(div2k, '--check', '--scale', '2') == 0
    assert '1 images to be cut and made smaller.' in capsys.readouterr().out and len(damaged.read_bytes()) == 50
    assert run(div2k, '--scale', '2') == 0
    assert damaged.read_bytes() == before[damaged][1]


@pytest.mark.parametrize('backend', ['disk', 'lmdb', 'list'])
def test_basicsr_trains_on_it(backend: str, div2k: Path) -> None:
    assert run(div2k, '--lmdb', '--scale', '3') == 0
    home = div2k / 'DIV2K'
    gt, lq = home / 'DIV2K_train_HR_sub', home / 'DIV2K_train_LR_bicubic' / 'X3_sub'
    roots = (f'{gt}.lmdb', str(home / 'DIV2K_train_LR_bicubic_X3_sub.lmdb')) if backend == 'lmdb' else (gt, lq)
    opt = {'dataroot_gt': str(roots[0]), 'dataroot_lq': str(roots[1]), 'scale': 3, 'phase': 'train', 'gt_size': 48,
           'io_backend': {'type': 'lmdb' if backend == 'lmdb' else 'disk'}, 'use_hflip': False, 'use_rot': False}
    if backend == 'list':
        opt['meta_info_file'] = str(div2k / 'meta_info' / 'meta_info_DIV2K800sub_GT.txt')
    dataset: Any = PairedImageDataset(opt)
    assert len(dataset) == 20
    for item in (dataset[0], dataset[13]):
        key = Path(item['gt_path']).stem
        for name, folder in (('gt', gt), ('lq', lq)):
            expected = torch.from_numpy(pixels(folder / f'{key}.png')).permute(2, 0, 1) / 255
            torch.testing.assert_close(item[name], expected, rtol=0, atol=1e-7)


def test_incomplete_sets_are_refused_or_used_in_part(div2k: Path, capsys: Any) -> None:
    (div2k / 'DIV2K' / 'DIV2K_train_HR' / '0002.png').unlink()
    assert run(div2k) == 1
    assert 'should hold 0001 to 0002; 1 are missing, 0002 for example' in capsys.readouterr().err
    assert not (div2k / 'DIV2K' / 'DIV2K_train_HR_sub').exists()
    assert run(div2k, '--allow-partial', '--scale', '4') == 0
    assert len(list((div2k / 'DIV2K' / 'DIV2K_train_HR_sub').iterdir())) == 12


def test_df2k_is_both(div2k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(div2k / 'Flickr2K' / 'Flickr2K_HR', ['000001.png'], (48, 50), seed=2)
    monkeypatch.setitem(image_sets._TRAINING, 'df2k', replace(image_sets._TRAINING['df2k'], parts=(
        ('DIV2K/DIV2K_train_HR', '{:04d}', 2), ('Flickr2K/Flickr2K_HR', '{:06d}', 1))))
    assert run(div2k, '--scale', '2', name='df2k') == 0
    assert len(list((div2k / 'DF2K' / 'DF2K_train_HR_sub').iterdir())) == 21
    assert '000001_s001.png (48,48,3)' in (div2k / 'meta_info' / 'meta_info_DF2K3450sub_GT.txt').read_text()


def test_benchmarks_are_checked_and_made_smaller(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / 'Set5' / 'HR').mkdir(parents=True)
    for path in (test_data / 'set5' / 'HR').iterdir():
        (tmp_path / 'Set5' / 'HR' / path.name).write_bytes(path.read_bytes())
    assert run(tmp_path, '--scale', '2', '3', name='set5') == 0
    for scale in (2, 3):
        gt = np.array(Image.open(tmp_path / 'Set5' / 'HR' / 'head.png').convert('RGB'))  # saved with a palette
        gt = gt[:280 // scale * scale, :280 // scale * scale]
        lq = degrade(torch.from_numpy(gt).permute(2, 0, 1), 'BI', scale,
                                                              rounds_twice=True).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(tmp_path / 'Set5' / f'BIx{scale}' / 'head.png'), lq)
    assert run(tmp_path, '--scale', '2', '3', name='set5') == 0
    assert 'Nothing to do' in capsys.readouterr().out
    (tmp_path / 'Set5' / 'HR' / 'bird.png').unlink()
    assert run(tmp_path, name='set5') == 1
    assert 'Set5: there is no bird' in capsys.readouterr().err


def test_lr_images_from_elsewhere_are_not_overwritten(div2k: Path, capsys: Any) -> None:
    write_noise(div2k / 'DIV2K' / 'DIV2K_train_LR_bicubic' / 'X2_sub', ['0001_s001.png'], (24, 24))
    assert run(div2k, '--scale', '2') == 1
    assert 'X2_sub holds images that this command did not make' in capsys.readouterr().err


def test_scales_are_of_images(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, '--scale', '2', name='vid4') == 1
    assert '--scale is of single images' in capsys.readouterr().err
    (tmp_path / 'Set5').mkdir()
    assert run(tmp_path, '--lmdb', name='set5') == 1
    assert '--lmdb: set5 is only tested on' in capsys.readouterr().err
