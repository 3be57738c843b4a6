"""Test one network on the test sets of an option file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from basicsr_ssl import config
from basicsr_ssl.evaluation.evaluate import build_test_sets, evaluate
from basicsr_ssl.evaluation.result import Result, to_json
from basicsr_ssl.files import write_text
from basicsr_ssl.models.networks import read_input_network
from basicsr_ssl.report.benchmarks import benchmark_table
from basicsr_ssl.runtime import Run, archive, barrier, log_to, process_group, root_folder, start_processes
from basicsr_ssl.zoo import PREFIX


def test(path: str, launcher: str = 'none', overrides: Sequence[str] = (), debug: bool = False,
         allow_partial: bool = False) -> dict[str, Result]:
    """Test the network ``path: pretrain_network_g`` on the entries ``test*`` of ``datasets``, or else ``val*``.

    Writes ``results/<name>/results.json`` and ``table.md``, of several test sets each into ``results/<name>/<set>/``,
    and with ``val: save_img`` the frames. In the name, ``{network}`` becomes a label of the network; it ends in
    ``_partial`` if frames of a benchmark are missing.

    Args:
        allow_partial: test on what there is of a benchmark, and mark the results as partial.

    Returns:
        What ``results.json`` holds, by test set.

    Raises:
        OSError, ValueError: with a message that says how to mend it.
    """
    opt = config.load_options(path, overrides, debug)
    _check(opt, path)
    config.check_files(opt)
    label = network_label(opt['path']['pretrain_network_g'])
    opt = config.fetch_files(opt)
    reference = opt['path']['pretrain_network_g']
    with process_group():
        processes = start_processes(opt, launcher)
        test_sets = build_test_sets(opt['datasets'], allow_partial)
        net = read_input_network(opt).to(processes.device).eval()
        partial = any(test_set.missing for test_set in test_sets)
        name = opt['name'].replace(config.NETWORK_LABEL, label) + ('_partial' if partial else '')
        folder = os.path.join(root_folder(opt), 'results', name)
        run = Run(processes, name, folder)
        barrier()
        if processes.is_first:
            archive(folder)
        barrier()
        results = {}
        with log_to(os.path.join(folder, 'test.log')) as logger:
            logger.info(f'{reference}: {type(net).__name__}, {net.spec.form}')
            for test_set, result in zip(test_sets, evaluate(net, test_sets, opt['val'], run, label, reference)):
                results[test_set.name] = result
                if processes.is_first:
                    _write(result, folder if len(test_sets) == 1 else os.path.join(folder, test_set.name), logger)
        return results


def network_label(reference: str) -> str:
    """A name for a network, fit for a folder.

    That of the zoo for ``zoo://NAME``; ``<recipe>_<stage>`` for ``experiments/<recipe>/<stage>/models/net_g_latest.*``,
    with the iteration if that is not the latest; else the file's name without suffix.
    """
    name = reference.removeprefix(PREFIX)
    if name == reference:
        path = Path(os.path.abspath(reference))
        name = path.stem
        saved = re.fullmatch(r'net_g_(latest|\d+)', name)
        if saved and path.parent.name == 'models':
            run = path.parts[:-2]
            run = run[len(run) - run[::-1].index('experiments'):] if 'experiments' in run else run[-1:]
            name = '_'.join([*run, saved[1]]).removesuffix('_latest')
    return re.sub(r'[^\w.+-]+', '_', name).strip('._-') or 'network'


def _write(result: Result, folder: str, logger: logging.Logger) -> None:
    table = benchmark_table(result)
    write_text(os.path.join(folder, 'results.json'), to_json(result.model_dump()))
    write_text(os.path.join(folder, 'table.md'), table + '\n')
    print(f'\n{table}\n', flush=True)
    logger.info(f'Wrote results.json and table.md into {folder}')


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
