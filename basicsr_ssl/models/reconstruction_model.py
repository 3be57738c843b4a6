"""Training: any form of any network, on a loss between its output and what it should be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from basicsr.losses import build_loss
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr_ssl.models.optimization import LearningRate, build_optimizer, flow_parameters
from basicsr_ssl.models.stage import Stage
from basicsr_ssl.models.training_state import random_state, set_random_state, write_state
from basicsr_ssl.runtime import Run

AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
DIVERGED = ('training has diverged. Resume from an earlier state with a smaller learning rate (train: optim_g: lr), or '
            'with train: clip_grad_norm, or without amp: fp16')


@MODEL_REGISTRY.register()
class ReconstructionModel(Stage):
    """Trains a network on a reconstruction loss: dense training, and plain finetuning after pruning.

    Other stages that train override ``compute_losses``, ``adjust_gradients`` and ``stage_state`` with
    ``load_stage_state`` (what a resume needs beyond weights and optimizer). Everything else is the same for all:
    devices, DDP, mixed precision, accumulation, EMA, and the exact resume, which BasicSR's models do on CUDA only.
    """

    sections = ('train',)
    losses = ('pixel_opt',)

    def __init__(self, opt: Mapping[str, Any], run: Run) -> None:
        super().__init__(opt, run)
        self.net_g_ema: Any = None
        self.losses_seen: dict[str, Tensor] = {}  # of the last iteration
        if opt['train']['total_iter'] > 0:
            if not any(True for _ in self.net_g.parameters()):
                raise ValueError(f'{opt["path"].get("pretrain_network_g") or "network_g"} has no weights to train and '
                                 'nothing to prune; it can only be tested')
            self.init_training(opt['train'])

    # ---------------------------------------------------------------- hooks

    def compute_losses(self, inputs: tuple[Tensor, ...], target: Tensor, current_iter: int) -> dict[str, Tensor]:
        """Named losses of one batch; ``inputs`` and ``target`` as the network's task says (``tasks``)."""
        return {'l_pix': self.cri_pix(self.net(*inputs).float(), target)}

    def adjust_gradients(self, current_iter: int) -> None:
        """Change the gradients between backward and the optimizer's step."""

    def stage_state(self) -> dict[str, Any]:
        """What this stage must remember for a resume: plain containers and tensors."""
        return {}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``stage_state``."""

    def flow_is_frozen(self, current_iter: int) -> bool:
        fix_flow = self.opt['train'].get('fix_flow')
        return bool(fix_flow) and current_iter < fix_flow

    # ------------------------------------------------------------- training

    def init_training(self, train: Mapping[str, Any]) -> None:
        channels_last = train['channels_last']
        if channels_last is None:  # by rule, not measured: the same options give the same network again
            channels_last = self.device.type == 'cpu' or train['amp'] is not None
        if channels_last:
            self.net_g.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net_g.train()
        if train['ema_decay'] > 0:
            self.net_g_ema = deepcopy(self.net_g).eval().requires_grad_(False)
        if train['compile']:
            self.net_g.compile()
        self.cri_pix = build_loss(train['pixel_opt']).to(self.device)
        self.amp_dtype = AMP_TYPES[train['amp']] if train['amp'] else None
        # only float16 underflows; the scaler is a no-op otherwise
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.optimizer_g = build_optimizer(self.net_g, train)
        self.learning_rate = LearningRate(self.optimizer_g, train['scheduler'], train['warmup_iter'])
        self.flow_frozen: bool | None = None
        self.freeze_flow(1)

    def freeze_flow(self, current_iter: int) -> None:
        """Freeze or thaw the flow network, and wrap the network anew for DDP when that changes.

        DDP waits for the gradients of all parameters that needed one when it was built; wrapping anew is cheaper than
        letting it search for unused parameters in every iteration.
        """
        frozen = self.flow_is_frozen(current_iter)
        if frozen == self.flow_frozen:
            return
        self.flow_frozen = frozen
        for parameter in flow_parameters(self.net_g):
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        self.net: Any = self.net_g
        if self.run.processes.distributed:
            ids = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            # the buffers are constants: indices of channels, and SpyNet's mean and deviation
            self.net = DistributedDataParallel(self.net_g, device_ids=ids, broadcast_buffers=False,
                                               find_unused_parameters=self.opt['find_unused_parameters'])

    def optimize_parameters(self, batch: Mapping[str, Any], current_iter: int) -> None:
        """One iteration: ``accumulate`` forward and backward passes, one step of the optimizer."""
        train = self.opt['train']
        self.learning_rate.update(current_iter)
        self.freeze_flow(current_iter)
        self.optimizer_g.zero_grad(set_to_none=True)
        chunks = train['accumulate']
        parts = [batch[key].chunk(chunks) for key in (*self.task.inputs, self.task.target)]
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(zip(*parts, strict=True)):
            *inputs, target = (tensor.to(self.device, non_blocking=True) for tensor in part)
            distributed = self.run.processes.distributed
            wait = self.net.no_sync() if distributed and i < chunks - 1 else contextlib.nullcontext()
            with wait:
                with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    losses = self.compute_losses(tuple(inputs), target, current_iter)
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
            self._update_ema(train['ema_decay'])
        # kept as tensors: reading them would make the host wait for the device in every iteration
        self.losses_seen = sums

    @torch.no_grad()
    def _update_ema(self, decay: float) -> None:
        # lerp leaves a frozen parameter as it is, where decay * w + (1 - decay) * w drifts by rounding
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.net_g_ema.parameters()), list(self.net_g.parameters()), 1 - decay)

    def evaluated_network(self) -> Any:
        """The EMA weights if there are any."""
        return self.net_g if self.net_g_ema is None else self.net_g_ema

    def current_log(self) -> dict[str, float]:
        """Losses of the last iteration, averaged over the processes; called by all of them.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        values = torch.stack(list(self.losses_seen.values()))
        if self.run.processes.distributed:
            dist.all_reduce(values)
            values = values / self.run.processes.world_size
        log = dict(zip(self.losses_seen, values.tolist()))
        for name, value in log.items():
            if self.run.processes.is_first and not math.isfinite(value):
                raise FloatingPointError(f'the loss {name} is {value}: {DIVERGED}')
        return log

    # ---------------------------------------------------- saving and resuming

    def save_network(self, label: str, iteration: int) -> None:
        self._check_finite()
        super().save_network(label, iteration)

    def save_state(self, current_iter: int) -> None:
        """Write the training state, on the first process."""
        if not self.run.processes.is_first:
            return
        self._check_finite()
        write_state(self.run.training_states, {
            'iter': current_iter,
            'fingerprint': self.run.fingerprint,
            'world_size': self.run.processes.world_size,
            'net': self.net_g.state_dict(),
            'ema': self.net_g_ema.state_dict() if self.net_g_ema is not None else None,
            # lists, as BasicSR's states have them
            'optimizers': [self.optimizer_g.state_dict()],
            'schedulers': [self.learning_rate.state()],
            'scaler': self.scaler.state_dict(),
            'random': random_state(self.device),
            'stage': self.stage_state(),
        }, self.opt['logger']['keep_states'])

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``save_state`` was called."""
        self.net_g.load_state_dict(state['net'])
        if self.net_g_ema is not None:
            self.net_g_ema.load_state_dict(state['ema'])
        (optimizer,), (scheduler,) = state['optimizers'], state['schedulers']
        self.optimizer_g.load_state_dict(optimizer)
        self.learning_rate.load_state(scheduler)
        self.scaler.load_state_dict(state['scaler'])
        set_random_state(state['random'], self.device)
        self.load_stage_state(state['stage'])

    def _check_finite(self) -> None:
        """Raises FloatingPointError if training has diverged: such a network must not take the place of good ones."""
        values = {f'the loss {name}': value for name, value in self.losses_seen.items()}
        for name, value in {**values, **self.net_g.state_dict()}.items():
            if not value.isfinite().all():
                raise FloatingPointError(f'{name} is no longer finite, and is not saved: {DIVERGED}')
