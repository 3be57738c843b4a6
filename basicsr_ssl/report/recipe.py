"""The report of a recipe: test all its networks on the same footing, write table and picture, check expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils import get_root_logger
from torch import nn

from basicsr_ssl.archs import BicubicUpsampler
from basicsr_ssl.checkpoints.store import BICUBIC, build_network, load_network
from basicsr_ssl.evaluation.evaluate import build_test_sets, evaluate, in_fastest_form
from basicsr_ssl.evaluation.inference import as_frame, as_image, super_resolve
from basicsr_ssl.evaluation.result import Result
from basicsr_ssl.latency import measure_latency
from basicsr_ssl.report.expectations import check_expectations
from basicsr_ssl.report.plots import comparison_picture, kept_units_chart, pick_crop
from basicsr_ssl.report.summary import summary_row, write_summary
from basicsr_ssl.runtime import Run

PICTURE_CLIPS = 3
# frames around the pictured one that the networks see: enough for the states to settle, and the picture of a long
# clip does not cost another test of it
PICTURE_FRAMES = 15


def report_recipe(opt: Mapping[str, Any], report: Mapping[str, Any], run: Run) -> list[str]:
    """Test networks; write ``summary.json``, ``summary.md``, ``comparison.png`` and charts into the results folder.

    ``kept_<label>.png`` shows which units are left, for every compact network.

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
        _picture(os.path.join(folder, 'comparison.png'), nets, test_sets[0].dataset, device, report['crop'])
        for label, net in nets.items():
            if net.spec.form == 'compact':
                kept_units_chart(os.path.join(folder, f'kept_{label}.png'), {'groups': _kept_units(net)})
        logger.info(f'Wrote summary.json, summary.md and pictures into {folder}')
        missed = check_expectations(rows, report['expect'])
    return missed


def _kept_units(net: Any) -> dict[str, dict[str, int]]:
    """Group name to units kept and units of the dense network."""
    full: Any = build_network(replace(net.spec, widths={}, index={}))
    return {group.name: {'kept': group.size, 'size': whole.size} for group, whole in zip(net.groups, full.groups)}


def _picture(path: str, nets: dict[str, nn.Module], dataset: Any, device: torch.device, crop: int) -> None:
    """Crops of the middle frames of a few clips: LR, every network, GT."""
    rows = []
    for index in range(min(PICTURE_CLIPS, len(dataset))):
        item = dataset[index]
        n = len(item['lq'])
        first = max(0, n // 2 - PICTURE_FRAMES // 2)
        lq = [item['lq'][i] for i in range(first, min(n, first + PICTURE_FRAMES))]
        middle, gt = n // 2 - first, as_image(item['gt'][n // 2])
        frames = {label: as_image(next(islice(super_resolve(net, (as_frame(frame).to(device) for frame in lq)), middle,
                                              None))) for label, net in nets.items()}
        scale = gt.shape[0] // lq[0].shape[-2]
        reference = frames.get(BICUBIC, next(iter(frames.values())))
        best = next((frame for label, frame in frames.items() if label != BICUBIC), reference)
        size = min(crop * scale, *gt.shape[:2]) // scale * scale
        top, left = pick_crop(gt, best, reference, size, step=scale)
        small = as_image(lq[middle])[top // scale:(top + size) // scale, left // scale:(left + size) // scale]
        panels = [('LR', _rgb(small), item['folder'])]
        for label, frame in frames.items():
            panels.append((label, _rgb(frame[top:top + size, left:left + size]),
                           f'{calculate_psnr(frame, gt, crop_border=0):.2f} dB'))
        rows.append([*panels, ('GT', _rgb(gt[top:top + size, left:left + size]), '')])
    comparison_picture(path, rows)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])
