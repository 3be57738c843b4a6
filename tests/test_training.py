"""The stages as a whole: exact resume, signals, several processes, accumulation, validation figures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs.basicvsr_arch import BasicVSR
from safetensors.torch import load_file
from tiny_runs import NETWORK, options, write_clips, write_options

from basicsr_ssl import load_network, save_network
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.cli import main
from basicsr_ssl.config import load_options
from basicsr_ssl.models import ReconstructionModel
from basicsr_ssl.runtime import Processes, Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp('clips'))


@pytest.fixture(scope='module')
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense network to start later stages from."""
    path = tmp_path_factory.mktemp('dense') / 'dense.safetensors'
    torch.manual_seed(0)
    save_network(PrunableBasicVSR(**{key: value for key, value in NETWORK.items() if key != 'type'}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(folder: Path, opt: dict[str, Any], *arguments: str) -> int:
    path = write_options(folder / f'{opt["name"].replace("/", "_")}.yml', opt)
    return main(['train', '-opt', str(path), *arguments])


def output(folder: Path, name: str = 'run') -> Path:
    return folder / 'experiments' / name / 'models' / 'net_g_latest.safetensors'


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


STAGES: dict[str, dict[str, Any]] = {
    'reconstruction': {'train': {'accumulate': 2}},
    'sparsity, before the selection': {
        'model_type': 'SparsityLearningModel', 'pruning': {'ratio': 0.5, 'score': 'gate'},
        'sparsity': {'select_iter': 6, 'interval': 1, 'delta': 0.01, 'ceiling': 0.1}, 'train': {'gate_lr_mul': 10}},
    'sparsity, in mid-ramp': {
        'model_type': 'SparsityLearningModel', 'pruning': {'ratio': 0.5, 'score': 'l1'},
        'sparsity': {'select_iter': 2, 'interval': 1, 'delta': 0.01, 'ceiling': 0.03},
        'train': {'gate_lr_mul': 10, 'ema_decay': 0.0}},
    'temporal finetuning, flow thawing': {
        'model_type': 'TemporalFinetuneModel', 'network_g': {'flow': 'spynet'},
        'train': {'fix_flow': 6, 'flow_lr_mul': 0.125, 'temporal_opt': {'type': 'TemporalStateLoss'}}},
}


# one stage is enough to see that workers change nothing
@pytest.mark.parametrize(
    ('stage', 'workers'), [*((stage, 0) for stage in STAGES.values()), (STAGES['reconstruction'], 2)],
    ids=[*STAGES, 'reconstruction, two workers'])
def test_resume_is_the_uninterrupted_run(folder: Path, clips: Path, dense: Path, stage: dict[str, Any],
                                         workers: int) -> None:
    opt = options(clips, **stage)
    opt['datasets']['train']['num_worker_per_gpu'] = workers
    if stage.get('model_type') == 'TemporalFinetuneModel':
        torch.manual_seed(1)
        arguments = {key: value for key, value in opt.pop('network_g').items() if key != 'type'}
        save_network(PrunableBasicVSR(**arguments), folder / 'dense.safetensors')
        dense = folder / 'dense.safetensors'
        opt['path'] = {'pretrain_network_g': str(dense), 'pretrain_network_teacher': str(dense)}
    assert train(folder, opt) == 0
    whole = shutil.move(output(folder), folder / 'whole.safetensors')
    with pytest.raises(ValueError, match=r'8\.state is a training state of basicsr_ssl, not a network'):
        load_network(folder / 'experiments/run/training_states/8.state')
    (folder / 'experiments/run/training_states/8.state').unlink()
    torch.manual_seed(99)  # whatever the program drew before must not matter
    assert train(folder, opt, '--auto_resume') == 0
    assert 'Resumed at iteration 4' in (folder / 'experiments/run/train.log').read_text()
    assert_same(whole, output(folder))


def test_resuming_a_finished_run_changes_nothing(folder: Path, clips: Path) -> None:
    assert train(folder, options(clips)) == 0
    whole = shutil.copy(output(folder), folder / 'whole.safetensors')
    assert train(folder, options(clips), '--auto_resume') == 0
    assert_same(whole, output(folder))


def test_running_anew_moves_the_old_run_aside(folder: Path, clips: Path) -> None:
    assert train(folder, options(clips)) == 0
    (folder / 'experiments/run/mine.txt').write_text('precious')
    assert train(folder, options(clips)) == 0
    archived = list((folder / 'experiments').glob('run_archived_*'))
    assert len(archived) == 1
    assert (archived[0] / 'mine.txt').read_text() == 'precious'


def test_sigterm_saves_a_state_that_continues_exactly(folder: Path, clips: Path) -> None:
    opt = options(clips, train={'total_iter': 400, 'scheduler': {'periods': [400]}},
                  logger={'save_checkpoint_freq': 1000, 'print_freq': 1})
    command = [sys.executable, '-m', 'basicsr_ssl', 'train', '-opt', str(write_options(folder / 'run.yml', opt))]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if 'iter:       5' in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, ''.join(lines) + rest
    assert 'stopped by SIGTERM after iteration' in rest and '--auto_resume' in rest
    states = list((folder / 'experiments/run/training_states').glob('*.state'))
    assert len(states) == 1
    stopped = int(states[0].stem)
    assert 5 <= stopped < 400 and not output(folder).exists()

    total = stopped + 3
    force = ['--force_yml', f'train:total_iter={total}']
    def run(*arguments: str) -> None:
        subprocess.run([*command, *force, *arguments], check=True, env=environment, cwd=folder, capture_output=True)
    run('--auto_resume')
    resumed = shutil.move(output(folder), folder / 'resumed.safetensors')
    run()
    assert_same(resumed, output(folder))


def test_accumulated_batches_are_one_large_batch(folder: Path, clips: Path) -> None:
    results = []
    for name, batch, accumulate in (('large', 4, 1), ('small', 2, 2)):
        opt = options(clips, name=name, train={'accumulate': accumulate, 'total_iter': 3})
        opt['datasets']['train']['batch_size_per_gpu'] = batch
        assert train(folder, opt) == 0
        results.append(load_file(output(folder, name)))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-4, atol=1e-6, msg=name)


def launch(folder: Path, script: str, processes: int, opt: dict[str, Any]) -> None:
    path = write_options(folder / f'{opt["name"]}.yml', opt)
    done = subprocess.run(['bash', str(ROOT / 'scripts' / script), str(processes), str(path), '--force_yml',
                           f'path:root={folder}'],
                          env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


DISTRIBUTED: dict[str, dict[str, Any]] = {
    'flow thawing': {'network_g': {'flow': 'spynet'}, 'train': {'fix_flow': 3, 'flow_lr_mul': 0.125}},
    'sparsity': {'model_type': 'SparsityLearningModel', 'pruning': {'ratio': 0.5, 'score': 'l1'}, 'path': {},
                 'sparsity': {'select_iter': 1, 'interval': 1, 'delta': 0.01}, 'train': {'gate_lr_mul': 10}},
    'temporal finetuning, accumulated': {
        'model_type': 'TemporalFinetuneModel', 'path': {'pretrain_network_teacher': 'teacher.safetensors'},
        'train': {'accumulate': 2, 'temporal_opt': {'type': 'TemporalStateLoss', 'relative': False}}},
}


@pytest.mark.parametrize('stage', DISTRIBUTED.values(), ids=DISTRIBUTED)
def test_two_processes_are_one_with_twice_the_batch(folder: Path, clips: Path, stage: dict[str, Any]) -> None:
    results = {}
    torch.manual_seed(7)
    save_network(PrunableBasicVSR(**{key: value for key, value in NETWORK.items() if key != 'type'}),
                 folder / 'teacher.safetensors')
    for processes in (1, 2):
        opt = options(clips, name=f'with_{processes}', **stage)
        if teacher := opt.get('path', {}).get('pretrain_network_teacher'):
            opt['path'] = {'pretrain_network_teacher': str(folder / teacher)}
        opt['train']['total_iter'] = 4
        opt['datasets']['train']['batch_size_per_gpu'] = 4 // processes
        launch(folder, 'dist_train.sh', processes, opt)
        results[processes] = output(folder, f'with_{processes}')
    one, two = load_file(results[1]), load_file(results[2])
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-5, msg=name)
    if 'sparsity' in stage:
        assert read_metadata(results[1])['selection']['kept'] == read_metadata(results[2])['selection']['kept']


def test_validation_is_the_same_with_one_and_two_processes(folder: Path, clips: Path, dense: Path) -> None:
    figures = {}
    for processes in (1, 2):
        opt = options(clips, name=f'test_{processes}', path={'pretrain_network_g': str(dense)})
        del opt['network_g'], opt['train'], opt['datasets']['train']
        launch(folder, 'dist_test.sh', processes, opt)
        results = json.loads((folder / f'results/test_{processes}/results.json').read_text())
        figures[processes] = results['metrics'], results['clips']
    assert figures[1] == figures[2]
    assert set(figures[1][1]) == {'clip_0', 'clip_1', 'clip_2'}  # three clips: the processes get unequal shares


def test_validation_figures_are_basicsrs(folder: Path, clips: Path, dense: Path) -> None:
    """Against BasicSR's metrics on frames computed by hand: read, degrade, super-resolve, round."""
    import cv2
    import numpy as np
    from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
    from basicsr.utils.matlab_functions import imresize
    opt = options(clips, path={'pretrain_network_g': str(dense)}, name='run')
    del opt['network_g'], opt['train'], opt['datasets']['train']
    assert main(['test', '-opt', str(write_options(folder / 'test.yml', opt))]) == 0
    seen = json.loads((folder / 'results/run/results.json').read_text())['metrics']
    net = load_network(dense)
    clip_means = []
    for clip in sorted(clips.iterdir()):
        gt = [np.asarray(cv2.imread(str(frame))) for frame in sorted(clip.iterdir())]
        lq = [np.floor(imresize(image.astype(np.float32), 0.25).clip(0, 255) + 0.5) / 255 for image in gt]
        tensor = torch.from_numpy(np.stack(lq)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32).copy())
        with torch.no_grad():
            out = net(tensor[None])[0].clamp(0, 1).numpy()
        images = [np.rint(frame.transpose(1, 2, 0)[..., ::-1] * 255).astype(np.uint8) for frame in out]
        clip_means.append([np.mean([calculate_psnr(a, b, 0) for a, b in zip(images, gt)]),
                           np.mean([calculate_ssim(a, b, 0) for a, b in zip(images, gt)])])
    expected = np.mean(clip_means, axis=0)
    assert seen['psnr'] == pytest.approx(expected[0], abs=1e-4)
    assert seen['ssim'] == pytest.approx(expected[1], abs=1e-5)


def test_ema_weights_are_saved_and_validated(folder: Path, clips: Path) -> None:
    """After one step from w0 to w1 with decay d, the saved weights are d * w0 + (1 - d) * w1."""
    weights = {}
    for name, decay, total in (('start', 0.0, 0), ('plain', 0.0, 1), ('ema', 0.75, 1)):
        opt = options(clips, name=name, train={'total_iter': total, 'ema_decay': decay})
        assert train(folder, opt) == 0
        weights[name] = load_file(output(folder, name))
    assert read_metadata(output(folder, 'ema'))['weights'] == 'ema'
    moved = 0.0
    for name, ema in weights['ema'].items():
        torch.testing.assert_close(ema, 0.75 * weights['start'][name] + 0.25 * weights['plain'][name])
        moved += float((weights['plain'][name] - weights['start'][name]).abs().sum())
    assert moved > 0
    log = (folder / 'experiments/ema/train.log').read_text()
    assert read_metadata(output(folder, 'ema'))['metrics']['held']['psnr'] == pytest.approx(
        float(log.split('# psnr: ')[1].split()[0]), abs=1e-4)


@pytest.mark.parametrize('setting', [{'amp': 'bf16'}, {'channels_last': False}, {'clip_grad_norm': 0.5}], ids=str)
def test_speed_and_stability_settings_train_the_same_way(folder: Path, clips: Path, setting: dict[str, Any]) -> None:
    """Each of them leaves the loss near the plain run's, and the weights in full precision."""
    losses = {}
    for name, extra in (('plain', {}), ('changed', setting)):
        assert train(folder, options(clips, name=name, train=extra)) == 0
        log = (folder / f'experiments/{name}/train.log').read_text()
        losses[name] = float(log.split('l_pix: ')[-1].split()[0])
    assert losses['changed'] == pytest.approx(losses['plain'], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(output(folder, 'changed')).values())


@pytest.mark.parametrize('asked, amp, device, expected', [
    (None, None, 'cpu', True), (None, 'bf16', 'cpu', True), (False, 'bf16', 'cpu', False), (True, None, 'cpu', True),
    (None, None, 'meta', False), (None, 'bf16', 'meta', True), (True, None, 'meta', True)])
def test_memory_order(folder: Path, clips: Path, asked: bool | None, amp: str | None, device: str,
                      expected: bool) -> None:
    """Unless it is said: on the CPU, and elsewhere with amp."""
    opt = options(clips, train={'channels_last': asked, 'amp': amp, 'ema_decay': 0})
    resolved = load_options(write_options(folder / 'run.yml', opt))
    model = ReconstructionModel(resolved, Run(Processes(0, 1, torch.device(device), False), 'run', str(folder)))
    weight = model.net_g.conv_hr.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected
    assert weight.is_contiguous() != expected


def test_a_basicsr_file_trains_as_it_is(folder: Path, clips: Path) -> None:
    torch.manual_seed(0)
    torch.save({'params': BasicVSR(num_feat=8, num_block=1).state_dict()}, folder / 'BasicVSR.pth')
    opt = options(clips, path={'pretrain_network_g': 'BasicVSR.pth'}, train={'total_iter': 1, 'fix_flow': 5})
    del opt['network_g']
    assert train(folder, opt) == 0
    net: Any = load_network(output(folder))
    assert net.spec.args['num_feat'] == 8 and net.spec.args['tail_feat'] == 64 and net.spec.args['flow'] == 'spynet'
    start = torch.load(folder / 'BasicVSR.pth', weights_only=True)['params']
    after = net.state_dict()
    assert torch.equal(after['spynet.basic_module.0.basic_module.0.weight'],
                       start['spynet.basic_module.0.basic_module.0.weight'])  # frozen
    assert not torch.equal(after['conv_last.weight'], start['conv_last.weight'])


def test_the_newest_state_wins_and_a_left_course_is_set_aside(folder: Path, clips: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, options(clips)) == 0
    states, log = folder / 'experiments/run/training_states', folder / 'experiments/run/train.log'
    opt = options(clips, path={'resume_state': str(shutil.copy(states / '4.state', folder / 'start.state'))})
    assert train(folder, opt, '--auto_resume') == 0
    assert 'Resumed at iteration 8' in log.read_text()

    first = (states / '8.state').read_bytes()
    assert train(folder, opt) == 0  # back to iteration 4: the old 8.state must not be what the next run continues from
    assert 'Resumed at iteration 4' in log.read_text()
    assert (states / '8.state.superseded').read_bytes() == first
    assert (states / '8.state').exists()

    capsys.readouterr()
    assert train(folder, opt, '--auto_resume', '--force_yml', 'train:total_iter=6') == 1
    assert 'of iteration 8, but train: total_iter is 6' in capsys.readouterr().err


def test_warm_up_rises_linearly_to_the_full_rate_and_stays(folder: Path, clips: Path) -> None:
    opt = options(clips, train={'warmup_iter': 4, 'total_iter': 6}, logger={'print_freq': 1})
    opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': []}
    assert train(folder, opt) == 0
    lines = (folder / 'experiments/run/train.log').read_text().split('lr:(')[1:]
    assert [float(line.split(',')[0]) for line in lines] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_tensorboard_shows_losses_gates_kept_units_metrics_and_frames(folder: Path, clips: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    opt = options(clips, model_type='SparsityLearningModel', pruning={'ratio': 0.5, 'score': 'l1'},
                  sparsity={'interval': 1, 'delta': 0.01}, logger={'use_tb_logger': True})
    assert train(folder, opt) == 0
    events = EventAccumulator(str(folder / 'tb_logger/run'))
    events.Reload()
    tags = events.Tags()
    assert {'losses/l_pix', 'lr/net', 'lr/gates', 'zero_gates', 'penalty', 'kept/fusion', 'metrics/held/psnr',
            'metrics/held/ssim'} <= set(tags['scalars'])
    assert {'gates/all', 'gates/selected'} <= set(tags['histograms'])
    assert {'held/clip_0/result', 'held/clip_0/gt'} <= set(tags['images'])
    net: Any = load_network(output(folder))
    kept = {event.value for event in events.Scalars('kept/fusion')}
    assert kept == {len(read_metadata(output(folder))['selection']['kept']['fusion'])}
    assert events.Scalars('penalty')[-1].value == pytest.approx(0.08)  # 8 iterations of 0.01
    assert net.spec.form == 'gated'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('setting', [{}, {'amp': 'bf16'}, {'amp': 'fp16'}, {'compile': True, 'channels_last': True}],
                         ids=str)
def test_on_a_gpu_training_resumes_and_validates(folder: Path, clips: Path, setting: dict[str, Any]) -> None:
    opt = options(clips, num_gpu=1, train=setting)
    assert train(folder, opt) == 0
    (folder / 'experiments/run/training_states/8.state').unlink()
    assert train(folder, opt, '--auto_resume') == 0
    opt = options(clips, name='test', num_gpu=1, path={'pretrain_network_g': str(output(folder))})
    del opt['network_g'], opt['train'], opt['datasets']['train']
    assert main(['test', '-opt', str(write_options(folder / 'test.yml', opt))]) == 0
    on_gpu = json.loads((folder / 'results/test/results.json').read_text())['metrics']['psnr']
    assert main(['test', '-opt', str(folder / 'test.yml'), '--force_yml', 'num_gpu=0']) == 0
    on_cpu = json.loads((folder / 'results/test/results.json').read_text())['metrics']['psnr']
    assert on_gpu == pytest.approx(on_cpu, abs=0.02)
