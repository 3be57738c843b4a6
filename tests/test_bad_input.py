"""Bad input, by the command line: one message that names the thing and how to mend it, no traceback, no lost file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.utils import get_root_logger
from tiny_runs import NETWORK, options, write_clips, write_options

from basicsr_ssl import load_network, save_network
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints import store
from basicsr_ssl.cli import main
from basicsr_ssl.data.clips_dataset import ClipFoldersDataset
from basicsr_ssl.models import ReconstructionModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def shared_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp('clips'))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder: Path, shared_clips: Path) -> Path:
    """Clips of its own for a test to spoil."""
    return Path(shutil.copytree(shared_clips, folder / 'data'))


def command(*arguments: str) -> tuple[int, str]:
    """Exit code of the command, and what the user sees on stderr, BasicSR's log lines included."""
    screen = io.StringIO()
    handler = next(h for h in get_root_logger().handlers if type(h) is logging.StreamHandler)
    before = handler.setStream(screen)
    try:
        with contextlib.redirect_stderr(screen):
            return main(list(arguments)), screen.getvalue()
    finally:
        handler.setStream(before or sys.stderr)


Refused = Callable[..., str]


@pytest.fixture
def refused(folder: Path) -> Refused:
    """Run the command, which must refuse, and leave every file that was there as it was (but for logs).

    ``changes``: files that may change all the same, since the command writes them before it meets the trouble.
    """

    def run(opt: dict[str, Any] | str, *arguments: str, does: str = 'train', code: int = 1,
            changes: tuple[str, ...] = ()) -> str:
        path = write_options(folder / 'run.yml', opt) if isinstance(opt, dict) else opt
        before = contents(folder)
        exit_code, seen = command(does, '-opt', str(path), *arguments)
        assert exit_code == code
        after = contents(folder)
        assert [name for name, content in before.items()
                if after.get(name) != content and not name.endswith(('.log', *changes))] == []
        assert_whole([folder / name for name in after.keys() - before.keys()])
        assert 'Traceback' not in seen
        assert seen.count('basicsr-ssl: ') == 1
        message = seen.split('basicsr-ssl: ')[1].strip()
        assert seen.count(message) == 1  # not once by the logger and once by the command
        return message

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def assert_whole(paths: list[Path]) -> None:
    """No temporary file is among them, and all can be read."""
    for path in paths:
        assert path.suffix != '.tmp'
        if path.suffix == '.safetensors':
            load_network(path)
        elif path.suffix == '.state':
            torch.load(path, weights_only=True)
        elif path.suffix in ('.json', '.yml'):
            yaml.safe_load(path.read_text())


def trained(folder: Path, opt: dict[str, Any], *arguments: str) -> Path:
    """A finished run's folder."""
    assert main(['train', '-opt', str(write_options(folder / 'run.yml', opt)), *arguments]) == 0
    return folder / 'experiments' / opt['name']


def network(path: Path, **changes: Any) -> str:
    torch.manual_seed(0)
    save_network(PrunableBasicVSR(**{key: value for key, value in {**NETWORK, **changes}.items() if key != 'type'}),
                 path)
    return path.name


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


# ------------------------------------------------------------------ option files


def test_missing_option_file(refused: Refused) -> None:
    assert refused('nowhere.yml') == 'there is no option file nowhere.yml'


def test_yaml_error(folder: Path, refused: Refused) -> None:
    (folder / 'bad.yml').write_text('name: run\ntrain: {total_iter: 8\nval:\n')
    message = refused('bad.yml')
    assert message.startswith('bad.yml: no valid YAML') and 'line 3' in message


@pytest.mark.parametrize('section, key, right', [
    ('train', 'total_iters', 'total_iter'), ('val', 'val_frequency', 'val_freq'), ('logger', 'print_frq', 'print_freq'),
    ('network_g', 'num_blocks', 'num_block')])
def test_misspelt_key(folder: Path, data: Path, refused: Refused, section: str, key: str, right: str) -> None:
    assert refused(options(data, **{section: {key: 3}})) == \
        f"{folder}/run.yml: {section}:{key}: unknown key; did you mean {right!r}?"


@pytest.mark.parametrize('ratio', [1.0, -0.1])
def test_ratio_out_of_range(data: Path, refused: Refused, ratio: float) -> None:
    opt = options(data, model_type='SparsityLearningModel', pruning={'ratio': ratio, 'score': 'l1'}, sparsity={})
    assert re.search(rf'pruning:ratio: is the share to remove and must be in \[0, 1\).*got {ratio:g}$', refused(opt))


def test_ratio_out_of_reach(folder: Path, data: Path, refused: Refused) -> None:
    opt = options(data, model_type='PruningModel', path={'pretrain_network_g': network(folder / 'dense.safetensors')},
                  pruning={'ratio': 0.9, 'score': 'l1', 'min_keep': 4})
    del opt['network_g'], opt['train']
    message = refused(opt)
    share = re.fullmatch(r'ratio 0\.9 cannot be reached: with min_keep 4 and round_to 1 at most (0\.\d+) can be '
                         r'removed; choose a smaller ratio or min_keep', message)
    assert share, message
    # what it says can be reached can be reached
    opt['pruning']['ratio'] = float(share[1]) - 1e-4
    trained(folder, opt)


def test_more_gpus_than_there_are(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert refused(options(data, num_gpu=4)) == (
        'num_gpu: 4, but 0 CUDA devices are available; set num_gpu: auto to use what is there, or 0 for the CPU')


@pytest.mark.parametrize('launcher, remedy', [('pytorch', 'scripts/dist_train.sh'),
                                              ('slurm', 'scripts/slurm_train.sh')])
def test_launcher_that_did_not_launch(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, launcher: str,
                                      remedy: str) -> None:
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    message = refused(options(data), '--launcher', launcher)
    assert f'--launcher {launcher} needs to be started by' in message and remedy in message


def test_slurm_without_its_tools(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', '/nowhere')
    for name, value in {'SLURM_PROCID': '0', 'SLURM_NTASKS': '1', 'SLURM_NODELIST': 'node[1-2]'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    message = refused(options(data), '--launcher', 'slurm')
    assert 'scontrol' in message and message.endswith('set MASTER_ADDR to the first of them')


def test_nothing_to_train(folder: Path, data: Path, refused: Refused) -> None:
    opt = options(data)
    del opt['train'], opt['datasets']['train']
    assert refused(opt).endswith(f'describes no training, only a test: run `basicsr-ssl test -opt {folder}/run.yml`')


@pytest.mark.parametrize('lacks, remedy', [
    ('network', 'add path: pretrain_network_g'), ('val', 'add val: metrics'), ('sets', 'add datasets: test')])
def test_nothing_to_test(folder: Path, data: Path, refused: Refused, lacks: str, remedy: str) -> None:
    opt = options(data, path={'pretrain_network_g': network(folder / 'dense.safetensors')})
    if lacks == 'network':
        del opt['path']
    elif lacks == 'val':
        del opt['val']
    else:
        del opt['datasets']['val']
    assert remedy in refused(opt, does='test')


def test_testing_a_recipe(data: Path, refused: Refused) -> None:
    assert 'is a recipe with stages. Its report' in refused(recipe(data), does='test')


def test_a_network_that_cannot_be_pruned(data: Path, refused: Refused) -> None:
    opt = options(data)
    opt['network_g'] = {'type': 'BasicVSR', 'num_feat': 8, 'num_block': 1}
    assert refused(opt) == ('network_g: type: BasicVSR declares nothing to prune; use a network of basicsr_ssl, such '
                            'as PrunableBasicVSR')


def test_a_network_without_weights(data: Path, refused: Refused) -> None:
    opt = options(data, path={'pretrain_network_g': 'bicubic'})
    del opt['network_g']
    assert refused(opt) == 'bicubic has no weights to train and nothing to prune; it can only be tested'


def test_a_package_that_is_not_installed(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'wandb', None)
    assert 'pip install wandb' in refused(options(data, logger={'wandb': {'project': 'mine'}}))


# --------------------------------------------------------------------- networks


def spoilt_file(kind: str, folder: Path) -> tuple[str, str]:
    """A network file that cannot be used, and what the message must say of it."""
    if kind == 'missing':
        return 'gone.safetensors', 'gone.safetensors does not exist: '
    if kind == 'truncated safetensors':
        name = network(folder / 'cut.safetensors')
        truncate(folder / name)
        return name, 'cut.safetensors is truncated: '
    if kind == 'truncated pth':
        torch.save({'params': BasicVSR(num_feat=8, num_block=1).state_dict()}, folder / 'cut.pth')
        truncate(folder / 'cut.pth')
        return 'cut.pth', 'cut.pth is truncated: '
    if kind == 'text':
        (folder / 'text.pth').write_text('<html>Sign in to download</html>')
        return 'text.pth', 'text.pth is no network file: it is an HTML page'
    if kind == 'foreign weights':
        torch.save({'params': {'conv_first.weight': torch.zeros(8, 3, 3, 3)}}, folder / 'edsr.pth')
        return 'edsr.pth', 'edsr.pth is a foreign file: it holds conv_first.weight, not a BasicVSR'
    if kind == 'code':
        torch.save(torch.nn.Conv2d(3, 8, 3), folder / 'code.pth')  # a whole module
        return 'code.pth', 'code.pth is a foreign file: it holds weight, bias, not a BasicVSR'
    assert kind == 'foreign safetensors'
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(1)}, folder / 'other.safetensors')
    return 'other.safetensors', 'other.safetensors is a foreign file: it holds a, not a BasicVSR'


@pytest.mark.parametrize('kind', ['missing', 'truncated safetensors', 'truncated pth', 'text', 'foreign weights',
                                  'code', 'foreign safetensors'])
@pytest.mark.parametrize('key', ['pretrain_network_g', 'pretrain_network_teacher'])
def test_unusable_network_file(folder: Path, data: Path, refused: Refused, kind: str, key: str) -> None:
    name, said = spoilt_file(kind, folder)
    opt = options(data, model_type='TemporalFinetuneModel', train={'temporal_opt': {'type': 'TemporalStateLoss'}},
                  path={'pretrain_network_g': network(folder / 'dense.safetensors'),
                        'pretrain_network_teacher': 'dense.safetensors', key: name})
    message = refused(opt)
    assert said in message and re.search(f'path: ?{key}: ', message)
    if 'truncated' in kind:
        assert message.endswith('Copy or download it again')


def test_file_of_another_shape_than_network_g(folder: Path, data: Path, refused: Refused) -> None:
    name = network(folder / 'other.safetensors', num_feat=12)
    message = refused(options(data, path={'pretrain_network_g': name}))
    assert message == ('path: pretrain_network_g: other.safetensors holds another network than network_g describes '
                       '(num_feat: 12 in the file, 8 in network_g). Correct network_g, or leave it out: the file says '
                       'what it is')


def test_basicsr_file_of_another_shape_than_network_g(folder: Path, data: Path, refused: Refused) -> None:
    torch.save({'params': BasicVSR(num_feat=12, num_block=1).state_dict()}, folder / 'other.pth')
    message = refused(options(data, network_g={'flow': 'spynet', 'tail_feat': 64},
                              path={'pretrain_network_g': 'other.pth'}))
    assert message.startswith('path: pretrain_network_g: other.pth holds another network than network_g describes '
                              '(num_feat: 12 in the file, 8 in network_g). Correct network_g, or leave it out')


def test_teacher_that_does_not_fit(folder: Path, data: Path, refused: Refused) -> None:
    opt = options(data, model_type='TemporalFinetuneModel', train={'temporal_opt': {'type': 'TemporalStateLoss'}},
                  path={'pretrain_network_teacher': network(folder / 'wide.safetensors', num_feat=12)})
    assert refused(opt) == ('path: pretrain_network_teacher must be the dense network that the compact one was cut '
                            'from; they differ in num_feat: 8 and 12')
    opt['path'] = {'pretrain_network_teacher': network(folder / 'x2.safetensors', scale=2)}
    assert refused(opt) == ('path: pretrain_network_teacher holds a PrunableBasicVSR of the task clip and scale 2; a '
                            'student of the task clip and scale 4 needs one of its kind')


# ------------------------------------------------------------------------- data


def test_missing_dataset_folder(data: Path, refused: Refused) -> None:
    opt = options(data)
    opt['datasets']['train']['dataroot_gt'] = 'nowhere'
    assert refused(opt) == ('datasets:train:dataroot_gt: nowhere does not exist: datasets/README.md says what goes '
                            'where, DATA_ROOT says where that is; or set this key')


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_empty_dataset_folder(folder: Path, data: Path, refused: Refused, phase: str) -> None:
    (folder / 'empty').mkdir()
    opt = options(data)
    opt['datasets'][phase]['dataroot_gt'] = 'empty'
    assert refused(opt) == ('dataroot_gt: no folder in empty holds images. It should hold one folder of frames per '
                            'clip, see datasets/README.md')


def with_lr(data: Path, size: tuple[int, int] = (12, 16)) -> dict[str, Any]:
    """Options of a run with LR files."""
    for frame in sorted(data.rglob('*.png')):
        path = data.parent / 'lr' / frame.relative_to(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((*size, 3), dtype=np.uint8))
    opt = options(data)
    for phase in ('train', 'val'):
        opt['datasets'][phase]['dataroot_lq'] = str(data.parent / 'lr')
    return opt


def test_lr_frames_of_the_wrong_size(data: Path, refused: Refused) -> None:
    assert refused(with_lr(data, size=(24, 32))) == (
        "clip 'clip_0': GT frames are 48 x 64 and LR frames 24 x 32, but at scale 4 LR must be 12 x 16. Check scale "
        'and dataroot_lq')


def test_lr_frames_that_are_missing(folder: Path, data: Path, refused: Refused) -> None:
    opt = with_lr(data)
    (folder / 'lr/clip_1/00000002.png').unlink()
    assert refused(opt) == (
        f"clip 'clip_1' has 4 GT frames in {data}/clip_1 but 3 LR frames in {folder}/lr/clip_1. Complete it, exclude "
        'it, or leave dataroot_lq out to make LR from GT')


@pytest.mark.parametrize('workers', [0, 2])
def test_truncated_training_frame(data: Path, refused: Refused, workers: int) -> None:
    for name in ('clip_0', 'clip_1', 'clip_2'):
        truncate(data / name / '00000001.png')
    opt = options(data)
    opt['datasets']['train']['num_worker_per_gpu'] = workers
    message = refused(opt)
    assert re.match(rf'cannot read the image {data}/clip_\d/00000001\.png: ', message)
    assert message.endswith('Copy or download it again, or take it out of the dataset')


def test_truncated_validation_frame(folder: Path, data: Path, refused: Refused) -> None:
    held = shutil.copytree(data, folder / 'held')
    truncate(held / 'clip_1/00000003.png')
    opt = options(data)
    opt['datasets']['val']['dataroot_gt'] = str(held)
    assert f'cannot read the image {held}/clip_1/00000003.png: ' in refused(opt)
    # the training was not in vain
    shutil.copy(data / 'clip_1/00000003.png', held / 'clip_1/00000003.png')
    trained(folder, opt, '--auto_resume')
    assert 'Resumed at iteration 8' in (folder / 'experiments/run/train.log').read_text()


def write_reds(folder: Path) -> dict[str, Any]:
    """One clip of 100 tiny frames, as BasicSR's own dataset reads it, and options of it."""
    rng = np.random.default_rng(0)
    for name, side in (('gt', 32), ('lq', 8)):
        (folder / name / '001').mkdir(parents=True)
        for j in range(100):
            cv2.imwrite(str(folder / name / '001' / f'{j:08d}.png'),
                        rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    (folder / 'meta.txt').write_text('001 100 (32,32,3)\n')
    # an epoch has 100 samples, so that every frame is met
    opt = options(folder, train={'total_iter': 100, 'scheduler': {'periods': [100]}},
                  logger={'save_checkpoint_freq': 1000, 'print_freq': 1000})
    opt['datasets'] = {'train': {
        'name': 'REDS', 'type': 'REDSRecurrentDataset', 'dataroot_gt': str(folder / 'gt'),
        'dataroot_lq': str(folder / 'lq'), 'meta_info_file': str(folder / 'meta.txt'), 'num_frame': 2, 'gt_size': 32,
        'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1}}
    return opt


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind, said', [
    ('missing', 'lq/001/00000050.png: No such file or directory. Copy or download it again, or take its clip out'),
    ('truncated', 'lq/001/00000050.png: it is damaged, or no image. Copy or download it again, or take its clip out'),
    ('another scale', 'is not 4x multiplication of LQ (16, 16). Check scale, gt_size, dataroot_gt and dataroot_lq')])
def test_frame_that_basicsrs_dataset_cannot_use(folder: Path, refused: Refused, kind: str, said: str,
                                                workers: int) -> None:
    """BasicSR itself raises a bare FileNotFoundError, AttributeError or ValueError, in a worker with its traceback."""
    opt = write_reds(folder)
    opt['datasets']['train']['num_worker_per_gpu'] = workers
    frame = folder / 'lq/001/00000050.png'
    if kind == 'missing':
        frame.unlink()
    elif kind == 'truncated':
        truncate(frame)
    else:
        for frame in (folder / 'lq/001').iterdir():
            cv2.imwrite(str(frame), np.zeros((16, 16, 3), dtype=np.uint8))
    message = refused(opt)
    assert message.startswith(f'cannot use {folder}/') and said in message


def test_worker_that_is_killed(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does when memory runs out."""
    monkeypatch.setattr(ClipFoldersDataset, '__getitem__', lambda self, index: os._exit(1))
    opt = options(data)
    opt['datasets']['train']['num_worker_per_gpu'] = 1
    message = refused(opt)
    assert message.startswith('DataLoader worker') and 'lower num_worker_per_gpu' in message


# ------------------------------------------------------------- trouble on the way


@pytest.mark.parametrize('print_freq', [2, 100], ids=['seen at a log line', 'seen at a save'])
def test_diverged_training(folder: Path, data: Path, refused: Refused, print_freq: int) -> None:
    """The earlier states stay, and nothing that has diverged is saved beside them."""
    run = trained(folder, options(data, logger={'keep_states': 1}))
    states = {path.name: path.read_bytes() for path in (run / 'training_states').iterdir()}
    assert states.keys() == {'8.state'}
    opt = options(data, train={'total_iter': 12, 'optim_g': {'lr': 1e30}, 'scheduler': {'periods': [12]}},
                  logger={'keep_states': 1, 'print_freq': print_freq})
    message = refused(opt, '--auto_resume', changes=('options.yml',))
    assert re.match(r'the loss l_pix is (nan|inf|no longer finite)', message)
    assert 'Resume from an earlier state with a smaller learning rate (train: optim_g: lr)' in message
    assert [path.name for path in (run / 'training_states').iterdir()] == ['8.state']
    assert not (run / 'models/net_g_12.safetensors').exists()


def test_out_of_gpu_memory(data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, batch: Any, current_iter: int) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')
    monkeypatch.setattr(ReconstructionModel, 'optimize_parameters', fail)
    message = refused(options(data))
    assert message.startswith('the GPU is out of memory. Lower batch_size_per_gpu')


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'foreign'])
def test_spoilt_newest_state(folder: Path, data: Path, refused: Refused, kind: str) -> None:
    run = trained(folder, options(data))
    newest = run / 'training_states/8.state'
    if kind == 'foreign':
        torch.save({'epoch': 3, 'iter': 8, 'optimizers': []}, newest)
    else:
        os.truncate(newest, newest.stat().st_size // 2 if kind == 'truncated' else 0)
    assert refused(options(data), '--auto_resume') == (
        './experiments/run/training_states/8.state is no training state of basicsr_ssl, or damaged. Remove it: '
        '--auto_resume then continues from the newest of the others')
    # which is so; it may also be asked for in the file
    newest.unlink()
    trained(folder, options(data, auto_resume=True))
    assert 'Resumed at iteration 4' in (run / 'train.log').read_text()


def test_state_of_another_network(folder: Path, data: Path, refused: Refused) -> None:
    trained(folder, options(data))
    message = refused(options(data, network_g={'num_feat': 12}), '--auto_resume')
    assert message == ('the training state of iteration 8 is of another network or another kind of training than these '
                       'options describe. Restore its options, which stand in ./experiments/run/options.yml, or move '
                       './experiments/run away to start anew')


# -------------------------------------------------------------------- a full disk


def fill(path: str | os.PathLike) -> None:
    """What a full disk leaves of a file."""
    with open(path, 'wb') as stream:
        stream.write(b'half a file')


def full_for(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let the disk be full for files whose names hold this, with the errors that the libraries then raise."""
    def failing(write: Callable[..., Any], position: int, error: Exception) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            if part in str(arguments[position]):
                fill(arguments[position])
                raise error
            return write(*arguments, **more)
        return wrapped

    monkeypatch.setattr(torch, 'save', failing(torch.save, 1, RuntimeError(
        '[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')))
    for method in ('write_text', 'write_bytes'):
        monkeypatch.setattr(Path, method, failing(getattr(Path, method), 0, OSError(errno.ENOSPC, os.strerror(
            errno.ENOSPC))))
    from matplotlib.figure import Figure
    monkeypatch.setattr(Figure, 'savefig', failing(Figure.savefig, 1, OSError(errno.ENOSPC, os.strerror(
        errno.ENOSPC))))


REMEDY = 'free some space or choose another folder, then run again'


@pytest.mark.parametrize('name', ['net_g_12.safetensors', 'net_g_latest.safetensors', '12.state', 'options.yml'])
def test_full_disk_while_training(folder: Path, data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch,
                                  name: str) -> None:
    """The files of the run that is continued stay whole; with space again it goes on to the end."""
    run = trained(folder, options(data))
    longer = options(data, train={'total_iter': 12, 'scheduler': {'periods': [12]}})
    with monkeypatch.context() as patch:
        full_for(patch, f'.{name}.')  # the temporary name
        message = refused(longer, '--auto_resume', changes=() if name == 'options.yml' else (
            'options.yml', 'history.jsonl'))
    assert re.match(rf'cannot save experiments/run/[\w/]*{re.escape(name)}: ', message) and message.endswith(REMEDY)
    trained(folder, longer, '--auto_resume')
    assert (run / 'training_states/12.state').exists()
    assert store.read_metadata(run / 'models/net_g_latest.safetensors')['options']['train']['total_iter'] == 12


@pytest.mark.parametrize('name', ['report.json', 'summary.json', 'comparison.png'])
def test_full_disk_while_reporting(folder: Path, data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch,
                                   name: str) -> None:
    """The finished stages stay finished, and the previous report whole."""
    opt = recipe(data)
    trained(folder, opt)
    if name == 'report.json':  # of the pruning stage
        shutil.rmtree(folder / 'experiments/run/prune')
    with monkeypatch.context() as patch:
        full_for(patch, f'.{name}.')
        message = refused(opt, changes=() if name != 'comparison.png' else (
            'summary.json', 'summary.md', 'results.json'))
    assert re.match(rf'cannot save [\w/]*{re.escape(name)}: ', message) and message.endswith(REMEDY)
    trained(folder, opt)
    assert (folder / 'experiments/run/prune/report.json').exists()


def test_full_disk_for_the_log(folder: Path, data: Path) -> None:
    """Training goes on without its log; that is said once."""
    run = trained(folder, options(data))
    network = (run / 'models/net_g_latest.safetensors').read_bytes()
    (run / 'training_states/8.state').unlink()
    (run / 'train.log').unlink()
    (run / 'train.log').symlink_to('/dev/full')
    code, seen = command('train', '-opt', str(folder / 'run.yml'), '--auto_resume')
    assert code == 0 and 'Resumed at iteration 4' in seen
    assert seen.count('No space left on device') == 1 and 'Traceback' not in seen
    assert (run / 'models/net_g_latest.safetensors').read_bytes() == network


# ------------------------------------------------------------------------ recipes


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    """Dense training, pruning, and a report."""
    opt = options(data, **{'pruning': {'ratio': 0.5, 'score': 'l1'}, **changes})
    opt['datasets']['test'] = {**opt['datasets'].pop('val'), 'max_frames': 2}
    opt['stages'] = {'dense': {'model_type': opt.pop('model_type'), 'network_g': opt.pop('network_g')},
                     'prune': {'model_type': 'PruningModel'}}
    opt.setdefault('report', {'rows': {'dense': 'stage://dense', 'small': 'stage://prune'}, 'lr_size': [12, 16],
                              'crop': 8})
    return opt


def test_missed_figure(folder: Path, data: Path, refused: Refused) -> None:
    opt = recipe(data)
    opt['report']['expect'] = [{'row': 'dense', 'metric': 'psnr', 'over': 'bicubic', 'at_least': 50},
                               {'row': 'small', 'metric': 'macs', 'ratio_of': 'dense', 'at_most': 0.9}]
    message = refused(opt, code=2)
    rows = {row['network']: row for row in json.loads((folder / 'results/run/summary.json').read_text())}
    gain = rows['dense']['psnr'] - rows['bicubic']['psnr']
    assert message == f'expected figure missed: dense: psnr over bicubic: expected at least 50, seen {gain:.6g}'
    opt['report']['expect'][0]['at_least'] = gain - 0.01
    trained(folder, opt)


def test_test_set_that_only_the_report_uses(folder: Path, data: Path, refused: Refused) -> None:
    """Is looked at before hours of training."""
    (folder / 'empty').mkdir()
    opt = recipe(data)
    opt['datasets']['test']['dataroot_gt'] = 'empty'
    assert refused(opt).startswith('dataroot_gt: no folder in empty holds images')
    assert not (folder / 'experiments').exists()


def test_spoilt_output_of_a_stage_is_made_again(folder: Path, data: Path) -> None:
    opt = recipe(data)
    trained(folder, opt)
    output = folder / 'experiments/run/dense/models/net_g_latest.safetensors'
    before = output.read_bytes()
    truncate(output)
    trained(folder, opt)
    assert output.read_bytes() == before


def test_runs_that_end_within_one_second_are_all_kept(folder: Path, data: Path, refused: Refused) -> None:
    """A run moves the one before it aside under the time; several may do so in the same second."""
    (folder / 'text.pth').write_text('no network')
    for _ in range(4):
        assert main(['train', '-opt', str(write_options(folder / 'run.yml', options(
            data, path={'pretrain_network_g': 'text.pth'})))]) == 1
    assert len(list(folder.glob('experiments/run*/train.log'))) == 4


# --------------------------------------------------------------- several processes


def test_error_in_one_of_two_processes_ends_both(folder: Path) -> None:
    """The other one waits for it in the middle of an iteration."""
    opt = write_reds(folder)
    (folder / 'lq/001/00000050.png').unlink()
    path = write_options(folder / 'run.yml', opt)
    done = subprocess.run(['bash', str(ROOT / 'scripts/dist_train.sh'), '2', str(path), '--force_yml',
                           f'path:root={folder}'], capture_output=True, text=True, timeout=60,
                          env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'})
    assert done.returncode != 0
    said = re.findall('^basicsr-ssl: (.*)', done.stderr, re.MULTILINE)
    assert f'cannot use {folder}/lq/001/00000050.png: No such file or directory' in said[0]
    assert [line for line in said[1:] if 'another one has ended' not in line] == []
    assert not list(folder.rglob('*.tmp'))
