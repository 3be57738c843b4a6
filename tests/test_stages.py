"""Each training stage, run through its option file, against the loops of ``reference_training``."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import reference_training as reference
import torch
from basicsr.data import build_dataset
from basicsr.utils.registry import ARCH_REGISTRY
from double import double_precision
from nets import random_gates_, randomise_
from safetensors.torch import load_file
from tiny_runs import options, write_clips, write_options
from torch import Tensor

from basicsr_ssl import config, count_macs, load_network, save_network
from basicsr_ssl.api import open_flow, prune_network, with_gates, without_gates
from basicsr_ssl.archs import PrunableBasicVSR, PrunableEDSR
from basicsr_ssl.checkpoints.store import build_network, read_metadata
from basicsr_ssl.cli import main
from basicsr_ssl.data.loader import train_loader
from basicsr_ssl.methods import METHOD_REGISTRY, Method
from basicsr_ssl.methods.ssl import SSLOptions

SIZES: dict[str, Any] = {'num_feat': 4, 'num_block': 1, 'tail_feat': 4, 'flow': 'none'}


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp('clips'), clips=2, frames=3, size=(40, 48))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with double_precision():
        yield tmp_path
    shutil.rmtree(tmp_path)  # with a flow network, states are tens of megabytes


def make(file: str, seed: int = 0, arch: Any = PrunableBasicVSR, **args: Any) -> Any:
    """A network with weights under which every layer matters, and gates that differ; saved as ``file``."""
    torch.manual_seed(seed)
    net = arch(**{**SIZES, **args} if arch is PrunableBasicVSR else args)
    randomise_(net)
    random_gates_(net, seed)
    save_network(net, file)
    return net


def stage(clips: Path, total: int = 6, **changes: Any) -> dict[str, Any]:
    opt = options(clips, **changes)
    opt.pop('network_g')
    opt['datasets']['train']['batch_size_per_gpu'] = 1
    opt['train'].update(total_iter=total, scheduler={'type': 'CosineAnnealingRestartLR', 'periods': [total],
                                                     'eta_min': 1e-5})
    opt['logger'].update(print_freq=1, save_checkpoint_freq=2)
    opt['train'].update(changes.get('train', {}))
    return opt


def run(opt: dict[str, Any], *arguments: str) -> int:
    return main(['train', '-opt', str(write_options(Path(f'{opt["name"]}.yml'), opt)), *arguments])


def batches(opt: dict[str, Any], processes: int = 1) -> list[reference.Batch]:
    """What the iterations train on, as parts of one batch each."""
    chunks, total = opt['train'].get('accumulate', 1), opt['train']['total_iter']
    data = next(iter(config.stage_options(config.load_options(f'{opt["name"]}.yml')).values())) \
        if 'stages' in opt else config.load_options(f'{opt["name"]}.yml')
    data = data['datasets']['train']
    streams = [islice(train_loader(build_dataset(data), data, opt['manual_seed'], rank, processes, 0, chunks), total)
               for rank in range(processes)]
    return [[part for batch in together for part in zip(batch['lq'].chunk(chunks), batch['gt'].chunk(chunks))]
            for together in zip(*streams)]


def output(name: str = 'run') -> Path:
    return Path('experiments', name, 'models/net_g_latest.safetensors')


def assert_close(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(seen[name], tensor, rtol=1e-8, atol=1e-10,
                                   msg=lambda text, name=name: f'{name}: {text}')


def psnr(net: Any, state: dict[str, Tensor], opt: dict[str, Any]) -> float:
    """Mean over clips of the mean over frames, of 8-bit frames."""
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    sums = []
    dataset = build_dataset(config.load_options(f'{opt["name"]}.yml')['datasets']['val'])
    for item in (dataset[i] for i in range(len(dataset))):
        lq = torch.stack(list(item['lq'])).double() / 255
        with torch.no_grad():
            out = net(lq) if net.task == 'image' else net(lq[None])[0]
        frames = zip((out.clamp(0, 1) * 255).round(), item['gt'])
        sums.append([10 * math.log10(255**2 / float(((a - b.double())**2).mean())) for a, b in frames])
    return sum(sum(clip) / len(clip) for clip in sums) / len(sums)


def check(net: Any, trained: reference.Trained, opt: dict[str, Any]) -> None:
    """Weights, their moving average and its validation are those of the reference, and the log shows its losses."""
    logged = [sum(map(float, re.findall(r'l_\w+: (\S+)', line)))
              for line in Path('experiments/run/train.log').read_text().splitlines() if '[epoch:' in line]
    assert logged == pytest.approx(trained.losses, rel=2e-4)  # with five digits
    state = torch.load(f'experiments/run/training_states/{opt["train"]["total_iter"]}.state', weights_only=True)
    assert_close(state['net'], trained.raw)
    assert_close(load_file(output()), trained.ema)
    metadata = read_metadata(output())
    assert metadata['metrics']['held']['psnr'] == pytest.approx(psnr(net, trained.ema, opt), abs=1e-6)
    assert psnr(net, trained.ema, opt) != pytest.approx(psnr(net, trained.raw, opt), abs=1e-6)


CASES: dict[str, dict[str, Any]] = {
    'plain': {},
    'decay, clipping, accumulation, warm-up': {
        'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.8, 0.95], 'weight_decay': 0.1}, 'clip_grad_norm': 0.05,
        'accumulate': 2, 'warmup_iter': 3},
    'steps': {'scheduler': {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5}},
}


@pytest.mark.parametrize('train', CASES.values(), ids=CASES)
def test_reconstruction(clips: Path, train: dict[str, Any]) -> None:
    net = make('start.safetensors')
    opt = stage(clips, train=train, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    trained = reference.reconstruct(net, batches(opt), opt['train'])
    assert trained.clipped or 'clip_grad_norm' not in train
    check(net, trained, opt)


def test_reconstruction_with_a_flow_network(clips: Path) -> None:
    net = make('start.safetensors', flow='spynet')
    opt = stage(clips, 4, train={'fix_flow': 3, 'flow_lr_mul': 0.125}, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    check(net, reference.reconstruct(net, batches(opt), opt['train']), opt)


SPARSITY: dict[str, Any] = {'select_iter': 2, 'interval': 2, 'delta': 0.2, 'ceiling': 0.35}
AWARE: dict[str, Any] = {'type': 'Aware', 'alpha': 1e-3, 'interval': 2}
RATES: dict[str, Any] = {'optim_g': {'type': 'Adam', 'lr': 1e-2, 'weight_decay': 0.1}, 'gate_lr_mul': 20,
                         'clip_grad_norm': 0.3, 'accumulate': 2}


@pytest.mark.parametrize(('score', 'flow'), [('gate', 'none'), ('l1', 'none'), ('gate', 'spynet')])
def test_sparsity_learning_and_pruning(clips: Path, score: str, flow: str) -> None:
    net = make('start.safetensors', gated=True, flow=flow)
    pruning = {'ratio': 0.4, 'score': score}
    opt = stage(clips, 6, model_type='SparsityLearningModel', train=RATES, sparsity=SPARSITY, pruning=pruning,
                path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    trained = reference.learn_sparsity(net, batches(opt), opt['train'], SPARSITY, pruning)
    check(net, trained, opt)
    assert read_metadata(output())['selection']['kept'] == trained.kept and trained.clipped
    # what was learnt is what goes, though the gates of now would have it otherwise
    assert reference.rank(trained.ema, net.groups, **pruning) != trained.kept
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': str(output())}, 'logger': {'use_tb_logger': False}}
    assert run(opt) == 0
    check_cut(net, trained.ema, trained.kept, 'sparsity learning')
    opt['pruning'] = {**pruning, 'ratio': 0.3}
    assert run(opt) == 0
    check_cut(net, trained.ema, reference.rank(trained.ema, net.groups, **opt['pruning']), 'one-shot')


def test_sparsity_learning_of_the_flow_network_too(clips: Path) -> None:
    net = make('start.safetensors', flow='spynet_small')
    pruning = {'ratio': 0.4, 'score': 'gate', 'flow': True}
    opt = stage(clips, 6, model_type='SparsityLearningModel', sparsity=SPARSITY, pruning=pruning,
                train={**RATES, 'flow_lr_mul': 0.5, 'fix_flow': 3}, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    opened: Any = with_gates(open_flow(net))
    trained = reference.learn_sparsity(opened, batches(opt), opt['train'], SPARSITY, {'ratio': 0.4, 'score': 'gate'},
                                       flow_from=3)
    check(opened, trained, opt)
    assert read_metadata(output())['selection']['kept'] == trained.kept and trained.kept is not None
    assert any(len(trained.kept[group.name]) < group.size for group in opened.groups if group.flow)
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': str(output())}, 'logger': {'use_tb_logger': False}}
    assert run(opt) == 0
    check_cut(opened, trained.ema, trained.kept, 'sparsity learning')
    assert 'with the flow network' in Path('experiments/pruned/train.log').read_text()


def test_one_shot_with_the_flow_network(clips: Path) -> None:
    make('start.safetensors', flow='spynet_small')
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'logger': {'use_tb_logger': False},
           'pruning': {'ratio': 0.5, 'score': 'l1', 'budget': 'macs', 'flow': True},
           'path': {'pretrain_network_g': 'start.safetensors'}}
    assert run(opt) == 0
    dense, pruned = load_network('start.safetensors'), load_network(output('pruned'))
    left = count_macs(pruned) / count_macs(dense)
    assert 0.45 < left <= 0.5
    assert f'{1 - left:.1%} of the MACs, with the flow network' in Path('experiments/pruned/train.log').read_text()


@pytest.mark.parametrize('flow', ['none', 'spynet'])
def test_pruning_aware_training_and_pruning(clips: Path, flow: str) -> None:
    net = make('start.safetensors', seed=3, gates='weight_norm', flow=flow)
    pruning = {'ratio': 0.4, 'score': 'l2', 'scope': 'local'}
    opt = stage(clips, 6, model_type='SparsityLearningModel', train={**RATES, 'gate_lr_mul': 60}, sparsity=AWARE,
                pruning=pruning, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    trained = reference.train_aware(net, batches(opt), opt['train'], AWARE, pruning)
    check(net, trained, opt)
    told = read_metadata(output())['selection']
    assert told['kept'] == trained.kept and trained.clipped
    chosen, others = [], []
    for group in net.groups:
        for gate in reference.gates_of(group):
            stays = [unit in trained.kept[group.name] for unit in range(group.size)]  # type: ignore[index]
            others += [abs(float(g)) for g, kept in zip(trained.ema[gate], stays) if kept]
            chosen += [abs(float(g)) for g, kept in zip(trained.ema[gate], stays) if not kept]
    assert told['selected_norm'] == pytest.approx((sum(chosen) / len(chosen)) / (sum(others) / len(others)), rel=1e-6)
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': str(output())}, 'logger': {'use_tb_logger': False}}
    assert run(opt) == 0
    check_cut(net, trained.ema, trained.kept, 'sparsity learning')
    # so it is with a file of a version that knew fewer settings
    told['pruning'] = {key: value for key, value in told['pruning'].items() if key not in ('structure', 'ratios')}
    save_network(load_network(output()), 'older.safetensors', selection=told)
    opt['path'] = {'pretrain_network_g': 'older.safetensors'}
    assert run(opt) == 0
    check_cut(net, trained.ema, trained.kept, 'sparsity learning')


def test_pruning_aware_training_of_a_dense_network(clips: Path) -> None:
    dense = make('start.safetensors')
    opt = stage(clips, 3, model_type='SparsityLearningModel', train=RATES, sparsity={**AWARE, 'interval': 1},
                pruning={'ratio': 0.4, 'score': 'l2', 'scope': 'local'},
                path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    net: Any = with_gates(dense, 'weight_norm')
    check(net, reference.train_aware(net, batches(opt), opt['train'], {**AWARE, 'interval': 1}, opt['pruning']), opt)


@pytest.mark.parametrize('structure', ['weights', 'filters'])
def test_masks_stay_as_they_are_in_finetuning(clips: Path, structure: str) -> None:
    net = make('start.safetensors')
    pruning = {'ratio': 0.4, 'score': 'l1', 'structure': structure, 'scope': 'local'}
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': 'start.safetensors'}, 'logger': {'use_tb_logger': False}}
    assert run(opt) == 0
    said = json.loads(Path('experiments/pruned/report.json').read_text())
    masked: Any = load_network(output('pruned'))
    masks = {name.removesuffix('_mask'): mask for name, mask in masked.named_buffers() if name.endswith('_mask')}
    assert said['layers'] == {name.removesuffix('.weight'): {'kept': int(mask.sum()), 'size': mask.numel()}
                              for name, mask in masks.items()}
    # the plain network whose masked weights get no gradient is the same training
    opt = stage(clips, 4, train={'accumulate': 2}, path={'pretrain_network_g': str(output('pruned'))})
    assert run(opt) == 0
    for name, parameter in net.named_parameters():
        if name in masks:
            parameter.data *= masks[name]
            parameter.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
    trained = reference.reconstruct(net, batches(opt), opt['train'])
    for seen, expected in ((load_file(output()), trained.ema), (torch.load(
            'experiments/run/training_states/4.state', weights_only=True)['net'], trained.raw)):
        assert all(torch.equal(seen.pop(f'{name}_mask'), mask) for name, mask in masks.items())
        assert_close(seen, expected)
    assert all(bool((load_file(output())[name][~mask] == 0).all()) for name, mask in masks.items())
    # temporal finetuning leaves the mask too
    opt['model_type'], opt['name'] = 'TemporalFinetuneModel', 'temporal'
    opt['train']['temporal_opt'] = {'type': 'TemporalStateLoss'}
    opt['path']['pretrain_network_teacher'] = 'start.safetensors'
    assert run(opt) == 0
    tuned: Any = load_network(output('temporal'))
    assert all(torch.equal(tuned.get_buffer(f'{name}_mask'), mask) for name, mask in masks.items())


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'ssl': ({'type': 'SSL'}, {'score': 'l1'}),
    'assl': ({'type': 'ASSL', 'align_weight': 0.5}, {'score': 'gate', 'scope': 'local'}),
    'srp': ({'type': 'SRP'}, {'score': 'l1', 'scope': 'local'}),
}
EDSR = {'arch': PrunableEDSR, 'num_feat': 4, 'num_block': 2, 'scale': 2, 'img_range': 2}
NETWORKS: dict[str, dict[str, Any]] = {
    'BasicVSR': {}, 'EDSR-aligned': {**EDSR, 'residual': 'aligned'},
    'EDSR-rsc': {**EDSR, 'residual': 'rsc', 'upsampler': 'pixelshuffledirect'}}


def images(opt: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same options, for a network of single images."""
    opt['datasets'] = {
        'train': {'name': 'images', 'type': 'ImageFolderDataset', 'dataroot_gt': str(folder), 'gt_size': 16,
                  'batch_size_per_gpu': 1, 'num_worker_per_gpu': 0},
        'val': {'name': 'held', 'type': 'ImageFolderTestDataset', 'dataroot_gt': str(folder / 'clip_0')}}
    return {**opt, 'scale': 2}


@pytest.mark.parametrize('args', NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(('sparsity', 'pruning'), METHODS.values(), ids=METHODS)
def test_every_method_learns_and_prunes_every_network(clips: Path, sparsity: dict[str, Any], pruning: dict[str, Any],
                                                      args: dict[str, Any]) -> None:
    net = make('start.safetensors', **args)
    sparsity, pruning = {**SPARSITY, **sparsity}, {**pruning, 'ratio': 0.4}
    opt = stage(clips, 6, model_type='SparsityLearningModel', train={**RATES, 'gate_lr_mul': 5}, sparsity=sparsity,
                pruning=pruning, path={'pretrain_network_g': 'start.safetensors'})
    opt = images(opt, clips) if net.task == 'image' else opt
    assert run(opt) == 0
    kind = {'SSL': 'scale', 'ASSL': 'weight_norm'}.get(sparsity['type'])
    net = with_gates(net, kind) if kind else without_gates(net)
    trained = reference.learn_sparsity(net, batches(opt), opt['train'], sparsity, pruning)
    check(net, trained, opt)
    selection = read_metadata(output())['selection']
    assert selection['kept'] == trained.kept and selection['penalty'] == 0.35
    opt = {'name': 'pruned', 'model_type': 'PruningModel', 'num_gpu': 0, 'pruning': pruning,
           'path': {'pretrain_network_g': str(output())}, 'logger': {'use_tb_logger': False}}
    assert run(opt) == 0
    check_cut(net, trained.ema, trained.kept, 'sparsity learning')


class Pull(Method):
    """Does with a loss what weight decay does, to one convolution."""

    Options = SSLOptions

    def losses(self, iteration: int) -> dict[str, Tensor]:
        return {'l_pull': iteration * self.net.conv_hr.weight.square().sum()}


def test_the_losses_of_a_method_count(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHOD_REGISTRY._obj_map, 'Pull', Pull)
    net = make('start.safetensors')
    opt = stage(clips, 4, model_type='SparsityLearningModel', sparsity={'type': 'Pull'}, train={'accumulate': 2},
                pruning={'ratio': 0.4, 'score': 'l1'}, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    iterations = (i for i in range(1, 5) for _ in range(2))
    check(net, reference._loop(net, batches(opt), opt['train'], lambda lq, gt: (
        reference.charbonnier(net(lq), gt) + next(iterations) * net.conv_hr.weight.square().sum()), math.inf), opt)


def check_cut(net: Any, state: dict[str, Tensor], kept: reference.Kept | None, how: str) -> None:
    """The pruned network computes what the whole one does without the own weights of the other units."""
    assert kept is not None
    closed = reference.fold(state, net.groups, net.spec.gates)
    for group in net.groups:
        for unit in set(range(group.size)) - set(kept[group.name]):
            for name, dim, index in reference.own(group, unit):
                closed[name].movedim(dim, 0)[index] = 0
    net = type(net)(**net.spec.args)
    net.load_state_dict(closed)
    pruned: Any = load_network(output('pruned'))
    assert {group.name: group.size for group in pruned.groups} == {name: len(units) for name, units in kept.items()}
    lq = torch.rand(2, 3, 8, 8) if net.task == 'image' else torch.rand(1, 2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pruned(lq), net(lq), rtol=1e-10, atol=1e-10)
    assert json.loads(Path('experiments/pruned/report.json').read_text())['selection'] == how


@pytest.mark.parametrize(('temporal', 'flow'), [
    ({'norm': 'l1'}, 'none'), ({'norm': 'l2', 'step_weight': 'linear'}, 'none'),
    ({'norm': 'charbonnier', 'relative': False, 'eps': 0.1}, 'none'), ({'norm': 'l1'}, 'spynet_small'),
], ids=['l1', 'l2', 'charbonnier', 'flow'])
def test_temporal_finetuning_of_a_gated_file_with_another_teacher(clips: Path, temporal: dict[str, Any],
                                                                  flow: str) -> None:
    gated, teacher = make('gated.safetensors', gated=True, flow=flow), make('teacher.safetensors', seed=5, flow=flow)
    temporal = {'type': 'TemporalStateLoss', 'loss_weight': 0.3, **temporal}
    opt = stage(clips, 4, model_type='TemporalFinetuneModel',
                train={'temporal_opt': temporal, 'accumulate': 2, 'fix_flow': 2, 'flow_lr_mul': 0.5},
                path={'pretrain_network_g': 'gated.safetensors', 'pretrain_network_teacher': 'teacher.safetensors'})
    assert run(opt) == 0
    net = PrunableBasicVSR(**{**SIZES, 'flow': flow})
    net.load_state_dict(reference.fold(gated.state_dict(), gated.groups))
    check(net, reference.finetune(net, teacher, batches(opt), opt['train']), opt)


@pytest.mark.parametrize('args', [{}, {'flow': 'spynet_small'}, {**EDSR, 'residual': 'aligned'}],
                         ids=['BasicVSR', 'flow', 'EDSR'])
def test_training_from_scratch_takes_only_the_shape_of_a_file(clips: Path, args: dict[str, Any]) -> None:
    small: Any = prune_network(make('whole.safetensors', **args), 0.4, score='l1')
    small.provenance = {'method': 'one-shot'}
    save_network(small, 'start.safetensors')
    opt = stage(clips, 4, train={'fix_flow': 9}, path={'pretrain_network_g': 'start.safetensors', 'reinitialise': True})
    opt = images(opt, clips) if small.task == 'image' else opt
    assert run(opt) == 0
    torch.manual_seed(opt['manual_seed'])
    load_network('start.safetensors')  # draws random numbers too
    fresh: Any = build_network(small.spec).double()
    if small.flow_network is not None:
        fresh.flow_network.load_state_dict(small.flow_network.state_dict())
    check(fresh, reference.reconstruct(fresh, batches(opt), opt['train']), opt)
    assert load_network(output()).spec == small.spec


DISTILLATION: dict[str, Any] = {'pixel_opt': {'type': 'L1Loss', 'loss_weight': 0.1}, 'accumulate': 2,
                                'distill_opt': {'type': 'MultiLaplacianLoss', 'loss_weight': 0.7}}


def test_distillation_of_clips(clips: Path) -> None:
    net, teacher = make('start.safetensors'), make('teacher.safetensors', seed=5, num_feat=6, num_block=2)
    opt = stage(clips, 4, model_type='DistillationModel', train=DISTILLATION, path={
        'pretrain_network_g': 'start.safetensors', 'pretrain_network_teacher': 'teacher.safetensors'})
    assert run(opt) == 0
    check(net, reference.distill(net, teacher, batches(opt), opt['train']), opt)


@pytest.mark.parametrize('arch', ['PrunableEDSR', 'PrunableSwinIR'])
def test_distillation_of_images(clips: Path, arch: str) -> None:
    sizes: dict[str, Any] = {'num_feat': 4, 'num_block': 1, 'img_range': 1.0} if arch == 'PrunableEDSR' else {
        'embed_dim': 6, 'depths': [2], 'num_heads': [2], 'window_size': 4}
    torch.manual_seed(0)
    net = ARCH_REGISTRY.get(arch)(**sizes, scale=2)
    save_network(net, 'start.safetensors')
    teacher = PrunableEDSR(6, 1, scale=2, img_range=1)
    save_network(teacher, 'teacher.safetensors')
    opt = stage(clips, 4, model_type='DistillationModel', scale=2, train=DISTILLATION, path={
        'pretrain_network_g': 'start.safetensors', 'pretrain_network_teacher': 'teacher.safetensors'})
    opt['datasets'] = {
        'train': {'name': 'frames', 'type': 'ImageFolderDataset', 'dataroot_gt': str(clips), 'gt_size': 20,
                  'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0},
        'val': {'name': 'held', 'type': 'ImageFolderTestDataset', 'dataroot_gt': str(clips / 'clip_0'),
                'degradation': 'BI'}}
    assert run(opt) == 0
    trained = reference.distill(net, teacher, batches(opt), opt['train'])
    state = torch.load('experiments/run/training_states/4.state', weights_only=True)
    assert_close(state['net'], trained.raw)
    assert_close(load_file(output()), trained.ema)


class StopAt(logging.Handler):
    """Asks for a stop in the given iteration, as Ctrl-C or a scheduler does."""

    def __init__(self, iteration: int) -> None:
        super().__init__()
        self.sign = f'iter:{iteration:8,d}'

    def emit(self, record: logging.LogRecord) -> None:
        if self.sign in record.getMessage():
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('iteration', [1, 3, 5])
@pytest.mark.parametrize('kind', ['ReconstructionModel', 'SparsityLearningModel', 'Aware', 'TemporalFinetuneModel',
                                  'DistillationModel'])
def test_an_interruption_changes_nothing(clips: Path, kind: str, iteration: int) -> None:
    make('start.safetensors', gated=True)
    make('teacher.safetensors', seed=5)
    opt = stage(clips, 6, model_type=kind, train=dict(RATES), path={'pretrain_network_g': 'start.safetensors'})
    if kind == 'SparsityLearningModel':
        opt.update(sparsity=SPARSITY, pruning={'ratio': 0.4, 'score': 'gate'})
    if kind == 'Aware':
        opt.update(model_type='SparsityLearningModel', sparsity={**AWARE, 'interval': 4}, pruning={
            'ratio': 0.4, 'score': 'l2', 'scope': 'local'})
    if kind == 'TemporalFinetuneModel':
        opt['train']['temporal_opt'] = {'type': 'TemporalStateLoss'}
    if kind == 'DistillationModel':
        opt['train'].update(DISTILLATION)
    if kind.endswith(('FinetuneModel', 'DistillationModel')):
        opt['path']['pretrain_network_teacher'] = 'teacher.safetensors'
    assert run(opt) == 0
    whole, selection = load_file(output()), read_metadata(output()).get('selection')
    logger, stop = logging.getLogger('basicsr'), StopAt(iteration)
    logger.addHandler(stop)
    try:
        assert run(opt) == 128 + signal.SIGTERM
    finally:
        logger.removeHandler(stop)
    torch.manual_seed(99)
    assert run(opt, '--auto_resume') == 0
    assert f'Resumed at iteration {iteration}' in Path('experiments/run/train.log').read_text()
    seen = load_file(output())
    assert all(torch.equal(tensor, seen[name]) for name, tensor in whole.items())
    assert read_metadata(output()).get('selection') == selection


def test_another_number_of_processes_would_train_on_other_batches(clips: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    make('start.safetensors')
    opt = stage(clips, 4, path={'pretrain_network_g': 'start.safetensors'})
    assert run(opt) == 0
    file = Path('experiments/run/training_states/4.state')
    state = torch.load(file, weights_only=True)
    assert state['world_size'] == 1
    torch.save({**state, 'world_size': 2}, file)
    opt['train'].update(total_iter=6, scheduler={'type': 'MultiStepLR', 'milestones': []})
    assert run(opt, '--auto_resume') != 0
    assert 'was written by a training with 2 process(es), this one has 1' in capsys.readouterr().err
    torch.save({key: value for key, value in state.items() if key != 'world_size'}, file)  # of before it was noted
    assert run(opt, '--auto_resume') == 0
