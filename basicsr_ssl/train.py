"""Train one stage: BasicSR's loop, made to run anywhere and to resume exactly."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.utils import AvgTimer, MessageLogger, get_root_logger
from basicsr.utils.logger import init_tb_logger, init_wandb_logger
from basicsr.utils.registry import MODEL_REGISTRY
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from basicsr_ssl import config
from basicsr_ssl.checkpoints.store import BICUBIC, read_metadata
from basicsr_ssl.data.loader import train_loader
from basicsr_ssl.files import file_sha256
from basicsr_ssl.history import History
from basicsr_ssl.models.training_state import read_state, state_file, state_iterations
from basicsr_ssl.runtime import (
    Interrupted,
    Processes,
    Run,
    StopSignal,
    any_process,
    archive,
    barrier,
    log_to,
    only_in_file,
    root_folder,
)

OUT_OF_MEMORY = ('the GPU is out of memory. Lower batch_size_per_gpu and raise train: accumulate in its place, lower '
                 'num_frame or gt_size, or set train: amp: bf16')


def new_run(opt: Mapping[str, Any], processes: Processes) -> Run:
    """The run of a stage: its folders, and what its result depends on, its options and the contents of its input files.

    Raises:
        OSError: an input file cannot be read.
    """
    root, name = root_folder(opt), opt['name']
    parents = {key: file_sha256(path) for key, path in sorted(opt['path'].items())
               if key.startswith('pretrain_network') and path and path != BICUBIC}
    fingerprint = hashlib.sha256(json.dumps([config.digest(opt), parents]).encode()).hexdigest()
    return Run(processes, name, os.path.join(root, 'experiments', name), os.path.join(root, 'tb_logger', name),
               parents, fingerprint)


def is_finished(run: Run) -> bool:
    """Whether the stage's output exists and was made from the same options and inputs."""
    try:
        return os.path.isfile(run.output) and read_metadata(run.output).get('fingerprint') == run.fingerprint
    except ValueError as error:
        get_root_logger().warning(f'{error}: making it again')
        return False


def train_stage(opt: Mapping[str, Any], run: Run, resume: bool, same_options: bool = False) -> None:
    """Bring one stage from its options to its ``net_g_latest.safetensors``.

    Args:
        opt: resolved options of the stage.
        run: see ``new_run``.
        resume: continue from the latest training state of this experiment, if there is one.
        same_options: continue only a run of the same options and inputs; move another one aside.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        OSError, ValueError, FloatingPointError: with a message that says how to mend it.
    """
    state = _read_state(opt, run, resume, same_options)
    barrier()  # all have looked before the first process moves anything
    if run.processes.is_first:
        if state is None:
            archive(run.folder)
            archive(run.tb_folder)
        for folder in (run.models, run.training_states, run.visualization):
            os.makedirs(folder, exist_ok=True)
    barrier()
    with log_to(os.path.join(run.folder, 'train.log')) as logger:
        try:
            _run(opt, run, state, logger)
        except Exception as error:
            with only_in_file(True):  # the terminal hears of it from whoever called
                logger.info(f'Ended: {error}', exc_info=not isinstance(error, Interrupted))
            if isinstance(error, torch.OutOfMemoryError):
                raise OSError(OUT_OF_MEMORY) from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of TensorBoard's files, say
                raise OSError(f'{error}: free some space or set path: root to another disk; --auto_resume then '
                              'continues from the newest state') from error
            raise


def _run(opt: Mapping[str, Any], run: Run, state: Mapping[str, Any] | None, logger: Any) -> None:
    """Build the stage, train it if it is one that trains, validate and save the result."""
    val, processes = opt.get('val') or {}, run.processes
    total = opt['train']['total_iter']
    logger.info(f'Stage {run.name} ({opt["model_type"]}): {total} iterations, {processes.world_size} process(es), '
                f'{processes.device.type.upper()}; resolved options in {run.folder}')
    tb_logger = _tb_logger(opt, run)
    stage = MODEL_REGISTRY.get(opt['model_type'])(opt, run)
    start = 0 if state is None else _resume(stage, state, total, run)
    if processes.is_first:
        config.save_options(opt, os.path.join(run.folder, 'options.yml'))
    val_sets = [(build_dataset(dataset), dataset['name']) for phase, dataset in opt['datasets'].items()
                if val and phase.split('_')[0] == 'val']

    history = History(run.folder, start) if processes.is_first else None

    def validate(current_iter: int) -> None:
        for dataset, name in val_sets:
            stage.validation(dataset, name, current_iter, tb_logger)
        if history is not None and val_sets:
            history.add(current_iter, metrics=stage.metrics)

    if total:
        _iterate(opt, run, stage, start, tb_logger, history, validate)
    elif tb_logger is not None:
        stage.write_summaries(tb_logger, 0)
    validate(total)
    stage.save_network('latest', -1)
    barrier()
    logger.info(f'Finished {run.name}: {run.output}')
    if tb_logger is not None:
        tb_logger.close()


def _resume(stage: Any, state: Mapping[str, Any], total: int, run: Run) -> int:
    """Continue from a training state; returns its iteration."""
    start = state['iter']
    try:
        stage.resume(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f'the training state of iteration {start} is of another network or another kind of '
                         f'training than these options describe. Restore its options, which stand in '
                         f'{run.folder}/options.yml, or move {run.folder} away to start anew') from error
    if start > total:
        raise ValueError(f'the training state is of iteration {start}, but train: total_iter is {total}; raise it, '
                         'or resume from an earlier state')
    barrier()  # all have read theirs
    # later states belong to the course that is left now
    for iteration in state_iterations(run.training_states) if run.processes.is_first else []:
        if iteration > start:
            name = state_file(run.training_states, iteration)
            os.replace(name, f'{name}.superseded')
    get_root_logger().info(f'Resumed at iteration {start}')
    return start


def _iterate(opt: Mapping[str, Any], run: Run, stage: Any, start: int, tb_logger: Any, history: History | None,
             validate: Callable[[int], None]) -> None:
    """The loop: iterations ``start + 1`` to the last, with what happens every so many of them."""
    train, log, val, processes = opt['train'], opt['logger'], opt.get('val') or {}, run.processes
    total = train['total_iter']
    dataset = build_dataset(opt['datasets']['train'])
    batches = train_loader(dataset, opt['datasets']['train'], opt['manual_seed'], processes.rank, processes.world_size,
                           start, train['accumulate'])
    write_line = MessageLogger({**opt, 'logger': {**log, 'use_tb_logger': tb_logger is not None}}, start + 1, tb_logger)
    # without a terminal the log lines alone tell the progress
    on_terminal = processes.is_first and sys.stderr.isatty()
    bar = tqdm(total=total, initial=start, unit='it', desc=os.path.basename(run.name), disable=not on_terminal,
               dynamic_ncols=True)
    redirect = logging_redirect_tqdm([get_root_logger()]) if on_terminal else contextlib.nullcontext()
    step_timer, data_timer = AvgTimer(), AvgTimer()

    def report(current_iter: int) -> None:
        figures, rates = stage.current_log(), stage.learning_rate.rates()
        bar.set_postfix({name: f'{value:.3g}' for name, value in figures.items()})
        with only_in_file(on_terminal):
            write_line({'epoch': 0, 'iter': current_iter, 'lrs': list(rates.values()),
                        'time': step_timer.get_avg_time(), 'data_time': data_timer.get_avg_time(), **figures})
        if history is not None:
            history.add(current_iter, losses=figures, rates=rates, **stage.remembered())
        if tb_logger is not None:
            for group, rate in rates.items():
                tb_logger.add_scalar(f'lr/{group}', rate, current_iter)
            stage.write_summaries(tb_logger, current_iter)

    def save(current_iter: int) -> None:
        stage.save_network(str(current_iter), current_iter)
        stage.save_state(current_iter)

    with redirect, bar, StopSignal() as stop:
        for current_iter in range(start + 1, total + 1):
            data_timer.start()
            batch = next(batches)
            data_timer.record()
            stage.optimize_parameters(batch, current_iter)
            step_timer.record()
            bar.update()
            if current_iter % log['print_freq'] == 0:
                report(current_iter)
            saved = current_iter % log['save_checkpoint_freq'] == 0
            if saved:
                save(current_iter)
            validates = val and current_iter % val['val_freq'] == 0 and current_iter < total
            # asking the other processes costs a wait for the device: on GPUs not in every iteration
            cheap = processes.device.type == 'cpu' or not processes.distributed
            asks = cheap or validates or current_iter % 10 == 0 or current_iter == total
            if asks and (signum := any_process(stop.signum, processes.device)):
                if not saved:
                    save(current_iter)
                barrier()
                raise Interrupted(signum, current_iter, state_file(run.training_states, current_iter))
            if validates:
                validate(current_iter)
                step_timer.start()
    if total % log['save_checkpoint_freq']:
        stage.save_state(total)


def _tb_logger(opt: Mapping[str, Any], run: Run) -> Any:
    log = opt['logger']
    if log['wandb']:  # it copies what TensorBoard's writer writes, and so must start first
        try:
            init_wandb_logger(opt)
        except ModuleNotFoundError as error:
            raise ValueError(f'logger: wandb: {error}: install it (pip install wandb), or remove this key') from error
    wanted = log['use_tb_logger'] and not run.name.startswith('debug')
    return init_tb_logger(run.tb_folder) if wanted else None


def _read_state(opt: Mapping[str, Any], run: Run, resume: bool, same_options: bool) -> dict[str, Any] | None:
    path = opt['path'].get('resume_state')
    newest = max(state_iterations(run.training_states), default=0) if resume else 0
    if newest:  # this run's own state is further than the one it may have been started from
        path = state_file(run.training_states, newest)
    if not path:
        return None
    state = read_state(path)
    if state['fingerprint'] != run.fingerprint:
        if same_options:
            get_root_logger().warning(f'{path} belongs to other options or inputs: starting this stage anew')
            return None
        get_root_logger().warning(f'{path} was written with other options or inputs; continuing from it all the same')
    # which samples a batch holds depends on it; states of before it was noted do not tell
    before, now = state.get('world_size'), run.processes.world_size
    if before not in (None, now):
        raise ValueError(f'{path} was written by a training with {before} process(es), this one has {now}: the batches '
                         f'would be others. Continue with {before}, or move {run.folder} away to start anew')
    return state
