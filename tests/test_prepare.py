"""``basicsr-ssl prepare`` on generated and real frames: what it makes, refuses, continues and leaves alone."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
import torch
from basicsr.data.reds_dataset import REDSRecurrentDataset
from basicsr.data.vimeo90k_dataset import Vimeo90KRecurrentDataset
from basicsr.utils import FileClient
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize
from clips import png, write_noise, write_set
from PIL import Image

from basicsr_ssl import cli
from basicsr_ssl.data.catalog import BENCHMARKS, TRAINING_SETS
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.data.degradations import blur_downsample
from basicsr_ssl.data.frames import DatasetError
from basicsr_ssl.data.preparation import lmdb_files, lr_frames, parallel
from basicsr_ssl.data.preparation import prepare as module
from basicsr_ssl.data.preparation.prepare import prepare

VID4_CLIPS = {'calendar': 3, 'city': 2}
SIZE = (26, 37)  # no multiples of 4: GT is cropped
REDS_SIZE, VIMEO_SIZE = (32, 48), (32, 64)
SEPTUPLETS = ['00001/0001', '00001/0002', '00002/0001']
VIMEO_FRAMES = [f'im{i}.png' for i in range(1, 8)]


@pytest.fixture(autouse=True)
def small_sets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets with fewer and smaller frames, all else the same; not for tests with real ones."""
    if 'test_data' in request.fixturenames or 'benchmark' in request.fixturenames:
        return
    reds, vimeo = TRAINING_SETS['reds'], TRAINING_SETS['vimeo90k']
    small = {
        'vid4': (replace(BENCHMARKS['Vid4'], clips=VID4_CLIPS, clip_count=2, sizes=SIZE),),
        'reds': (replace(reds, clips=dict.fromkeys(reds.clips or (), 2), frames=2, sizes=REDS_SIZE),
                 replace(BENCHMARKS['REDS4'], clips=dict.fromkeys(BENCHMARKS['REDS4'].clips or (), 2), frames=2,
                         sizes=REDS_SIZE)),
        'vimeo90k': (replace(vimeo, clip_count=2, sizes=VIMEO_SIZE),
                     replace(BENCHMARKS['Vimeo90K-T'], clip_count=1, sizes=VIMEO_SIZE)),
    }
    for name, clip_sets in small.items():
        monkeypatch.setitem(module._DATASETS, name, replace(module._DATASETS[name], clip_sets=clip_sets))


@pytest.fixture
def vid4(tmp_path: Path) -> Path:
    """A data root with GT of the small Vid4."""
    for seed, (clip, count) in enumerate(VID4_CLIPS.items()):
        write_noise(tmp_path / 'Vid4' / 'GT' / clip, [f'{i:08d}.png' for i in range(count)], SIZE, seed)
    return tmp_path


@pytest.fixture
def vimeo(tmp_path: Path) -> Path:
    """A data root with two training septuplets and one for testing."""
    folder = tmp_path / 'vimeo90k' / 'vimeo_septuplet'
    for seed, name in enumerate(SEPTUPLETS):
        write_noise(folder / 'sequences' / name, VIMEO_FRAMES, VIMEO_SIZE, seed)
    (folder / 'sep_trainlist.txt').write_text('00001/0001\r\n00002/0001\r\n\r\n')  # as published: DOS, an empty line
    (folder / 'sep_testlist.txt').write_text('00001/0002\n')
    return tmp_path


def tree(root: Path) -> dict[str, object]:
    """Every file and link below ``root``: its content's hash, its inode and time of change, or where it leads."""
    found: dict[str, object] = {}
    for folder, subfolders, files in os.walk(root):
        for name in subfolders + files:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = os.readlink(path)
            elif path.is_file():
                status = path.stat()
                found[str(path.relative_to(root))] = (hashlib.sha256(path.read_bytes()).hexdigest(), status.st_ino,
                                                      status.st_mtime_ns)
    return found


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == 'RGB'
        return np.array(image)


# LR frames

@pytest.mark.parametrize('workers', [1, 2])
def test_lr_is_what_the_dataset_makes_on_the_fly(workers: int, vid4: Path) -> None:
    prepare('vid4', vid4, workers=workers)
    for kind, folder in BENCHMARKS['Vid4'].lr.items():
        common = {'name': 'x', 'type': 'ClipFoldersTestDataset', 'dataroot_gt': str(vid4 / 'Vid4' / 'GT'), 'scale': 4}
        dataset = ClipFoldersTestDataset({**common, 'degradation': kind})
        for i in range(len(dataset)):
            clip = dataset[i]['folder']
            for name, expected in zip(dataset[i]['names'], dataset[i]['lq']):
                expected = expected if expected.dtype == torch.uint8 else (expected * 255).round().byte()
                found = read(vid4 / folder / clip / f'{name}.png')
                assert np.array_equal(found, expected.permute(1, 2, 0).numpy()), (kind, clip, name)


def test_bi_is_basicsr_imresize_of_the_cropped_frame(vid4: Path) -> None:
    prepare('vid4', vid4, ['BI'], workers=1)
    gt = read(vid4 / 'Vid4' / 'GT' / 'city' / '00000001.png')[:24, :36]
    levels = np.asarray(imresize(gt.astype(np.float64), 1 / 4))
    expected = np.floor(levels + 0.5).clip(0, 255)
    clear = np.abs(levels % 1 - 0.5) > 1e-3  # BasicSR computes in float32: a half may go either way
    assert clear.mean() > 0.9
    assert np.array_equal(read(vid4 / 'Vid4' / 'BIx4' / 'city' / '00000001.png')[clear], expected[clear])
    assert not (vid4 / 'Vid4' / 'BDx4').exists()


def test_a_second_run_changes_nothing_and_says_so(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare('vid4', vid4, workers=1)
    assert 'Done: 5 LR frames made in' in capsys.readouterr().out
    before = tree(vid4)
    prepare('vid4', vid4, workers=1)
    assert capsys.readouterr().out.endswith('Nothing to do: all is there.\n')
    assert tree(vid4) == before


def test_source_is_untouched(vid4: Path) -> None:
    before = tree(vid4 / 'Vid4' / 'GT')
    prepare('vid4', vid4, workers=1)
    assert tree(vid4 / 'Vid4' / 'GT') == before


def test_only_what_is_missing_broken_or_outdated_is_made(vid4: Path) -> None:
    prepare('vid4', vid4, ['BI'], workers=1)
    folder = vid4 / 'Vid4' / 'BIx4'
    expected = {path: read(path) for path in folder.rglob('*.png')}
    before = tree(folder)
    (folder / 'city' / '00000000.png').unlink()
    os.truncate(folder / 'city' / '00000001.png', 50)
    os.utime(folder / 'calendar' / '00000000.png', (0, 0))  # older than GT
    prepare('vid4', vid4, ['BI'], workers=1)
    after = tree(folder)
    assert {name for name in before if after[name] != before[name]} == {
        'city/00000000.png', 'city/00000001.png', 'calendar/00000000.png'}
    assert (folder / 'calendar' / '00000000.png').stat().st_mtime > 0
    assert all(np.array_equal(read(path), pixels) for path, pixels in expected.items())
    assert after.keys() == before.keys()


def test_interruption_leaves_only_whole_frames(vid4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare('vid4', vid4, workers=1)
    expected = {path: read(path) for path in vid4.rglob('B?x4/*/*.png')}
    for kind in ('BI', 'BD'):
        shutil.rmtree(vid4 / 'Vid4' / f'{kind}x4')
    save, saved = Image.Image.save, []

    def interrupted(image: Image.Image, path: Path, format: str) -> None:
        saved.append(path)
        save(image, path, format=format)
        if len(saved) == 4:  # written, but not yet renamed
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, 'save', interrupted)
        prepare('vid4', vid4, workers=1)
    left = [path for path in (vid4 / 'Vid4').rglob('*') if path.is_file() and 'GT' not in path.parts]
    assert sum(path.suffix == '.png' for path in left) == 3
    assert {path.name for path in left if path.suffix != '.png'} == {lr_frames.RECORD}
    assert all(np.array_equal(read(path), expected[path]) for path in left if path.suffix == '.png')


def test_goes_on_after_an_interruption(vid4: Path) -> None:
    prepare('vid4', vid4, ['BD'], workers=1)
    frames = sorted((vid4 / 'Vid4' / 'BDx4').rglob('*.png'))
    expected = {path: path.read_bytes() for path in frames}
    kept = frames[0].stat().st_mtime_ns
    for path in frames[1:]:
        path.unlink()
    (frames[1].parent / f'.{frames[1].name}.tmp').write_bytes(b'what a killed run left')
    prepare('vid4', vid4, ['BD'], workers=1)
    assert {path: path.read_bytes() for path in frames} == expected
    assert frames[0].stat().st_mtime_ns == kept
    assert not list(vid4.rglob('*.tmp'))


def test_ctrl_c_ends_all_processes_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / 'Vid4'
    write_set(BENCHMARKS['Vid4'], folder / 'GT')  # the whole one: a new process knows no smaller
    # with less of a busy machine than this process has, so that it cannot end before it is interrupted
    command = ['nice', '-n', '19', sys.executable, '-m', 'basicsr_ssl', 'prepare', 'vid4', '--root', str(tmp_path),
               '--workers', '2']
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    try:
        end = time.monotonic() + 120
        while len(list(folder.glob('B*/*/*.png'))) < 8 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGSTOP)
        assert process.poll() is None and 8 <= len(list(folder.glob('B*/*/*.png'))) < 2 * 171
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
        os.killpg(process.pid, signal.SIGCONT)
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert 'Done' not in out
    assert 'Interrupted' in error and 'Traceback' not in error
    end = time.monotonic() + 60  # Python's own tracker of resources ends a moment after the command
    while running_in_session(process.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not running_in_session(process.pid)
    made = [path for path in folder.rglob('*') if path.is_file() and 'GT' not in path.parts]
    assert {path.suffix for path in made} == {'.png', '.json'} and not [path for path in made if path.name[0] == '.']
    for path in made:
        if path.suffix == '.png':
            assert read(path).max() == 0  # GT is black


def running_in_session(session: int) -> list[str]:
    """Names of the processes of a session that have not ended; those that only wait to be collected have."""
    names = []
    for status in Path('/proc').glob('[0-9]*/stat'):
        try:
            name, rest = status.read_text().rsplit(')', 1)
        except OSError:  # ended just now
            continue
        state, _, _, own_session = rest.split()[:4]
        if int(own_session) == session and state != 'Z':
            names.append(name)
    return names


@pytest.fixture
def threads_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take seconds to start."""
    monkeypatch.setattr(parallel, 'ProcessPoolExecutor', lambda workers, *_: ThreadPoolExecutor(workers))


@pytest.mark.usefixtures('threads_for_processes')
def test_in_parallel_keeps_the_order() -> None:
    first_may_end = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(60)
        if number == 4:
            first_may_end.set()
        return number**2

    assert parallel.in_parallel(work, range(6), [1, 1, 5, 1, 1, 1], 2, 'squaring', 2) == [0, 1, 4, 9, 16, 25]


@pytest.mark.usefixtures('threads_for_processes')
@pytest.mark.parametrize(('raised', 'expected', 'message'), [
    (DatasetError('no image'), DatasetError, 'no image'),
    (BrokenProcessPool(), OSError, 'a worker process was killed'),
])
def test_what_fails_in_parallel_is_an_error(raised: Exception, expected: type[Exception], message: str) -> None:
    def fail(number: int) -> None:
        raise raised

    with pytest.raises(expected, match=message):
        parallel.in_parallel(fail, range(6), [1] * 6, 2, 'failing', 1)


# refusals

def test_too_little_disk_is_refused_before_anything_is_made(vid4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(vid4)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(OSError, match=r'up to 0\.\d\d GB may be needed in .*Vid4, but only 0\.00 GB are free'):
        prepare('vid4', vid4, workers=1)
    assert tree(vid4) == before


def test_the_estimate_of_the_disk_is_enough(vimeo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []
    monkeypatch.setattr(module, '_check_disk', lambda plan: free.append(
        sum(lmdb.size for lmdb in plan.lmdbs) + sum(len(frame.degradations) for frame in plan.lr_frames) * 2 * 4096))
    before = used(vimeo)
    prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    assert 0 < used(vimeo) - before <= free[0] + 20 * 4096  # folders, lists and records come on top


def used(root: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in root.rglob('*'))


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'grey', 'copy'])
def test_damaged_gt_is_refused_by_name(damage: str, vid4: Path) -> None:
    path = vid4 / 'Vid4' / 'GT' / 'calendar' / '00000001.png'
    if damage == 'missing':
        path.unlink()
    elif damage == 'truncated':
        os.truncate(path, 100)
    elif damage == 'grey':
        path.write_bytes(png(SIZE, colour=0))
    else:
        shutil.copy(path.with_name('00000000.png'), path)
    before = tree(vid4)
    with pytest.raises(ValueError, match='not the published frames of Vid4') as error:
        prepare('vid4', vid4, workers=1)
    assert ('missing in' in str(error.value) and ': 1\n' in str(error.value)) if damage == 'missing' \
        else str(path) in str(error.value)
    assert '--allow-partial' in str(error.value)
    assert tree(vid4) == before


def test_allow_partial_leaves_out_clips_with_damaged_files(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt = vid4 / 'Vid4' / 'GT'
    os.truncate(gt / 'city' / '00000001.png', 100)
    (gt / 'calendar' / '00000001.png').unlink()
    write_noise(gt / 'car', ['00000000.png'], SIZE)  # not one of Vid4
    prepare('vid4', vid4, ['BI'], allow_partial=True, workers=1)
    assert sorted(str(path.relative_to(vid4)) for path in vid4.rglob('BIx4/*/*')) == [
        'Vid4/BIx4/calendar/00000000.png', 'Vid4/BIx4/calendar/00000002.png']
    out = capsys.readouterr().out
    assert 'only a part of it, 2 frames of 1 clips' in out and str(gt / 'city' / '00000001.png') in out


def test_the_list_of_problems_is_shortened(vid4: Path) -> None:
    for i in range(40):
        (vid4 / 'Vid4' / 'GT' / 'city' / f'{i + 2:08d}.png').write_bytes(png(SIZE, i))
    with pytest.raises(ValueError) as error:
        prepare('vid4', vid4, workers=1)
    assert len(str(error.value).splitlines()) == 23 and 'and 20 problems more' in str(error.value)


def test_whole_lr_from_elsewhere_is_used(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = vid4 / 'Vid4' / 'BIx4'
    for clip, count in VID4_CLIPS.items():
        write_noise(folder / clip, [f'{i:04d}.png' for i in range(count)], (6, 9))
    before = tree(folder)
    prepare('vid4', vid4, workers=1)
    assert tree(folder) == before
    assert len(list((vid4 / 'Vid4' / 'BDx4').rglob('*.png'))) == 5
    out = capsys.readouterr().out
    assert f'{folder}: LR frames for all of GT are there, made elsewhere' in out
    assert re.search(r'differ from BI made from GT by up to \d\d+ grey levels', out)


def test_lr_from_elsewhere_that_equals_ours_is_said_to(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare('vid4', vid4, workers=1)
    for kind in ('BI', 'BD'):
        (vid4 / 'Vid4' / f'{kind}x4' / lr_frames.RECORD).unlink()
    shutil.copy(*(vid4 / 'Vid4' / f'{kind}x4' / 'city' / '00000000.png' for kind in ('BI', 'BD')))
    capsys.readouterr()
    prepare('vid4', vid4, workers=1)
    out = capsys.readouterr().out
    assert 'The first frames of the clips are what would be made from GT as BI.' in out
    assert 'differ from BD made from GT by up to' in out  # one of them is BI


def test_incomplete_lr_from_elsewhere_is_not_mixed_with(vid4: Path) -> None:
    folder = vid4 / 'Vid4' / 'BDx4'
    write_noise(folder / 'city', ['00000000.png'], (6, 9))
    before = tree(vid4)
    with pytest.raises(ValueError, match='which this command did not make') as error:
        prepare('vid4', vid4, workers=1)
    assert "clip 'city' has 2 GT frames, but 1 LR frames" in str(error.value)
    assert tree(vid4) == before


@pytest.mark.parametrize('text', ['{"degradation": "BD", "scale": 4, "version": 0}', '[]', 'no json'])
def test_lr_made_in_another_way_is_not_mixed_with(text: str, vid4: Path) -> None:
    prepare('vid4', vid4, workers=1)
    (vid4 / 'Vid4' / 'BDx4' / lr_frames.RECORD).write_text(text)
    before = tree(vid4)
    with pytest.raises(ValueError, match=r'BDx4/made_from_gt\.json should say'):
        prepare('vid4', vid4, workers=1)
    assert tree(vid4) == before


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'dataset': 'vid4', 'lmdb': True}, '--lmdb: vid4 is only tested on'),
    ({'dataset': 'vid4', 'workers': 0}, '--workers must be at least 1, got 0'),
    ({'dataset': 'udm10'}, 'udm10: .*UDM10 does not exist'),
    ({'dataset': 'vid4', 'root': 'nowhere'}, '--root: nowhere does not exist'),
])
def test_bad_arguments(arguments: dict, message: str, vid4: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(**{'root': vid4, **arguments})


def test_no_frames_at_all(vid4: Path) -> None:
    shutil.rmtree(vid4 / 'Vid4' / 'GT')
    with pytest.raises(ValueError, match=r'there are no frames in .*Vid4/GT'):
        prepare('vid4', vid4, allow_partial=True)


def test_two_runs_at_once_are_refused(vid4: Path) -> None:
    with module._alone(vid4 / 'Vid4'), pytest.raises(OSError, match=r'another .* is at work'):
        prepare('vid4', vid4)


def test_check_writes_nothing_and_says_what_is_to_be_done(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(vid4)
    prepare('vid4', vid4, check=True, workers=1)
    assert tree(vid4) == before
    assert 'To be done: 5 LR frames made in' in capsys.readouterr().out


def test_command_line(vid4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ['prepare', 'vid4', '--root', str(vid4), '--workers', '1']
    assert cli.main([*options, '--degradation', 'BD']) == 0
    assert (vid4 / 'Vid4' / 'BDx4').exists() and not (vid4 / 'Vid4' / 'BIx4').exists()
    (vid4 / 'Vid4' / 'GT' / 'city' / '00000000.png').unlink()
    assert cli.main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith('basicsr-ssl: ') and 'missing in' in error and 'Traceback' not in error


@pytest.mark.parametrize('benchmark', ['REDS4', 'UDM10'])
def test_full_size(benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip_set = BENCHMARKS[benchmark]
    write_set(clip_set, tmp_path / clip_set.gt, [f'{i:03d}' for i in range(10)])
    name = {'REDS4': 'reds', 'UDM10': 'udm10'}[benchmark]
    prepare(name, tmp_path, ['BD'], check=True, workers=1)
    count = 400 if benchmark == 'REDS4' else 320
    assert f'To be done: {count} LR frames made in {tmp_path / clip_set.folder / "BDx4"}' in capsys.readouterr().out
    last = max((tmp_path / clip_set.gt).rglob('*.png'))
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(ValueError, match='is truncated') as error:
        prepare(name, tmp_path, check=True, workers=1)
    assert str(last) in str(error.value)


# REDS

REDS_LAYOUTS = {
    'validation set unpacked beside': ('{s}', '{v}'),
    'validation set in a folder of its own': ('{s}', 'val/{v}'),
    'both in folders of their own': ('train/{s}', 'val/{v}'),
}


def write_reds(root: Path, train: str, val: str) -> None:
    """REDS as unpacked: GT and LR of the 240 training and 30 validation clips."""
    for training, validation, size in (('train_sharp', 'val_sharp', REDS_SIZE),
                                       ('train_sharp_bicubic/X4', 'val_sharp_bicubic/X4', (8, 12))):
        for number in range(270):
            pattern, name = (train, f'{number:03d}') if number < 240 else (val, f'{number - 240:03d}')
            clip = root / 'REDS' / pattern.format(s=training, v=validation) / name
            clip.mkdir(parents=True)
            for i in range(2):
                (clip / f'{i:08d}.png').write_bytes(png(size, 2 * number + i))


@pytest.mark.parametrize(('train', 'val'), REDS_LAYOUTS.values(), ids=REDS_LAYOUTS)
def test_reds_is_regrouped_by_links(train: str, val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_reds(tmp_path, train, val)
    before = tree(tmp_path)
    prepare('reds', tmp_path, workers=1)
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    links = {name for name in new if isinstance(after[name], str)}
    assert len(links) == (2 * 270 if train.startswith('train/') else 2 * 30)
    assert new - links == {'meta_info/meta_info_REDS_GT.txt'}
    assert (tmp_path / 'meta_info' / 'meta_info_REDS_GT.txt').read_text().splitlines() == [
        f'{i:03d} 2 (32,48,3)' for i in range(270)]
    # relative: the data root can be moved
    moved = tmp_path.rename(tmp_path.with_name(f'{tmp_path.name}_moved'))
    for folder, size in (('train_sharp', REDS_SIZE), ('train_sharp_bicubic/X4', (8, 12))):
        for number in range(270):
            for i in range(2):
                path = moved / 'REDS' / folder / f'{number:03d}' / f'{i:08d}.png'
                assert path.read_bytes() == png(size, 2 * number + i), path
    capsys.readouterr()
    prepare('reds', moved, workers=1)
    assert 'Nothing to do' in capsys.readouterr().out


def test_reds_through_a_linked_folder(tmp_path: Path) -> None:
    write_reds(tmp_path / 'disk', '{s}', 'val/{v}')
    root = tmp_path / 'here' / 'datasets' / 'REDS'
    (root / 'train_sharp_bicubic').mkdir(parents=True)
    (tmp_path / 'disk' / 'REDS' / 'val').rename(tmp_path / 'validation')
    (root / 'val').symlink_to(tmp_path / 'validation')
    for name in ('train_sharp', 'train_sharp_bicubic/X4'):
        (root / name).symlink_to(tmp_path / 'disk' / 'REDS' / name)
    prepare('reds', root.parent, workers=1)
    assert (root / 'train_sharp' / '269' / '00000001.png').read_bytes() == png(REDS_SIZE, 2 * 269 + 1)


@pytest.mark.parametrize('hard_links', [True, False], ids=['hard links', 'copies'])
def test_reds_where_there_can_be_no_links(hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError('no links here')

    write_reds(tmp_path, '{s}', '{v}')
    source = tmp_path / 'REDS' / 'val_sharp' / '007' / '00000001.png'
    before = tree(tmp_path / 'REDS' / 'val_sharp')
    monkeypatch.setattr(Path, 'symlink_to', fail)
    if not hard_links:
        monkeypatch.setattr(os, 'link', fail)
    prepare('reds', tmp_path, workers=1)
    target = tmp_path / 'REDS' / 'train_sharp' / '247' / '00000001.png'
    assert target.read_bytes() == source.read_bytes() and target.samefile(source) == hard_links
    assert tree(tmp_path / 'REDS' / 'val_sharp') == before
    assert not list(tmp_path.rglob('*.tmp'))


def test_reds_regrouped_by_moving_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_reds(tmp_path, '{s}', '{v}')
    for folder, val in (('train_sharp', 'val_sharp'), ('train_sharp_bicubic/X4', 'val_sharp_bicubic/X4')):
        for i in range(30):
            (tmp_path / 'REDS' / val / f'{i:03d}').rename(tmp_path / 'REDS' / folder / f'{240 + i:03d}')
    prepare('reds', tmp_path, workers=1)
    assert 'linked' not in capsys.readouterr().out


def test_reds_without_published_lr_gets_its_own(tmp_path: Path) -> None:
    write_reds(tmp_path, '{s}', '{v}')
    for name in ('train_sharp_bicubic', 'val_sharp_bicubic'):
        shutil.rmtree(tmp_path / 'REDS' / name)
    prepare('reds', tmp_path, workers=1)
    assert len(list((tmp_path / 'REDS' / 'BIx4').rglob('*.png'))) == 540
    assert not (tmp_path / 'REDS' / 'train_sharp_bicubic').exists()


def test_published_lr_of_reds_must_be_whole(tmp_path: Path) -> None:
    write_reds(tmp_path, '{s}', '{v}')
    (tmp_path / 'REDS' / 'train_sharp_bicubic' / 'X4' / '011' / '00000000.png').unlink()
    with pytest.raises(ValueError, match="clip '011' has 2 GT frames, but 1 LR frames"):
        prepare('reds', tmp_path, workers=1)


def test_reds4_alone_is_enough_to_test_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ['00000000.png', '00000001.png']
    for seed, clip in enumerate(('000', '011', '015', '020')):
        write_noise(tmp_path / 'REDS' / 'train_sharp' / clip, names, REDS_SIZE, seed)
        write_noise(tmp_path / 'REDS' / 'train_sharp_bicubic' / 'X4' / clip, names, (8, 12), seed)
    prepare('reds', tmp_path, workers=1)
    assert 'REDS4: all 4 clips, 8 frames, are there and whole.' in capsys.readouterr().out
    assert [path.name for path in (tmp_path / 'meta_info').iterdir()] == ['meta_info_REDS4_test_GT.txt']
    with pytest.raises(ValueError, match='not the published frames of REDS:'):
        prepare('reds', tmp_path, lmdb=True, workers=1)


def test_shipped_meta_file_of_reds_is_what_prepare_writes(tmp_path: Path) -> None:
    clips = {clip: [Path(f'{i:08d}.png') for i in range(100)] for clip in TRAINING_SETS['reds'].clips or ()}
    (text,) = module._missing_meta_files(tmp_path, [module._Part(TRAINING_SETS['reds'], clips)]).values()
    shipped = Path(__file__).parents[1] / 'datasets' / 'meta_info' / 'meta_info_REDS_GT.txt'
    assert text.splitlines() == shipped.read_text().splitlines()


# Vimeo90K

def test_vimeo90k_training_and_test_set(vimeo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare('vimeo90k', vimeo, workers=1)
    assert (vimeo / 'meta_info' / 'meta_info_Vimeo90K_train_GT.txt').read_text() == (
        '00001/0001 7 (32,64,3)\n00002/0001 7 (32,64,3)\n')
    assert (vimeo / 'meta_info' / 'meta_info_Vimeo90K_test_GT.txt').read_text() == '00001/0002 7 (32,64,3)\n'
    for kind in ('BI', 'BD'):
        assert sorted(str(path.relative_to(vimeo / 'vimeo90k' / f'{kind}x4'))
                      for path in (vimeo / 'vimeo90k' / f'{kind}x4').rglob('*.png')) == [
            f'{name}/{frame}' for name in SEPTUPLETS for frame in VIMEO_FRAMES]
    assert not list(vimeo.rglob('*.lmdb'))
    capsys.readouterr()
    prepare('vimeo90k', vimeo, workers=1)
    assert 'Nothing to do' in capsys.readouterr().out


def test_septuplets_without_lists_are_a_part(vimeo: Path) -> None:
    for path in (vimeo / 'vimeo90k' / 'vimeo_septuplet').glob('*.txt'):
        path.unlink()
    with pytest.raises(ValueError, match='Vimeo90K has 2 clips, but there are 3'):
        prepare('vimeo90k', vimeo, workers=1)
    prepare('vimeo90k', vimeo, ['BD'], allow_partial=True, workers=1)
    assert [path.name for path in (vimeo / 'meta_info').iterdir()] == ['meta_info_Vimeo90K_train_GT_partial.txt']
    assert len(list((vimeo / 'vimeo90k' / 'BDx4').rglob('*.png'))) == 21


def test_the_test_set_alone_needs_no_training_set(vimeo: Path) -> None:
    folder = vimeo / 'vimeo90k' / 'vimeo_septuplet' / 'sequences'
    for name in ('00001/0001', '00002/0001'):
        shutil.rmtree(folder / name)
    prepare('vimeo90k', vimeo, workers=1)
    assert len(list((vimeo / 'vimeo90k' / 'BDx4').rglob('*.png'))) == 7
    with pytest.raises(ValueError, match='--lmdb: of Vimeo90K, which is trained on, there are no clips'):
        prepare('vimeo90k', vimeo, lmdb=True, workers=1)


def test_a_list_that_is_not_the_sets_is_not_overwritten(vimeo: Path) -> None:
    path = vimeo / 'meta_info' / 'meta_info_Vimeo90K_train_GT.txt'
    path.parent.mkdir()
    path.write_text('00001/0001 7 (32,64,3)\n')
    with pytest.raises(ValueError, match='does not list the clips of Vimeo90K'):
        prepare('vimeo90k', vimeo, workers=1)
    assert path.read_text() == '00001/0001 7 (32,64,3)\n'


# LMDB

def items(dataset_class: type, roots: tuple[Path, Path], meta: Path, backend: str, indices: list[int],
          **options: object) -> list[dict]:
    """Training items of one of BasicSR's datasets, with the same random crops for every backend."""
    gt, lq = roots
    dataset = dataset_class({'dataroot_gt': str(gt), 'dataroot_lq': str(lq), 'meta_info_file': str(meta),
                             'io_backend': {'type': backend}, 'scale': 4, 'use_hflip': True, 'use_rot': True,
                             **options})
    found = []
    for index in indices:
        random.seed(index)
        found.append(dataset[index])
    return found


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert one['key'] == other['key']
        assert torch.equal(one['lq'], other['lq']) and torch.equal(one['gt'], other['gt'])
        assert one['gt'].std() > 0.05  # real content, not twice nothing


def test_reds_lmdb_gives_the_same_items_as_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reds = tmp_path / 'REDS'
    names = [f'{i:08d}.png' for i in range(100)]
    for seed, clip in enumerate(('001', '241')):
        write_noise(reds / 'train_sharp' / clip, names, REDS_SIZE, seed)
        write_noise(reds / 'train_sharp_bicubic' / 'X4' / clip, names, (8, 12), seed + 2)
    whole = replace(TRAINING_SETS['reds'], clips={'001': 100, '241': 100}, clip_count=2, sizes=REDS_SIZE)
    monkeypatch.setitem(module._DATASETS, 'reds', replace(module._DATASETS['reds'],
                                                          clip_sets=(whole, BENCHMARKS['REDS4'])))
    prepare('reds', tmp_path, lmdb=True, workers=1)
    options = {'num_frame': 5, 'gt_size': 16, 'val_partition': 'REDS4', 'test_mode': False, 'interval_list': [1, 2],
               'random_reverse': True}
    meta = tmp_path / 'meta_info' / 'meta_info_REDS_GT.txt'
    disk = items(REDSRecurrentDataset, (reds / 'train_sharp', reds / 'train_sharp_bicubic' / 'X4'), meta, 'disk',
                 [0, 50, 199], **options)
    stored = items(REDSRecurrentDataset, (reds / 'train_sharp_with_val.lmdb',
                                          reds / 'train_sharp_bicubic_with_val.lmdb'), meta, 'lmdb', [0, 50, 199],
                   **options)
    assert_same(disk, stored)


@pytest.mark.parametrize(('kind', 'name'), [('BI', 'vimeo90k_train_LR7frames.lmdb'),
                                            ('BD', 'vimeo90k_train_BDLR7frames.lmdb')])
def test_vimeo90k_lmdb_gives_the_same_items_as_the_disk(kind: str, name: str, vimeo: Path) -> None:
    prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    folder = vimeo / 'vimeo90k'
    compare_vimeo(folder, kind, name, vimeo / 'meta_info' / 'meta_info_Vimeo90K_train_GT.txt', 16)
    with lmdb.open(str(folder / name), readonly=True, lock=False) as env:
        assert env.stat()['entries'] == 14


def compare_vimeo(folder: Path, kind: str, name: str, meta: Path, gt_size: int) -> None:
    options = {'num_frame': 7, 'gt_size': gt_size, 'random_reverse': True, 'flip_sequence': True}
    indices = list(range(len(meta.read_text().splitlines())))
    gt = folder / 'vimeo_septuplet' / 'sequences'
    assert_same(items(Vimeo90KRecurrentDataset, (gt, folder / f'{kind}x4'), meta, 'disk', indices, **options),
                items(Vimeo90KRecurrentDataset, (folder / 'vimeo90k_train_GT_all.lmdb', folder / name), meta, 'lmdb',
                      indices, **options))


def test_lmdb_is_like_that_of_basicsr(vimeo: Path) -> None:
    prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    own = vimeo / 'vimeo90k' / 'vimeo90k_train_GT_all.lmdb'
    keys = [f'{clip}/im{i}' for clip in ('00001/0001', '00002/0001') for i in range(1, 8)]
    theirs = vimeo / 'theirs.lmdb'
    make_lmdb_from_imgs(str(vimeo / 'vimeo90k' / 'vimeo_septuplet' / 'sequences'), str(theirs),
                        [f'{key}.png' for key in keys], keys)
    assert (own / 'meta_info.txt').read_text() == (theirs / 'meta_info.txt').read_text()
    assert {path.name for path in own.iterdir()} == {path.name for path in theirs.iterdir()}
    client = FileClient('lmdb', db_paths=[str(own), str(theirs)], client_keys=['own', 'theirs'])
    for key in keys:
        stored = client.get(key, 'own')
        assert stored == (vimeo / 'vimeo90k' / 'vimeo_septuplet' / 'sequences' / f'{key}.png').read_bytes()
    # one of BasicSR's own is taken as it is
    shutil.rmtree(own)
    theirs.rename(own)
    before = tree(vimeo)
    prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    assert tree(vimeo) == before


def test_lmdb_of_other_frames_is_not_overwritten(vimeo: Path) -> None:
    prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    path = vimeo / 'vimeo90k' / 'vimeo90k_train_GT_all.lmdb' / 'meta_info.txt'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[1:]))
    before = tree(vimeo)
    with pytest.raises(ValueError, match=r'GT_all\.lmdb holds 13 frames, and not the 14 that it should'):
        prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    assert tree(vimeo) == before


def test_interrupted_lmdb_leaves_nothing(vimeo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare('vimeo90k', vimeo, workers=1)
    folder = vimeo / 'vimeo90k'
    (folder / '.vimeo90k_train_GT_all.lmdb.tmp').mkdir()  # of a run that was killed
    (folder / '.vimeo90k_train_GT_all.lmdb.tmp' / 'data.mdb').write_bytes(b'half')
    before = {name: content for name, content in tree(vimeo).items() if 'lmdb' not in name}

    class Bar(lmdb_files.tqdm):
        pass

    def interrupted(*args: object) -> None:
        assert (folder / '.vimeo90k_train_GT_all.lmdb.tmp' / 'data.mdb').stat().st_size > 4
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bar, 'update', interrupted)
        patch.setattr(lmdb_files, 'tqdm', Bar)
        prepare('vimeo90k', vimeo, lmdb=True, workers=1)
    assert tree(vimeo) == before
    assert not list(folder.glob('.*'))


# real frames

def link_real(root: Path, links: dict[str, Path]) -> None:
    for name, source in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(source)


@pytest.mark.parametrize('names', ['0000001[0-4].png', pytest.param('*.png', marks=pytest.mark.slow)])
def test_bi_of_real_vid4_is_the_given_lr_bit_for_bit(names: str, test_data: Path, tmp_path: Path) -> None:
    gt = test_data / 'vid4' / 'GT'
    link_real(tmp_path / 'Vid4' / 'GT', {str(path.relative_to(gt)): path for path in gt.glob(f'*/{names}')})
    prepare('vid4', tmp_path, ['BI'], allow_partial=True, workers=1)
    given = sorted((test_data / 'vid4' / 'BIx4').glob(f'*/{names}'))
    assert len(given) == (171 if names == '*.png' else 20)
    for path in given:
        made = tmp_path / 'Vid4' / 'BIx4' / path.parent.name / path.name
        assert np.array_equal(read(made), read(path)), made


def test_bd_of_real_calendar_is_that_of_duf_but_for_rounding(test_data: Path, tmp_path: Path) -> None:
    link_real(tmp_path, {'Vid4/GT/calendar': test_data / 'vid4' / 'GT' / 'calendar'})
    prepare('vid4', tmp_path, ['BD'], allow_partial=True, workers=1)
    differences = []
    for path in sorted((test_data / 'bd_reference' / 'duf_calendar').iterdir()):
        theirs = read(path).astype(int)
        differences.append(np.abs(read(tmp_path / 'Vid4' / 'BDx4' / 'calendar' / path.name) - theirs))
        # DUF cut the fraction off, where we round: so does this
        gt = torch.from_numpy(read(test_data / 'vid4' / 'GT' / 'calendar' / path.name)).permute(2, 0, 1).double()
        cut = blur_downsample(gt, 4).floor().permute(1, 2, 0).numpy()
        assert np.abs(cut - theirs).max() <= 2
    assert len(differences) == 41
    # one value in each of three frames is 3 off, all others at most 2
    assert sorted((difference > 2).sum() for difference in differences)[-4:] == [0, 1, 1, 1]
    assert max(difference.max() for difference in differences) == 3


def test_real_septuplets(test_data: Path, tmp_path: Path) -> None:
    names = ['00001/0001', '00001/0008', '00002/0003']
    link_real(tmp_path / 'vimeo90k' / 'vimeo_septuplet' / 'sequences',
              {name: test_data / 'vimeo90k' / 'sequences' / name for name in names})
    prepare('vimeo90k', tmp_path, lmdb=True, allow_partial=True, workers=1)
    meta = tmp_path / 'meta_info' / 'meta_info_Vimeo90K_train_GT_partial.txt'
    assert meta.read_text() == ''.join(f'{name} 7 (256,448,3)\n' for name in names)
    for kind, name in (('BI', 'vimeo90k_train_LR7frames.lmdb'), ('BD', 'vimeo90k_train_BDLR7frames.lmdb')):
        compare_vimeo(tmp_path / 'vimeo90k', kind, name, meta, 256)


def test_real_piece_of_reds(test_data: Path, tmp_path: Path) -> None:
    reds = tmp_path / 'REDS'
    link_real(reds, {'train_sharp/001': test_data / 'reds' / 'GT' / 'seq_3',
                     'train_sharp_bicubic/X4/001': test_data / 'reds' / 'BIx4' / 'seq_3'})
    prepare('reds', tmp_path, lmdb=True, allow_partial=True, workers=1)
    options = {'num_frame': 10, 'gt_size': 256, 'val_partition': 'REDS4', 'test_mode': False}
    meta = tmp_path / 'meta_info' / 'meta_info_REDS_GT_partial.txt'
    assert meta.read_text() == '001 10 (720,1280,3)\n'
    disk, stored = ((reds / 'train_sharp', reds / 'train_sharp_bicubic' / 'X4'),
                    (reds / 'train_sharp_with_val.lmdb', reds / 'train_sharp_bicubic_with_val.lmdb'))
    assert_same(items(REDSRecurrentDataset, disk, meta, 'disk', [0], **options),
                items(REDSRecurrentDataset, stored, meta, 'lmdb', [0], **options))
