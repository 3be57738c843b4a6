"""Metrics over whole clips, shared out among the processes."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn
from tqdm import tqdm


@torch.no_grad()
def super_resolve(net: nn.Module, lq: Tensor, flip_seq: bool = False) -> Tensor:
    """Super-resolve one clip.

    Args:
        net: the network.
        lq: frames (n, 3, h, w).
        flip_seq: append the reversed clip and average both halves of the output (the Vimeo90K protocol).

    Returns:
        Frames (n, 3, s*h, s*w).
    """
    n = len(lq)
    if not flip_seq:
        return net(lq[None])[0]
    out = net(torch.cat((lq, lq.flip(0)))[None])[0]
    return 0.5 * (out[:n] + out[n:].flip(0))


def test_sets(datasets: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Options of the sets that a network is tested on: the entries ``test*``, or, without any, ``val*``."""
    by_phase: dict[str, list[dict[str, Any]]] = {'test': [], 'val': [], 'train': []}
    for phase, options in datasets.items():
        by_phase[phase.split('_')[0]].append(options)
    return by_phase['test'] or by_phase['val']


def validate_clips(net: nn.Module, dataset: Any, dataset_name: str, opt: dict[str, Any], device: torch.device,
                   save_img: bool = False, tb_logger: Any = None, current_iter: int = 0) -> dict[str, Any]:
    """Run a network over a test set and average its metrics: frames to clips, clips to the set.

    Every clip is run by one process, and frames are compared as 8-bit images, so the figures do not depend on the
    number of processes.

    Args:
        net: in eval mode, on ``device``.
        dataset: items with ``lq`` (n, 3, h, w), ``gt``, ``folder`` and, if frames are saved, ``names``.
        dataset_name: for folders, logs and TensorBoard.
        opt: options of the run (``val``, ``path``, ``name``).
        device: where ``net`` is.
        save_img: write frames to ``visualization/<dataset>/<clip>/<frame>_<suffix or name>.png``.
        tb_logger: TensorBoard writer for one sample frame, or None.
        current_iter: step for TensorBoard.

    Returns:
        See ``ReconstructionModel.validation``.
    """
    rank, world_size = get_dist_info()
    val = opt['val']
    metrics = val.get('metrics') or {}
    own: dict[str, list[dict[str, float]]] = {}
    bar = tqdm(total=len(dataset), unit='clip', desc=f'Test {dataset_name}', leave=False,
               disable=rank != 0 or not val['pbar'] or not sys.stderr.isatty())
    for index in range(rank, len(dataset), world_size):
        item = dataset[index]
        lq = item['lq'].to(device)
        output = super_resolve(net, lq, val['flip_seq'])
        gt, names = item['gt'], item.get('names') or [f'{i:08d}' for i in range(len(output))]
        if val['center_frame_only']:
            centre = len(output) // 2
            output, names = output[centre:centre + 1], names[centre:centre + 1]
            gt = gt[centre:centre + 1] if len(gt) > 1 else gt
        images, truths = ([np.asarray(tensor2img([frame])) for frame in clip] for clip in (output, gt))
        if item['folder'] in own:
            raise ValueError(f'{dataset_name}: two clips are named {item["folder"]}; rename one, or leave it out')
        own[item['folder']] = [
            {name: float(calculate_metric({'img': image, 'img2': truth}, _without(options, 'better')))
             for name, options in metrics.items()}
            for image, truth in zip(images, truths, strict=True)]
        if save_img:
            suffix = val.get('suffix') or os.path.basename(opt['name'])
            for image, name in zip(images, names):
                imwrite(image, os.path.join(opt['path']['visualization'], dataset_name, item['folder'],
                                            f'{name}_{suffix}.png'))
        if tb_logger is not None and index == 0:
            middle = len(images) // 2
            tb_logger.add_image(f'{dataset_name}/{item["folder"]}/result', images[middle][..., ::-1].copy(),
                                current_iter, dataformats='HWC')
            tb_logger.add_image(f'{dataset_name}/{item["folder"]}/gt', truths[middle][..., ::-1].copy(),
                                current_iter, dataformats='HWC')
        bar.update(world_size)
    bar.close()

    parts: list[dict[str, list[dict[str, float]]]] = [own]
    if world_size > 1:
        parts = [{} for _ in range(world_size)]
        dist.all_gather_object(parts, own)
    frames = {clip: values for part in parts for clip, values in part.items()}
    if len(frames) < len(dataset):
        raise ValueError(f'{dataset_name}: of {len(dataset)} clips only {len(frames)} have names of their own; rename '
                         'those of the same name')
    clips = {clip: {'frames': len(frames[clip]),
                    **{name: sum(f[name] for f in frames[clip]) / len(frames[clip]) for name in metrics}}
             for clip in sorted(frames)}
    return {**{name: sum(clip[name] for clip in clips.values()) / len(clips) for name in metrics}, 'clips': clips}


def log_metrics(result: dict[str, Any], dataset_name: str, current_iter: int, tb_logger: Any) -> None:
    """Write a validation's figures to the log and to TensorBoard (``metrics/REDS4/psnr``)."""
    names = [name for name in result if name != 'clips']
    lines = [f'Validation {dataset_name}']
    for name in names:
        clips = '  '.join(f'{clip}: {values[name]:.4f}' for clip, values in result['clips'].items())
        lines.append(f'\t # {name}: {result[name]:.4f}\t{clips if len(result["clips"]) <= 12 else ""}')
        if tb_logger is not None:
            tb_logger.add_scalar(f'metrics/{dataset_name}/{name}', result[name], current_iter)
    get_root_logger().info('\n'.join(lines))


def _without(options: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != key}
