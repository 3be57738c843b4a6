"""Run an option file: one stage, or all stages of a recipe and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from basicsr.data import build_dataset
from basicsr.utils import get_root_logger

from basicsr_ssl import config
from basicsr_ssl.runtime import Processes, Run, barrier, log_to, process_group, root_folder, start_processes
from basicsr_ssl.train import is_finished, new_run, train_stage


def train(path: str, launcher: str = 'none', overrides: Sequence[str] = (), debug: bool = False,
          auto_resume: bool = False, until: str | None = None) -> int:
    """Train what an option file describes.

    A recipe (``stages``) runs its stages in order. A stage whose output exists and was made from the same options and
    the same inputs is skipped, an unfinished one is resumed; ``report`` then tests all networks and checks the expected
    figures.

    Args:
        path, launcher, overrides, debug, auto_resume: as on the command line.
        until: stage of a recipe after which to stop, without a report.

    Returns:
        Exit code: 0, or 2 when figures that the option file expects were missed.

    Raises:
        Interrupted, OSError, ValueError, FloatingPointError: see ``train_stage``.
    """
    options = config.load_options(path, overrides, debug, auto_resume)
    with process_group():
        if options.get('stages'):
            return _train_recipe(options, launcher, until)
        if not options['train']:
            raise ValueError(f'{path} describes no training, only a test: run `basicsr-ssl test -opt {path}`')
        config.check_files(options)
        options = config.fetch_files(options)
        run = new_run(options, start_processes(options, launcher))
        train_stage(options, run, resume=options['auto_resume'])
        return 0


def _train_recipe(recipe: Mapping[str, Any], launcher: str, until: str | None) -> int:
    # before hours of work, look at the files that all stages will need, and at the sets that the report will test on
    config.check_files(recipe)
    recipe = config.fetch_files(recipe)
    stages, report = config.stage_options(recipe), recipe.get('report')
    last = next(reversed(stages.values()))
    processes = start_processes(last, launcher)
    if report:
        for phase, dataset in last['datasets'].items():
            if phase != 'train':
                build_dataset(dataset)
    outputs: dict[str, str] = {}
    for name, stage in stages.items():
        opt = config.with_stage_outputs(stage, outputs)
        run = new_run(opt, start_processes(opt, launcher))
        outputs[name] = run.output
        done = is_finished(run)
        barrier()  # all have looked before the first one goes on and writes
        if done:
            get_root_logger().info(f'Stage {name} is finished: {run.output}')
        else:
            train_stage(opt, run, resume=True, same_options=True)
        if name == until:
            return 0
    if not report:
        return 0
    return _report(recipe['name'], config.with_stage_outputs(report, outputs), last, processes)


def _report(name: str, report: Mapping[str, Any], last: Mapping[str, Any], processes: Processes) -> int:
    from basicsr_ssl.report.recipe import report_recipe  # only now: it brings matplotlib

    run = Run(processes, name, os.path.join(root_folder(last), 'results', name))
    with log_to(os.path.join(run.folder, 'report.log')):
        missed = report_recipe(last, report, run)
    for line in missed:
        print(f'basicsr-ssl: expected figure missed: {line}', file=sys.stderr)
    return 2 if missed else 0
