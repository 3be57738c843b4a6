"""Train one stage: BasicSR's loop, made to run anywhere and to resume exactly."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils import AvgTimer, MessageLogger, get_root_logger
from basicsr.utils.logger import init_tb_logger, init_wandb_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from basicsr_ssl import config
from basicsr_ssl.checkpoints.store import BICUBIC, read_metadata
from basicsr_ssl.data.loader import train_loader
from basicsr_ssl.files import file_sha256
from basicsr_ssl.models.reconstruction_model import state_iterations
from basicsr_ssl.runtime import (
    Interrupted,
    StopSignal,
    add_folders,
    any_process,
    archive,
    barrier,
    log_to,
    only_in_file,
)

OUT_OF_MEMORY = ('the GPU is out of memory. Lower batch_size_per_gpu and raise train: accumulate in its place, lower '
                 'num_frame or gt_size, or set train: amp: bf16')


def output_path(opt: dict[str, Any]) -> str:
    """The file that a stage leaves behind."""
    root = opt['path'].get('root') or '.'
    return os.path.join(root, 'experiments', opt['name'], 'models', 'net_g_latest.safetensors')


def add_fingerprint(opt: dict[str, Any]) -> None:
    """Write into the options what the stage's result depends on: its options, and the contents of its input files."""
    opt['parents'] = {key: file_sha256(path) for key, path in sorted(opt['path'].items())
                      if key.startswith('pretrain_network') and path and path != BICUBIC}
    opt['fingerprint'] = hashlib.sha256(json.dumps([config.digest(opt), opt['parents']]).encode()).hexdigest()


def is_finished(opt: dict[str, Any]) -> bool:
    """Whether the stage's output exists and was made from these options and inputs (see ``add_fingerprint``)."""
    path = output_path(opt)
    try:
        return os.path.isfile(path) and read_metadata(path).get('fingerprint') == opt['fingerprint']
    except ValueError as error:
        get_root_logger().warning(f'{error}: making it again')
        return False


def train_stage(opt: dict[str, Any], resume: bool, same_options: bool = False) -> None:
    """Train one stage from its options to its ``net_g_latest.safetensors``.

    Args:
        opt: resolved options of the stage, after ``runtime.start_processes`` and ``add_fingerprint``.
        resume: continue from the latest training state of this experiment, if there is one.
        same_options: continue only a run of the same options and inputs; move another one aside.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        OSError, ValueError, FloatingPointError: with a message that says how to mend it.
    """
    add_folders(opt, is_train=True)
    root = opt['path']['experiments_root']
    state = _read_state(opt, resume, same_options)
    barrier()  # all have looked before the first process moves anything
    if opt['rank'] == 0:
        if state is None:
            archive(root)
            archive(_tb_folder(opt))
        for key in ('models', 'training_states', 'visualization'):
            os.makedirs(opt['path'][key], exist_ok=True)
    barrier()
    with log_to(os.path.join(root, 'train.log')) as logger:
        try:
            _run(opt, state, logger)
        except Exception as error:
            with only_in_file(True):  # the terminal hears of it from whoever called
                logger.info(f'Ended: {error}', exc_info=not isinstance(error, Interrupted))
            if isinstance(error, torch.OutOfMemoryError):
                raise OSError(OUT_OF_MEMORY) from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of TensorBoard's files, say
                raise OSError(f'{error}: free some space or set path: root to another disk; --auto_resume then '
                              'continues from the newest state') from error
            raise


def _run(opt: dict[str, Any], state: dict[str, Any] | None, logger: Any) -> None:
    """Build the model, train it, validate and save the result."""
    total, val = opt['train']['total_iter'], opt.get('val') or {}
    logger.info(f'Stage {opt["name"]} ({opt["model_type"]}): {total} iterations, {opt["world_size"]} process(es), '
                f'{"CUDA" if opt["num_gpu"] else "CPU"}; resolved options in {opt["path"]["experiments_root"]}')
    tb_logger = _tb_logger(opt)
    model = build_model(opt)
    start = 0
    if state is not None:
        start = state['iter']
        try:
            model.resume_training(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            folder = opt['path']['experiments_root']
            raise ValueError(f'the training state of iteration {start} is of another network or another kind of '
                             f'training than these options describe. Restore its options, which stand in '
                             f'{folder}/options.yml, or move {folder} away to start anew') from error
        if start > total:
            raise ValueError(f'the training state is of iteration {start}, but train: total_iter is {total}; raise it, '
                             'or resume from an earlier state')
        _set_aside_later_states(opt, start)
        logger.info(f'Resumed at iteration {start}')
    if opt['rank'] == 0:
        config.save_options(opt, os.path.join(opt['path']['experiments_root'], 'options.yml'))
    val_loaders = [SimpleNamespace(dataset=build_dataset(dataset), name=dataset['name'])
                   for phase, dataset in opt['datasets'].items() if val and phase.split('_')[0] == 'val']

    def validate(current_iter: int) -> None:
        for loader in val_loaders:
            model.validation(loader, current_iter, tb_logger, val['save_img'])

    if total:
        _iterate(opt, model, start, tb_logger, validate)
    elif tb_logger is not None:
        model.write_summaries(tb_logger, 0)
    validate(total)
    model.save(-1, -1)
    barrier()
    logger.info(f'Finished {opt["name"]}: {output_path(opt)}')
    if tb_logger is not None:
        tb_logger.close()


def _iterate(opt: dict[str, Any], model: Any, start: int, tb_logger: Any, validate: Callable[[int], None]) -> None:
    """The loop: iterations ``start + 1`` to the last, with what happens every so many of them."""
    train, log, val = opt['train'], opt['logger'], opt.get('val') or {}
    total = train['total_iter']
    dataset = build_dataset(opt['datasets']['train'])
    batches = train_loader(dataset, opt['datasets']['train'], opt['manual_seed'], opt['rank'], opt['world_size'], start,
                           train['accumulate'])
    write_line = MessageLogger({**opt, 'logger': {**log, 'use_tb_logger': tb_logger is not None}}, start + 1, tb_logger)
    # without a terminal the log lines alone tell the progress
    on_terminal = opt['rank'] == 0 and sys.stderr.isatty()
    bar = tqdm(total=total, initial=start, unit='it', desc=os.path.basename(opt['name']), disable=not on_terminal,
               dynamic_ncols=True)
    redirect = logging_redirect_tqdm([get_root_logger()]) if on_terminal else contextlib.nullcontext()
    step_timer, data_timer = AvgTimer(), AvgTimer()

    def report(current_iter: int) -> None:
        losses, rates = model.get_current_log(), model.get_current_learning_rate()
        bar.set_postfix({name: f'{value:.3g}' for name, value in losses.items()})
        with only_in_file(on_terminal):
            write_line({'epoch': 0, 'iter': current_iter, 'lrs': rates, 'time': step_timer.get_avg_time(),
                        'data_time': data_timer.get_avg_time(), **losses})
        if tb_logger is not None:
            for group, rate in zip(model.optimizers[0].param_groups, rates):
                tb_logger.add_scalar(f'lr/{group["name"]}', rate, current_iter)
            model.write_summaries(tb_logger, current_iter)

    with redirect, bar, StopSignal() as stop:
        for current_iter in range(start + 1, total + 1):
            data_timer.start()
            batch = next(batches)
            data_timer.record()
            model.update_learning_rate(current_iter, train['warmup_iter'])
            model.feed_data(batch)
            model.optimize_parameters(current_iter)
            step_timer.record()
            bar.update()
            if current_iter % log['print_freq'] == 0:
                report(current_iter)
            saved = current_iter % log['save_checkpoint_freq'] == 0
            if saved:
                model.save(0, current_iter)
            validates = val and current_iter % val['val_freq'] == 0 and current_iter < total
            # asking the other processes costs a wait for the device: on GPUs not in every iteration
            cheap = opt['num_gpu'] == 0 or not opt['dist']
            asks = cheap or validates or current_iter % 10 == 0 or current_iter == total
            if asks and (signum := any_process(stop.signum, model.device)):
                if not saved:
                    model.save(0, current_iter)
                barrier()
                raise Interrupted(signum, current_iter,
                                  os.path.join(opt['path']['training_states'], f'{current_iter}.state'))
            if validates:
                validate(current_iter)
                step_timer.start()
    if opt['rank'] == 0 and total % log['save_checkpoint_freq']:
        model.save_training_state(0, total)


def _set_aside_later_states(opt: dict[str, Any], start: int) -> None:
    """Rename states later than the one resumed from: they belong to the course that is left now."""
    folder = opt['path']['training_states']
    barrier()  # all have read theirs
    for iteration in state_iterations(folder) if opt['rank'] == 0 else []:
        if iteration > start:
            name = os.path.join(folder, f'{iteration}.state')
            os.replace(name, f'{name}.superseded')


def _tb_logger(opt: dict[str, Any]) -> Any:
    log = opt['logger']
    if log['wandb']:  # it copies what TensorBoard's writer writes, and so must start first
        try:
            init_wandb_logger(opt)
        except ModuleNotFoundError as error:
            raise ValueError(f'logger: wandb: {error}: install it (pip install wandb), or remove this key') from error
    wanted = log['use_tb_logger'] and not opt['name'].startswith('debug')
    return init_tb_logger(_tb_folder(opt)) if wanted else None


def _tb_folder(opt: dict[str, Any]) -> str:
    return os.path.join(opt['path'].get('root') or '.', 'tb_logger', opt['name'])


def _read_state(opt: dict[str, Any], resume: bool, same_options: bool) -> dict[str, Any] | None:
    path = opt['path'].get('resume_state')
    newest = max(state_iterations(opt['path']['training_states']), default=0) if resume else 0
    if newest:  # this run's own state is further than the one it may have been started from
        path = os.path.join(opt['path']['training_states'], f'{newest}.state')
    if not path:
        return None
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        fingerprint, _ = state['fingerprint'], state['iter']
    except FileNotFoundError:
        raise FileNotFoundError(f'path: resume_state: no such file: {path}') from None
    except Exception as error:
        raise ValueError(f'{path} is no training state of basicsr_ssl, or damaged. Remove it: --auto_resume then '
                         'continues from the newest of the others') from error
    if fingerprint != opt['fingerprint']:
        if same_options:
            get_root_logger().warning(f'{path} belongs to other options or inputs: starting this stage anew')
            return None
        get_root_logger().warning(f'{path} was written with other options or inputs; continuing from it all the same')
    return state
