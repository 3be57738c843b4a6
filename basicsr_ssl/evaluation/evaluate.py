"""One network on test sets, whatever its task: for a test, for the report of a recipe, and during training."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from torch import nn

from basicsr_ssl.api import network_cost
from basicsr_ssl.checkpoints.store import BICUBIC, software_versions
from basicsr_ssl.evaluation.clips import measure_clips
from basicsr_ssl.evaluation.flow import flow_protocol, measure_flow
from basicsr_ssl.evaluation.inference import task_of
from basicsr_ssl.evaluation.protocol import describe_protocol, quoted
from basicsr_ssl.evaluation.result import Figures, Result
from basicsr_ssl.files import file_sha256
from basicsr_ssl.plans.planner import optimize_network
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.runtime import Run


class Measurement(NamedTuple):
    """How networks of a task are measured on a test set, and how that is described."""
    measure: Callable[..., Figures]
    protocol: Callable[..., dict[str, Any]]


#: By the class attribute ``task`` of networks.
MEASUREMENTS = {'clip': Measurement(measure_clips, describe_protocol),
                'image': Measurement(measure_clips, describe_protocol),
                'flow': Measurement(measure_flow, flow_protocol)}


class TestSet(NamedTuple):
    """A test set, built.

    Attributes:
        name: of the set.
        options: its section.
        dataset: its items.
        missing: what it lacks to be the whole benchmark, a sentence each.
        lr_difference: how LR files of a benchmark differ from what its degradation makes of GT, or None.
    """
    name: str
    options: Mapping[str, Any]
    dataset: Any
    missing: Sequence[str] = ()
    lr_difference: str | None = None


def build_test_sets(datasets: Mapping[str, Mapping[str, Any]], allow_partial: bool = False) -> list[TestSet]:
    """The sets that a network is tested on: the entries ``test*``, or, without any, ``val*``.

    Args:
        datasets: the section of the options.
        allow_partial: take what there is of a benchmark.

    Raises:
        DatasetError: frames are missing, or are not those that the options say.
    """
    by_phase: dict[str, list[Mapping[str, Any]]] = {'test': [], 'val': [], 'train': []}
    for phase, options in datasets.items():
        by_phase[phase.split('_')[0]].append(options)
    built = []
    for options in by_phase['test'] or by_phase['val']:
        if allow_partial and 'allow_partial' in options:
            options = {**options, 'allow_partial': True}
        dataset = build_dataset(options)
        differs = dataset.lr_difference() if options.get('benchmark') else None
        built.append(TestSet(options['name'], options, dataset, list(getattr(dataset, 'partial', ())), differs))
    return built


def measure(net: nn.Module, dataset: Any, dataset_name: str, val: Mapping[str, Any], run: Run, tb_logger: Any = None,
            current_iter: int = 0) -> Figures:
    """Measure a network on one test set, log the figures, and write them to TensorBoard (``metrics/REDS4/psnr``).

    Args:
        net: in eval mode, on the device of ``run``. Its class attribute ``task`` says what it is given, see
            ``MEASUREMENTS``.
        dataset, dataset_name, val, run, tb_logger, current_iter: see ``measure_clips``; of flow see ``measure_flow``.

    Returns:
        The figures, on all processes.

    Raises:
        DatasetError, OSError, ValueError, FloatingPointError: see there.
    """
    figures = MEASUREMENTS[task_of(net)].measure(net, dataset, dataset_name, val, run, tb_logger, current_iter)
    lines = [f'Validation {dataset_name}']
    for name, mean in figures.metrics.items():
        clips = '  '.join(f'{clip}: {values[name]:.4f}' for clip, values in figures.clips.items()) \
            if len(figures.clips) <= 12 else f'mean of {len(figures.clips)} clips'
        lines.append(f'\t # {name}: {mean:.4f}\t{clips}')
        if tb_logger is not None:
            tb_logger.add_scalar(f'metrics/{dataset_name}/{name}', mean, current_iter)
    get_root_logger().info('\n'.join(lines))
    return figures


def evaluate(net: Any, test_sets: Sequence[TestSet], val: Mapping[str, Any], run: Run, label: str,
             file: str | None = None, lr_size: tuple[int, int] = LR_SIZE) -> Iterator[Result]:
    """Test a network of this package on test sets, one after the other.

    Args:
        net: in eval mode, on the device of ``run``.
        test_sets: see ``build_test_sets``.
        val, run: see ``measure_clips``.
        label: name of the network.
        file: where it is from; None or ``bicubic`` has no checksum.
        lr_size: LR frame, (h, w), for which MACs are counted.

    Yields:
        The result on each test set, in their order, on all processes.

    Raises:
        DatasetError, OSError, ValueError, FloatingPointError: see ``measure``.
    """
    device = run.processes.device
    network = {'network': label, 'file': file,
               'checkpoint_sha256': None if file in (None, BICUBIC) else file_sha256(file), 'form': net.spec.form,
               **network_cost(net, lr_size), 'lr_size': list(lr_size)}
    for name, options, dataset, missing, lr_difference in test_sets:
        if missing:
            get_root_logger().warning(f'{name}: only a part of the benchmark is there: {quoted(missing)}. The results '
                                      'are marked as partial')
        as_run = in_fastest_form(net, val, partial(_lr_size, dataset))
        figures = measure(as_run, dataset, name, val, run)
        yield Result(
            benchmark=options.get('benchmark') or name, degradation=options.get('degradation'), **network,
            protocol=MEASUREMENTS[task_of(net)].protocol(options, val, figures, missing, lr_difference),
            metrics=figures.metrics, clips=figures.clips, frames=figures.frames,
            seconds_per_frame=figures.seconds_per_frame,
            device=torch.cuda.get_device_name(device) if device.type == 'cuda' else
            f'{device.type}, {platform.machine()}',
            processes=run.processes.world_size, versions=software_versions(),
            time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'))


def _lr_size(dataset: Any) -> Sequence[int]:
    """(h, w) of the first LR frame."""
    return dataset[0]['lq'][0].shape[-2:]


def in_fastest_form(net: nn.Module, val: Mapping[str, Any], lr_size: Callable[[], Sequence[int]]) -> nn.Module:
    """The network as it runs fastest on LR frames (h, w), if ``val`` says ``optimize: auto``; else as it is."""
    if val.get('optimize') != 'auto' or task_of(net) == 'flow':
        return net
    h, w = lr_size()
    get_root_logger().info(f'Finding out how the network runs fastest on frames of {h}x{w}, unless that is known')
    return optimize_network(net, (h, w))
