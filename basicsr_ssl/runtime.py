"""What a run of the program sets up around the work: processes, devices, seeds, folders, logs, signals."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from basicsr.utils import get_root_logger, get_time_str, set_random_seed
from basicsr.utils.dist_util import get_dist_info

Made = TypeVar('Made')


class Interrupted(Exception):
    """Training was asked to stop, and has saved a state to continue from."""

    def __init__(self, signum: int, iteration: int, state: str) -> None:
        super().__init__(f'stopped by {signal.Signals(signum).name} after iteration {iteration}; the state is saved as '
                         f'{state}. The same command with --auto_resume continues from there')
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: its number, how many there are, and the device that it works on."""

    rank: int
    world_size: int
    device: torch.device
    distributed: bool

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


@dataclass(frozen=True)
class Run:
    """What one run of a stage or a test knows beside its options.

    Attributes:
        processes: this process among those of the run.
        name: of the experiment, ``<recipe>/<stage>`` in a recipe.
        folder: where it writes, BasicSR's ``experiments/<name>`` or ``results/<name>``.
        tb_folder: where TensorBoard's files go.
        parents: SHA-256 of the network files that it starts from, by their key in ``path``.
        fingerprint: SHA-256 of all that decides its result, options and input files.
    """

    processes: Processes
    name: str
    folder: str
    tb_folder: str = ''
    parents: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ''

    models = property(lambda self: os.path.join(self.folder, 'models'))
    training_states = property(lambda self: os.path.join(self.folder, 'training_states'))
    visualization = property(lambda self: os.path.join(self.folder, 'visualization'))
    #: the network that a stage leaves behind
    output = property(lambda self: os.path.join(self.models, 'net_g_latest.safetensors'))


def root_folder(options: Mapping[str, Any]) -> str:
    """The folder in which experiments/, results/ and tb_logger/ lie."""
    return options['path'].get('root') or '.'


def start_processes(options: Mapping[str, Any], launcher: str) -> Processes:
    """Join the process group, choose the device and seed the random generators.

    Args:
        options: resolved options; read are ``num_gpu`` (``'auto'``, 0 for the CPU), ``dist_params``, ``manual_seed``.
        launcher: ``'none'``, ``'pytorch'`` (torchrun) or ``'slurm'`` (one task per process).

    Raises:
        ValueError: GPUs are asked for where there are none, or the launcher's environment is missing.
    """
    available = torch.cuda.device_count()
    wanted = available if options['num_gpu'] == 'auto' else options['num_gpu']
    if wanted > available:
        raise ValueError(f'num_gpu: {wanted}, but {available} CUDA devices are available; '
                         'set num_gpu: auto to use what is there, or 0 for the CPU')
    distributed, params = launcher != 'none', options['dist_params']
    if launcher == 'slurm':
        _slurm_environment(params['port'])
    if distributed:
        if 'RANK' not in os.environ:
            raise ValueError(f'--launcher {launcher} needs to be started by scripts/dist_train.sh (torchrun) or '
                             'scripts/slurm_train.sh; without distribution leave --launcher out')
        if wanted and int(os.environ.get('LOCAL_WORLD_SIZE', 1)) > available:
            raise ValueError(f'{os.environ["LOCAL_WORLD_SIZE"]} processes on this machine, but it has {available} '
                             'GPUs: start one for each, or set num_gpu: 0 to use the CPU')
        if wanted:
            torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)) % available)
        if not dist.is_initialized():
            # other processes wait while one validates a long clip
            dist.init_process_group(params['backend'] or ('nccl' if wanted else 'gloo'),
                                    timeout=datetime.timedelta(hours=2))
    torch.backends.cudnn.benchmark = True
    # the same on all processes: they build the same network; the data is seeded sample by sample
    set_random_seed(options['manual_seed'])
    rank, world_size = get_dist_info()
    # one device per process
    return Processes(rank, world_size, torch.device('cuda' if wanted else 'cpu'), distributed)


def _slurm_environment(port: int) -> None:
    env = os.environ
    if missing := [name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST') if name not in env]:
        raise ValueError(f'--launcher slurm needs to be started by srun, see scripts/slurm_train.sh: {missing[0]} is '
                         'not set')
    if 'MASTER_ADDR' not in env:
        try:
            hosts = subprocess.run(['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']], check=True,
                                   capture_output=True, text=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f'--launcher slurm: scontrol does not tell the hosts of this job ({error}); set '
                             'MASTER_ADDR to the first of them') from error
        env['MASTER_ADDR'] = hosts[0]
    env.setdefault('MASTER_PORT', str(port))
    env.update(RANK=env['SLURM_PROCID'], WORLD_SIZE=env['SLURM_NTASKS'], LOCAL_RANK=env.get('SLURM_LOCALID', '0'))


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Around the work: leave the process group in the end, if there is one.

    Leaving waits for the other processes. After an error of this one they still wait for what it did not do, so then
    it only exits: its connections break, and torchrun or srun ends the others.

    Raises:
        OSError: another process has ended, which says why; that this one lost it is no news.
    """
    try:
        yield
    except Interrupted:  # which all processes raise together
        _leave_group()
        raise
    except RuntimeError as error:
        if dist.is_initialized() and 'by peer' in str(error):  # gloo's words: connection closed, or reset, by peer
            raise OSError(f'process {dist.get_rank()} stops, because another one has ended; see its message') from error
        raise
    _leave_group()


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def from_first(make: Callable[[], Made]) -> Made:
    """What the first process makes, on all processes; the others wait for it."""
    if not dist.is_initialized():
        return make()
    made: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def any_process(flag: int, device: torch.device) -> int:
    """The largest of the processes' flags; ``device`` is where this process works, and so what its backend reaches."""
    if not dist.is_initialized():
        return flag
    tensor = torch.tensor(flag, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def archive(folder: str) -> None:
    """Move a folder aside, under its name and the time, instead of overwriting it."""
    if os.path.exists(folder):
        target = f'{folder}_archived_{get_time_str()}'
        while os.path.exists(target):  # another run ended within the same second
            target += '_'
        os.rename(folder, target)


class _LogFile(logging.FileHandler):
    """A log file for which the disk may fill up: that is said once, and not with a traceback for every line."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            print(f'cannot write {self.baseFilename}: {sys.exc_info()[1]}', file=sys.stderr)
        self.told = True

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of lines that were not written; raised here it would hide what happened
            super().close()


@contextlib.contextmanager
def log_to(path: str) -> Iterator[logging.Logger]:
    """BasicSR's logger, writing to the terminal and, on the first process, appending to a file."""
    logger = get_root_logger()
    handler = None
    if get_dist_info()[0] == 0:
        logger.setLevel(logging.INFO)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handler = _LogFile(path)
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def only_in_file(active: bool) -> Iterator[None]:
    """While active, INFO lines go to the log file only: the terminal has the progress bar."""
    handlers = [h for h in get_root_logger().handlers if not isinstance(h, logging.FileHandler)] if active else []
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels):
            handler.setLevel(level)


class StopSignal:
    """Remembers SIGTERM and Ctrl-C instead of dying of them, so that the loop can save first.

    Args:
        follows: what it does then, for the message.

    A second Ctrl-C of a single process stops at once; with several processes the launcher repeats signals, and only
    the first counts.
    """

    def __init__(self, follows: str = 'the state is saved after this iteration') -> None:
        self.signum, self._follows = 0, follows

    def __enter__(self) -> StopSignal:
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: object) -> None:
        if self.signum and signum == signal.SIGINT and not dist.is_initialized():
            raise KeyboardInterrupt
        if not self.signum:
            print(f'\nStopping: {self._follows} ...', file=sys.stderr, flush=True)
        self.signum = self.signum or signum
