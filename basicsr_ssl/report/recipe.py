"""The report of a recipe: test all its networks on the same footing, write table and picture, check expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from basicsr.utils import get_root_logger

from basicsr_ssl.archs import BicubicUpsampler
from basicsr_ssl.checkpoints.store import BICUBIC, load_network
from basicsr_ssl.evaluation.evaluate import build_test_sets, evaluate, in_fastest_form
from basicsr_ssl.evaluation.result import Result, to_json
from basicsr_ssl.files import write_text
from basicsr_ssl.latency import measure_latency
from basicsr_ssl.report.expectations import check_expectations
from basicsr_ssl.report.page import kept_units, write_page
from basicsr_ssl.report.pictures import make_pictures, save_pictures
from basicsr_ssl.report.plots import comparison_picture, kept_units_chart
from basicsr_ssl.report.summary import summary_row, write_summary
from basicsr_ssl.runtime import Run, root_folder


def report_recipe(opt: Mapping[str, Any], report: Mapping[str, Any], run: Run) -> list[str]:
    """Test networks; write ``summary.json``, ``summary.md``, ``comparison.png`` and charts into the results folder.

    ``kept_<label>.png`` shows which units are left, for every compact network; ``<label>/<test set>/results.json`` is
    what ``basicsr-ssl test`` writes; and ``report.html`` shows all of it, with the course of the stages' training.

    Args:
        opt: options with ``datasets`` and ``val``. The test sets are the entries ``test*`` of ``datasets``, or,
            without any, ``val*``.
        report: the section; its ``rows`` are network files by label, in the order of the table.
        run: processes, and the results folder.

    Returns:
        One line for every expected figure that was missed.
    """
    files, device, logger = report['rows'], run.processes.device, get_root_logger()
    nets: dict[str, Any] = {BICUBIC: BicubicUpsampler(opt['scale'])} if report['bicubic'] else {}
    nets.update({label: BicubicUpsampler(opt['scale']) if file == BICUBIC else load_network(file, dtype=torch.float32)
                 for label, file in files.items()})
    test_sets, lr_size = build_test_sets(opt['datasets']), tuple(report['lr_size'])
    results: dict[str, dict[str, Result]] = {}
    for label, net in nets.items():
        evaluated = evaluate(net.to(device).eval(), test_sets, opt['val'], replace(run, name=label), label,
                             files.get(label), lr_size)
        results[label] = {}
        for test_set in test_sets:
            logger.info(f'{label}:')
            results[label][test_set.name] = next(evaluated)
    missed: list[str] = []
    if run.processes.is_first:
        # all networks in one run, in turn: only figures of the same run compare
        latency = measure_latency({label: in_fastest_form(net, opt['val'], lambda: lr_size)
                                   for label, net in nets.items()}, lr_size, device=device)
        rows = [summary_row(results[label], latency[label], device.type, files.get(label)) for label in nets]
        folder = run.folder
        print(write_summary(folder, rows), flush=True)
        for label, by_set in results.items():
            for name, result in by_set.items():
                write_text(os.path.join(folder, label, name, 'results.json'), to_json(result.model_dump()))
        pictures = make_pictures(nets, test_sets[0].dataset, device, report['crop'])
        comparison_picture(os.path.join(folder, 'comparison.png'), pictures.crops)
        save_pictures(folder, pictures)
        for label, net in nets.items():
            if net.spec.form == 'compact':
                kept_units_chart(os.path.join(folder, f'kept_{label}.png'), {'groups': kept_units(net)})
        page = os.path.join(folder, 'report.html')
        stages = os.path.join(root_folder(opt), 'experiments', os.path.basename(folder))
        write_page([folder, *([stages] if os.path.isdir(stages) else [])], page)
        logger.info(f'Wrote summary.json, summary.md, pictures and {page}')
        missed = check_expectations(rows, report['expect'])
    return missed
