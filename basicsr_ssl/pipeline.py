"""Run an option file: one stage, or all stages of a recipe and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from basicsr.data import build_dataset
from basicsr.utils import get_root_logger

from basicsr_ssl import config
from basicsr_ssl.runtime import add_folders, barrier, log_to, process_group, start_processes
from basicsr_ssl.train import add_fingerprint, is_finished, output_path, train_stage

STAGE = 'stage://'


def train(path: str, launcher: str = 'none', overrides: Sequence[str] = (), debug: bool = False,
          auto_resume: bool = False) -> int:
    """Train what an option file describes.

    A recipe (``stages``) runs its stages in order. A stage whose output exists and was made from the same options and
    the same inputs is skipped, an unfinished one is resumed; ``report`` then tests all networks and checks the expected
    figures.

    Returns:
        Exit code: 0, or 2 when figures that the option file expects were missed.

    Raises:
        Interrupted, OSError, ValueError, FloatingPointError: see ``train_stage``.
    """
    options = config.load_options(path, overrides, debug, auto_resume)
    with process_group():
        if options.get('stages'):
            return _train_recipe(options, launcher)
        if not options['train']:
            raise ValueError(f'{path} describes no training, only a test: run `basicsr-ssl test -opt {path}`')
        config.check_files(options)
        options = config.fetch_files(options)
        start_processes(options, launcher)
        add_fingerprint(options)
        train_stage(options, resume=options['auto_resume'])
        return 0


def _train_recipe(recipe: dict[str, Any], launcher: str) -> int:
    # before hours of work, look at the files that all stages will need, and at the sets that the report will test on
    config.check_files(recipe)
    recipe = config.fetch_files(recipe)
    stages = config.stage_options(recipe)
    start_processes(next(iter(stages.values())), launcher)
    if recipe.get('report'):
        for phase, dataset in next(reversed(stages.values()))['datasets'].items():
            if phase != 'train':
                build_dataset(dataset)
    outputs: dict[str, str] = {}
    opt: dict[str, Any] = {}
    for name, opt in stages.items():
        start_processes(opt, launcher)
        opt['path'] = {key: _resolve(value, outputs) for key, value in opt['path'].items()}
        outputs[name] = output_path(opt)
        add_fingerprint(opt)
        done = is_finished(opt)
        barrier()  # all have looked before the first one goes on and writes
        if done:
            get_root_logger().info(f'Stage {name} is finished: {outputs[name]}')
        else:
            train_stage(opt, resume=True, same_options=True)
    if not recipe.get('report'):
        return 0
    return _report(recipe, opt, outputs)


def _report(recipe: dict[str, Any], last: dict[str, Any], outputs: dict[str, str]) -> int:
    from basicsr_ssl.report.recipe import report_recipe  # only now: it brings matplotlib

    report = recipe['report']
    rows = {label: _resolve(value, outputs) for label, value in report['rows'].items()}
    opt = {**last, 'name': recipe['name'], 'path': {'root': last['path'].get('root')},
           'report': report}
    add_folders(opt, is_train=False)
    with log_to(os.path.join(opt['path']['results_root'], 'report.log')):
        missed = report_recipe(opt, rows)
    for line in missed:
        print(f'basicsr-ssl: expected figure missed: {line}', file=sys.stderr)
    return 2 if missed else 0


def _resolve(value: Any, outputs: dict[str, str]) -> Any:
    """The file that ``stage://NAME`` stands for; other values are returned as they are."""
    return outputs[value.removeprefix(STAGE)] if isinstance(value, str) and value.startswith(STAGE) else value
