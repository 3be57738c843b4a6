"""Test one network on the test sets of an option file."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from basicsr.data import build_dataset

from basicsr_ssl import config
from basicsr_ssl.api import network_cost
from basicsr_ssl.checkpoints.files import file_sha256, write_text
from basicsr_ssl.checkpoints.store import BICUBIC, software_versions
from basicsr_ssl.data.degradations import DESCRIPTIONS
from basicsr_ssl.evaluation import clips as validation
from basicsr_ssl.evaluation.clips import log_metrics, metric_means, validate_clips
from basicsr_ssl.models.reconstruction_model import read_input_network
from basicsr_ssl.report.benchmarks import benchmark_table, quoted
from basicsr_ssl.report.results import describe_protocol, network_label
from basicsr_ssl.report.summary import finite
from basicsr_ssl.runtime import add_folders, archive, barrier, device_of, log_to, process_group, start_processes

LR_SIZE = (180, 320)  # of the frames at which the literature counts MACs


def test(path: str, launcher: str = 'none', overrides: Sequence[str] = (), debug: bool = False,
         allow_partial: bool = False) -> dict[str, dict[str, Any]]:
    """Test the network ``path: pretrain_network_g`` on the entries ``test*`` of ``datasets``, or else ``val*``.

    Writes ``results/<name>/results.json`` and ``table.md``, of several test sets each into ``results/<name>/<set>/``,
    and with ``val: save_img`` the frames. In the name, ``{network}`` becomes a label of the network; it ends in
    ``_partial`` if frames of a benchmark are missing.

    Args:
        allow_partial: test on what there is of a benchmark, and mark the results as partial.

    Returns:
        What ``results.json`` holds, by test set; see ``report.results``.

    Raises:
        OSError, ValueError: with a message that says how to mend it.
    """
    opt = config.load_options(path, overrides, debug)
    _check(opt, path)
    config.check_files(opt)
    label = network_label(opt['path']['pretrain_network_g'])
    opt = config.fetch_files(opt)
    with process_group():
        start_processes(opt, launcher)
        test_sets = _build_test_sets(opt['datasets'], allow_partial)
        device = device_of(opt)
        net = read_input_network(opt).to(device).eval()
        network = _describe_network(net, opt['path']['pretrain_network_g'], label)
        partial = any(test_set.missing for test_set in test_sets)
        opt['name'] = opt['name'].replace(config.NETWORK_LABEL, label) + ('_partial' if partial else '')
        add_folders(opt, is_train=False)
        folder = opt['path']['results_root']
        barrier()
        if opt['rank'] == 0:
            archive(folder)
        barrier()
        results = {}
        with log_to(os.path.join(folder, 'test.log')) as logger:
            logger.info(f'{network["file"]}: {type(net).__name__}, {network["form"]}')
            for name, options, dataset, missing, lr_difference in test_sets:
                if missing:
                    logger.warning(f'{name}: only a part of the benchmark is there: {quoted(missing)}. The results are '
                                   'marked as partial')
                figures = validate_clips(net, dataset, name, opt, device, opt['val']['save_img'])
                log_metrics(figures, name, 0, None)
                results[name] = {
                    'benchmark': options.get('benchmark') or name, 'degradation': options.get('degradation'), **network,
                    'protocol': describe_protocol(options, opt['val'], missing, figures['segment'], DESCRIPTIONS,
                                                  figures['clips'], lr_difference),
                    'metrics': metric_means(figures), 'clips': figures['clips'],
                    'seconds_per_frame': figures['seconds_per_frame'], 'device': _device_name(device),
                    'processes': opt['world_size'], 'versions': software_versions(),
                    'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')}
                if opt['rank'] == 0:
                    _write(results[name], folder if len(test_sets) == 1 else os.path.join(folder, name), logger)
        return results


class _TestSet(NamedTuple):
    name: str
    options: dict[str, Any]
    dataset: Any
    missing: list[str]  # what it lacks to be the whole benchmark
    lr_difference: str | None  # how LR files of a benchmark differ from what its degradation makes of GT


def _build_test_sets(datasets: dict[str, Any], allow_partial: bool) -> list[_TestSet]:
    built = []
    for options in validation.test_sets(datasets):
        if allow_partial and 'allow_partial' in options:
            options = {**options, 'allow_partial': True}
        dataset = build_dataset(options)
        differs = dataset.lr_difference() if options.get('benchmark') else None
        built.append(_TestSet(options['name'], options, dataset, list(getattr(dataset, 'partial', ())), differs))
    return built


def _write(result: dict[str, Any], folder: str, logger: logging.Logger) -> None:
    table = benchmark_table(result)
    write_text(os.path.join(folder, 'results.json'), json.dumps(finite(result), indent=2, allow_nan=False) + '\n')
    write_text(os.path.join(folder, 'table.md'), table + '\n')
    print(f'\n{table}\n', flush=True)
    logger.info(f'Wrote results.json and table.md into {folder}')


def _describe_network(net: Any, file: str, label: str) -> dict[str, Any]:
    return {'network': label, 'file': file, 'checkpoint_sha256': None if file == BICUBIC else file_sha256(file),
            'form': net.spec.form, **network_cost(net, LR_SIZE), 'lr_size': list(LR_SIZE)}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{device.type}, {platform.machine()}'


def _check(opt: dict[str, Any], path: str) -> None:
    """Raises ValueError, which says what the option file lacks for a test."""
    if opt.get('stages'):
        raise ValueError(f'{path} is a recipe with stages. Its report, at the end of `basicsr-ssl train -opt {path}`, '
                         'tests its networks; to test one network, write an option file without stages')
    for missing, what in ((not opt['path']['pretrain_network_g'], 'path: pretrain_network_g: the network to test'),
                          (not opt['val'], 'val: metrics: what is measured'),
                          (not any(phase != 'train' for phase in opt['datasets']), 'datasets: test: the clips')):
        if missing:
            raise ValueError(f'{path} says not enough for a test; add {what}')
