"""The report of a recipe: test all its networks on the same footing, write table and picture, check expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from basicsr.data import build_dataset
from basicsr.metrics import calculate_psnr
from basicsr.utils import get_root_logger
from torch import nn

from basicsr_ssl.api import network_cost
from basicsr_ssl.archs import BicubicUpsampler
from basicsr_ssl.checkpoints.store import BICUBIC, build_network, load_network
from basicsr_ssl.data.degradations import DESCRIPTIONS
from basicsr_ssl.evaluation.clips import log_metrics, metric_means, test_sets, validate_clips
from basicsr_ssl.evaluation.inference import as_clip, as_image, super_resolve
from basicsr_ssl.report.benchmarks import how_measured, quoted
from basicsr_ssl.report.expectations import check_expectations
from basicsr_ssl.report.plots import comparison_picture, kept_units_chart, pick_crop
from basicsr_ssl.report.profile import measure_latency
from basicsr_ssl.report.results import describe_protocol
from basicsr_ssl.report.summary import write_summary

PICTURE_CLIPS = 3
# frames around the pictured one that the networks see: enough for the states to settle, and the picture of a long
# clip does not cost another test of it
PICTURE_FRAMES = 15


def report_recipe(opt: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Test networks; write ``summary.json``, ``summary.md``, ``comparison.png`` and charts into the results folder.

    ``kept_<label>.png`` shows which units are left, for every compact network.

    Args:
        opt: options with ``datasets``, ``val``, ``report`` and the folders of ``runtime.add_folders``. The test sets
            are the entries ``test*`` of ``datasets``, or, without any, ``val*``.
        files: label to network file, in the order of the table.

    Returns:
        One line for every expected figure that was missed.
    """
    report, device = opt['report'], torch.device('cuda' if opt['num_gpu'] else 'cpu')
    logger, master = get_root_logger(), opt['rank'] == 0
    nets: dict[str, Any] = {BICUBIC: BicubicUpsampler(opt['scale'])} if report['bicubic'] else {}
    nets.update({label: BicubicUpsampler(opt['scale']) if file == BICUBIC else load_network(file)
                 for label, file in files.items()})
    for net in nets.values():
        net.to(device).eval()
    sets = {options['name']: options for options in test_sets(opt['datasets'])}
    datasets = {name: build_dataset(options) for name, options in sets.items()}

    lr_size = tuple(report['lr_size'])
    rows: list[dict[str, Any]] = []
    lr_differences = {name: dataset.lr_difference() if sets[name].get('benchmark') else None
                      for name, dataset in datasets.items()}
    for label, net in nets.items():
        metrics, measured = {}, {}
        for name, dataset in datasets.items():
            result = validate_clips(net, dataset, name, {**opt, 'name': label}, device, opt['val']['save_img'])
            logger.info(f'{label}:')
            log_metrics(result, name, 0, None)
            metrics[name] = metric_means(result)
            measured[name] = _measured(describe_protocol(
                sets[name], opt['val'], list(getattr(dataset, 'partial', ())), result['segment'], DESCRIPTIONS,
                result['clips'], lr_differences[name]))
        first = next(iter(metrics.values()), {})
        rows.append({'network': label, **network_cost(net, lr_size), 'ms_per_frame': None,
                     'psnr': first.get('psnr'), 'ssim': first.get('ssim'), 'metrics': metrics, 'measured': measured,
                     'lr_size': list(lr_size), 'device': device.type, 'file': files.get(label)})
    missed: list[str] = []
    if master:
        # all networks in one run, in turn: only figures of the same run compare
        latency = measure_latency(nets, lr_size, device=device)
        for row in rows:
            row['ms_per_frame'] = latency[row['network']]
        folder = opt['path']['results_root']
        print(write_summary(folder, rows), flush=True)
        dataset = next(iter(datasets.values()))
        _picture(os.path.join(folder, 'comparison.png'), nets, dataset, device, report['crop'])
        for label, net in nets.items():
            if net.spec.form == 'compact':
                kept_units_chart(os.path.join(folder, f'kept_{label}.png'), {'groups': _kept_units(net)})
        logger.info(f'Wrote summary.json, summary.md and pictures into {folder}')
        missed = check_expectations(rows, report['expect'])
    return missed


def _measured(protocol: Mapping[str, Any]) -> str:
    """How the figures of a test set were measured, and why they are not comparable with published ones if so."""
    parts = [how_measured(protocol)]
    if protocol['published']:
        parts.append('as its published figures are')
    if protocol['partial']:
        parts.append(f'only a part of the benchmark: {quoted(protocol["missing"])}')
    if protocol['deviations']:
        parts.append(f'deviates from the published protocol: {"; ".join(protocol["deviations"])}')
    return '. '.join(parts)


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
        lq = as_clip(item['lq'][i] for i in range(first, min(n, first + PICTURE_FRAMES)))
        middle, gt = n // 2 - first, as_image(item['gt'][n // 2])
        frames = {label: as_image(next(islice(super_resolve(net, lq.to(device)), middle, None)))
                  for label, net in nets.items()}
        scale = gt.shape[0] // lq.shape[-2]
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
