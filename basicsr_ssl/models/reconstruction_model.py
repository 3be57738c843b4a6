"""What all stages share: train any form of a network to reconstruct frames, save, resume, validate."""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections import OrderedDict
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr_ssl.api import count_macs, count_params
from basicsr_ssl.checkpoints.files import write_atomically
from basicsr_ssl.checkpoints.store import BICUBIC, load_network, load_strictly, save_network
from basicsr_ssl.evaluation.evaluate import measure
from basicsr_ssl.evaluation.result import Figures
from basicsr_ssl.nn.spynet import AnySizeSpyNet
from basicsr_ssl.pruning.cost import LR_SIZE

AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
FLOW_PREFIX = 'spynet.'
DIVERGED = ('training has diverged. Resume from an earlier state with a smaller learning rate (train: optim_g: lr), or '
            'with train: clip_grad_norm, or without amp: fp16')


@MODEL_REGISTRY.register()
class ReconstructionModel(BaseModel):
    """Trains a network on a reconstruction loss: dense training, and plain finetuning after pruning.

    The other stages override four hooks: ``prepare`` (turn the network that was read into the one that is trained),
    ``compute_losses``, ``adjust_gradients`` and ``stage_state`` / ``load_stage_state`` (what a resume needs beyond
    weights and optimizer). Everything else is the same for all: devices, DDP, mixed precision, accumulation, EMA,
    saving, exact resume and validation, which BasicSR's video models do on CUDA only.

    Args:
        opt: the resolved options of one stage, with the entries that ``runtime`` adds (rank, folders, device count).
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.metrics: dict[str, dict[str, float]] = {}  # of the last validation, by test set
        net = read_input_network(opt)
        if not net.groups:
            raise ValueError(f'{opt["path"].get("pretrain_network_g") or "network_g"} has no weights to train and '
                             'nothing to prune; it can only be tested')
        # how it was pruned, or is being; a later stage inherits it with the network
        self.method: str | None = getattr(net, 'provenance', {}).get('method')
        self.net_g: Any = self.prepare(net).to(self.device)
        lr_size = tuple(opt['pruning']['lr_size']) if opt.get('pruning') else LR_SIZE
        get_root_logger().info(
            f'{type(self.net_g).__name__}, {self.net_g.spec.form}: '
            f'{count_params(self.net_g, flow=False):,} parameters '
            f'({count_params(self.net_g):,} with the flow network), '
            f'{count_macs(self.net_g, lr_size, flow=False) / 1e9:.2f} G MACs per frame of {lr_size[0]}x{lr_size[1]} '
            f'({count_macs(self.net_g, lr_size) / 1e9:.2f} with it)')
        if self.is_train and opt['train']['total_iter'] > 0:
            self.init_training_settings()

    # ---------------------------------------------------------------- hooks

    def prepare(self, net: nn.Module) -> nn.Module:
        """Turn the network that was read into the one that this stage trains."""
        return net

    def compute_losses(self, lq: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Named losses of one batch: ``lq`` (b, n, 3, h, w), ``gt`` (b, n, 3, s*h, s*w)."""
        return {'l_pix': self.cri_pix(self.net(lq).float(), gt)}

    def adjust_gradients(self, current_iter: int) -> None:
        """Change the gradients between backward and the optimizer's step."""

    def stage_state(self) -> dict[str, Any]:
        """What this stage must remember for a resume: plain containers and tensors."""
        return {}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``stage_state``."""

    def provenance(self) -> dict[str, Any]:
        """What the saved file says about this stage, beyond what all stages say."""
        return {}

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        """Stage-specific TensorBoard entries."""

    # ------------------------------------------------------------- training

    def init_training_settings(self) -> None:
        train = self.opt['train']
        if train['channels_last']:
            self.net_g.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net_g.train()
        self.ema_decay = train['ema_decay']
        self.net_g_ema: Any = _frozen_copy(self.net_g) if self.ema_decay > 0 else None
        if train['compile']:
            self.net_g.compile()
        self.cri_pix = build_loss(train['pixel_opt']).to(self.device)
        self.amp_dtype = AMP_TYPES[train['amp']] if train['amp'] else None
        # only float16 underflows; the scaler is a no-op otherwise
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.flow_frozen = None
        self.setup_optimizers()
        self.setup_schedulers()
        self.freeze_flow(1)

    def setup_optimizers(self) -> None:
        """One parameter group each for the network, its flow network and its gates, with their own learning rates."""
        train = self.opt['train']
        optim = dict(train['optim_g'])
        kind, lr = optim.pop('type'), optim.pop('lr')
        gates = {gate for group in self.net_g.groups for gate in group.gates}
        members: dict[str, list[nn.Parameter]] = {'net': [], 'flow': [], 'gates': []}
        for name, parameter in self.net_g.named_parameters():
            members['flow' if name.startswith(FLOW_PREFIX) else 'gates' if name in gates else 'net'].append(parameter)
        scale = {'net': 1, 'flow': train['flow_lr_mul'], 'gates': train['gate_lr_mul']}
        groups = []
        for part, parameters in members.items():
            if parameters:
                group: dict[str, Any] = {'params': parameters, 'lr': lr * scale[part], 'name': part}
                if part == 'gates':
                    group['weight_decay'] = 0  # the stage's own penalty is the only one that acts on gates
                groups.append(group)
        self.optimizer_g = self.get_optimizer(kind, groups, lr, **optim)
        self.optimizers.append(self.optimizer_g)

    def flow_is_frozen(self, current_iter: int) -> bool:
        fix_flow = self.opt['train'].get('fix_flow')
        return bool(fix_flow) and current_iter < fix_flow

    def freeze_flow(self, current_iter: int) -> None:
        """Freeze or thaw the flow network, and wrap the network anew for DDP when that changes.

        DDP waits for the gradients of all parameters that needed one when it was built; wrapping anew is cheaper than
        letting it search for unused parameters in every iteration.
        """
        frozen = self.flow_is_frozen(current_iter)
        if frozen == self.flow_frozen:
            return
        self.flow_frozen = frozen
        for name, parameter in self.net_g.named_parameters():
            if name.startswith(FLOW_PREFIX):
                parameter.requires_grad_(not frozen)
                parameter.grad = None
        self.net: Any = self.net_g
        if self.opt['dist']:
            ids = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            # the buffers are constants: indices of channels, and SpyNet's mean and deviation
            self.net = DistributedDataParallel(self.net_g, device_ids=ids, broadcast_buffers=False,
                                               find_unused_parameters=self.opt['find_unused_parameters'])

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        if current_iter == warmup_iter:
            # BasicSR stops one step short of the full rate, and MultiStepLR would stay there
            self._set_lr(self._get_init_lr())
        super().update_learning_rate(current_iter, warmup_iter)

    def feed_data(self, data: dict[str, Any]) -> None:
        self.lq, self.gt = data['lq'], data['gt']

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: ``accumulate`` forward and backward passes, one step of the optimizer."""
        train = self.opt['train']
        self.freeze_flow(current_iter)
        self.optimizer_g.zero_grad(set_to_none=True)
        chunks = train['accumulate']
        sums: dict[str, Tensor] = OrderedDict()
        for i, (lq, gt) in enumerate(zip(self.lq.chunk(chunks), self.gt.chunk(chunks), strict=True)):
            lq, gt = lq.to(self.device, non_blocking=True), gt.to(self.device, non_blocking=True)
            wait = self.net.no_sync() if self.opt['dist'] and i < chunks - 1 else contextlib.nullcontext()
            with wait:
                with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    losses = self.compute_losses(lq, gt)
                total = torch.stack(list(losses.values())).sum() / chunks
                self.scaler.scale(total).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / chunks
        self.scaler.unscale_(self.optimizer_g)
        self.adjust_gradients(current_iter)
        if train['clip_grad_norm']:
            nn.utils.clip_grad_norm_(self.net_g.parameters(), train['clip_grad_norm'])
        self.scaler.step(self.optimizer_g)
        self.scaler.update()
        if self.net_g_ema is not None:
            self.model_ema(self.ema_decay)
        # kept as tensors: reading them would make the host wait for the device in every iteration
        self.loss_dict = sums

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        # lerp leaves a frozen parameter as it is, where decay * w + (1 - decay) * w drifts by rounding
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.net_g_ema.parameters()), list(self.net_g.parameters()), 1 - decay)

    def get_current_log(self) -> dict[str, float]:
        """Losses of the last iteration, averaged over the processes; called by all of them.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        log = self.reduce_loss_dict(self.loss_dict)
        for name, value in log.items():
            if self.opt['rank'] == 0 and not math.isfinite(value):
                raise FloatingPointError(f'the loss {name} is {value}: {DIVERGED}')
        return log

    # ---------------------------------------------------- saving and resuming

    def save(self, epoch: int, current_iter: int) -> None:
        """Write the network (EMA weights if there are any) and, unless training is over, the training state."""
        del epoch  # the data stream has no epochs
        if self.opt['rank'] != 0:
            return
        self._check_finite()
        label = 'latest' if current_iter == -1 else str(current_iter)
        net = self.evaluated_network()
        path = os.path.join(self.opt['path']['models'], f'net_g_{label}.safetensors')
        save_network(net, path, stage=self.opt['name'], model_type=self.opt['model_type'], method=self.method,
                     iteration=current_iter, weights='ema' if net is not self.net_g else 'trained',
                     fingerprint=self.opt['fingerprint'], parents=self.opt['parents'], options=_as_json(self.opt),
                     metrics=self.metrics, **self.provenance())
        if current_iter != -1:
            self.save_training_state(0, current_iter)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        del epoch
        self._check_finite()
        numpy_state: Any = np.random.get_state()
        version, keys, position, has_gauss, cached = numpy_state
        state = {
            'iter': current_iter,
            'fingerprint': self.opt['fingerprint'],
            'net': self.net_g.state_dict(),
            'ema': self.net_g_ema.state_dict() if self.net_g_ema is not None else None,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            # the rest of a scheduler's state follows from the options
            'schedulers': [{'last_epoch': s.last_epoch, '_step_count': s._step_count, '_last_lr': s._last_lr}
                           for s in self.schedulers],
            'scaler': self.scaler.state_dict(),
            'random': {
                'python': random.getstate(),
                'numpy': [version, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
                'torch': torch.get_rng_state(),
                'cuda': torch.cuda.get_rng_state() if self.device.type == 'cuda' else None,
            },
            'stage': self.stage_state(),
        }
        folder = self.opt['path']['training_states']
        path = os.path.join(folder, f'{current_iter}.state')
        write_atomically(path, lambda temporary: torch.save(state, temporary))
        states = state_iterations(folder)
        for iteration in states[:-(self.opt['logger']['keep_states'] or len(states))]:
            os.unlink(os.path.join(folder, f'{iteration}.state'))

    def _check_finite(self) -> None:
        """Raises FloatingPointError if training has diverged: such a network must not take the place of good ones."""
        values = {f'the loss {name}': value for name, value in getattr(self, 'loss_dict', {}).items()}
        for name, value in {**values, **self.net_g.state_dict()}.items():
            if not value.isfinite().all():
                raise FloatingPointError(f'{name} is no longer finite, and is not saved: {DIVERGED}')

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Continue exactly where ``save_training_state`` was called."""
        self.net_g.load_state_dict(resume_state['net'])
        if self.net_g_ema is not None:
            self.net_g_ema.load_state_dict(resume_state['ema'])
        for optimizer, state in zip(self.optimizers, resume_state['optimizers'], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(self.schedulers, resume_state['schedulers'], strict=True):
            scheduler.load_state_dict(state)
        self.scaler.load_state_dict(resume_state['scaler'])
        rng = resume_state['random']
        random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in rng['python']))
        version, keys, position, has_gauss, cached = rng['numpy']
        np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(rng['torch'].cpu())
        if rng['cuda'] is not None and self.device.type == 'cuda':
            torch.cuda.set_rng_state(rng['cuda'].cpu())
        self.load_stage_state(resume_state['stage'])

    # ------------------------------------------------------------ validation

    def evaluated_network(self) -> Any:
        """The network that is validated and saved: the EMA weights if there are any."""
        ema = getattr(self, 'net_g_ema', None)
        return self.net_g if ema is None else ema

    def validation(self, dataloader: Any, current_iter: int, tb_logger: Any,  # type: ignore[override]
                   save_img: bool = False) -> Figures:
        """Metrics of one test set (``dataloader.dataset``, ``dataloader.name``), whatever the number of processes.

        Returns:
            See ``measure``.
        """
        name = dataloader.name
        net = self.evaluated_network()
        training = net.training
        net.eval()
        figures = measure(net, dataloader.dataset, name, self.opt, self.device, save_img, tb_logger, current_iter)
        net.train(training)
        self.metrics[name] = figures.metrics
        return figures


def read_network(opt: dict[str, Any], key: str) -> Any:
    """The network in the file that ``path`` names as ``key``, of any known format.

    Raises:
        OSError, ValueError: the file cannot be read; the message names the option.
    """
    path = opt['path'][key]
    if path == BICUBIC:
        return ARCH_REGISTRY.get('BicubicUpsampler')(opt['scale'])
    try:
        net: Any = load_network(path, opt['path'].get('param_key_g') if key == 'pretrain_network_g' else None)
    except ValueError as error:
        raise ValueError(f'path: {key}: {error}') from error
    if isinstance(net, AnySizeSpyNet):
        raise ValueError(f'path: {key}: {path} is a SpyNet, which estimates flow only: name it as network_g: '
                         'spynet_path, and here a BasicVSR')
    if _is_inferred(net):
        weights = net.provenance['param_key']
        get_root_logger().info(f'Imported {path}, of {net.provenance["source_format"]}'
                               f'{f", weights {weights}" if weights else ""}')
    return net


def _is_inferred(net: Any) -> bool:
    """Whether what the network is was inferred from a state dict, and not said by a file of ours."""
    told = getattr(net, 'provenance', {})
    return 'source_format' in told and 'stage' not in told


def read_input_network(opt: dict[str, Any]) -> Any:
    """The network that a stage starts from: ``path: pretrain_network_g``, else a fresh ``network_g``.

    Raises:
        ValueError: neither is given, or the file holds another network than ``network_g`` describes.
    """
    path, network = opt['path'].get('pretrain_network_g'), opt.get('network_g')
    fresh: Any = None
    if network:
        arguments = deepcopy(network)
        fresh = ARCH_REGISTRY.get(arguments.pop('type'))(**arguments)
        if not hasattr(fresh, 'spec'):
            raise ValueError(f'network_g: type: {type(fresh).__name__} declares nothing to prune; use a network of '
                             'basicsr_ssl, such as PrunableBasicVSR')
    if not path:
        if fresh is None:
            raise ValueError('no network to start from: set path: pretrain_network_g to a file, or network_g')
        return fresh
    net = read_network(opt, 'pretrain_network_g')
    if fresh is None:
        return net
    if _is_inferred(net) and net.provenance['source_format'] in ('BasicSR', 'mmagic'):
        # a state dict does not say its activation: the options do
        try:
            load_strictly(fresh, net.state_dict(), f'path: pretrain_network_g: {path}')
        except ValueError as error:
            raise ValueError(f'{error}\nCorrect network_g, or leave it out: the sizes follow from the file') from error
        return fresh
    own, given = fresh.spec.args, net.spec.args
    different = [f'{key}: {given.get(key)!r} in the file, {own[key]!r} in network_g'
                 for key in own if own[key] != given.get(key)]
    if net.spec.arch != fresh.spec.arch or different:
        raise ValueError(f'path: pretrain_network_g: {path} holds another network than network_g describes '
                         f'({"; ".join(different) or net.spec.arch}). Correct network_g, or leave it out: the file '
                         'says what it is')
    return net


def describe_method(selection: str, pruning: dict[str, Any]) -> str:
    """How units were chosen, in words for the file: when (``selection``), and by which section ``pruning``."""
    return f'{selection}: {pruning["score"]}, {pruning["scope"]}, {pruning["ratio"]:.2%} of {pruning["budget"]}'


def state_iterations(folder: str) -> list[int]:
    """Iterations of the training states in a folder, ascending; none if there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(stem) for stem, end in map(os.path.splitext, names) if end == '.state' and stem.isdecimal())


def _frozen_copy(net: nn.Module) -> nn.Module:
    copy = deepcopy(net).eval()
    return copy.requires_grad_(False)


def _as_json(opt: dict[str, Any]) -> dict[str, Any]:
    """The resolved options without what only this run of the program knows."""
    runtime = ('rank', 'world_size', 'dist', 'is_train', 'num_gpu', 'parents', 'fingerprint', 'auto_resume')
    return {key: value for key, value in opt.items() if key not in runtime}
