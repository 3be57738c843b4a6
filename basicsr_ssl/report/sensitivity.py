"""The command ``basicsr-ssl sensitivity``: what a network loses when single parts of it are pruned, untrained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from basicsr.data import build_dataset
from torch import nn

from basicsr_ssl.api import choose_units, cut_network
from basicsr_ssl.checkpoints.store import load_network
from basicsr_ssl.evaluation.clips import measure_clips
from basicsr_ssl.evaluation.result import to_json
from basicsr_ssl.files import file_sha256, write_text
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.report.plots import heatmap
from basicsr_ssl.report.tables import format_table
from basicsr_ssl.runtime import Processes, Run

SHARES = (.1, .2, .3, .4, .5, .6, .7, .8, .9)
By = Literal['kind', 'group']  # what a part is
_VAL = {'pbar': False, 'flip_seq': False, 'center_frame_only': False, 'save_img': False,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': True}}}
_TESTS = {'clip': 'ClipFoldersTestDataset', 'image': 'ImageFolderTestDataset'}


def sensitivity(file: str, data: str, folder: str, *, lq: str | None = None, degradation: str = 'BI',
                max_frames: int | None = None, by: By = 'kind', shares: Sequence[float] = SHARES, score: str = 'l1',
                max_drop: float = 0.1, progress: Callable[[str], None] = lambda line: None) -> str:
    """Prune one part of a network at a time, without finetuning, and measure it.

    Writes ``sensitivity.json``, ``table.md`` and ``heatmap.png`` into ``folder``. In the JSON file stand ``psnr`` (of
    the whole network), ``parts`` (``{part: {'groups': names, 'psnr': one value a share}}``) and ``ratios``, see
    ``shares_within``: it can be named as ``pruning: {ratios: FILE}``.

    Args:
        file: of a network with groups, in any form that ``load_network`` reads.
        data: folder with a folder of GT frames for each clip; for an image network, a folder of GT images.
        folder: where results go.
        lq: the same of LR frames; None makes them by ``degradation``.
        degradation: ``'BI'`` or ``'BD'``.
        max_frames: of each clip; None measures all.
        by: a part is all groups of a kind (``'kind'``: the inputs of all blocks, say), or a single group.
        shares: of its units to remove, each in [0, 1).
        score: which units go: ``'l1'``, ``'l2'``, ``'gate'`` or ``'random'``.
        max_drop: dB that a part may lose in ``ratios``.
        progress: is told each line of the table as soon as it is measured.

    Returns:
        The table.

    Raises:
        OSError, ValueError: the network or the frames cannot be read, the network has no groups, or a setting is out of
            range.
    """
    net: Any = load_network(file)
    if not getattr(net, 'groups', None):
        raise ValueError(f'{file} holds a {type(net).__name__}, which has nothing to prune')
    if net.task not in _TESTS:
        raise ValueError(f'{file} holds a {type(net).__name__}, which makes no frames whose PSNR could be measured')
    options = {'name': os.path.basename(os.path.normpath(data)), 'type': _TESTS[net.task], 'phase': 'test',
               'scale': getattr(net, 'scale', 4), 'dataroot_gt': data, 'dataroot_lq': lq,
               **({'degradation': degradation} if lq is None else {}),
               **({'max_frames': max_frames} if net.task == 'clip' else {})}
    dataset = build_dataset(options)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    run = Run(Processes(0, 1, device, False), 'sensitivity', folder)

    def psnr(pruned: nn.Module) -> float:
        return measure_clips(pruned.to(device).eval(), dataset, options['name'], _VAL, run).metrics['psnr']

    found = measure_parts(net, psnr, parts(net, by), shares, score, progress)
    ratios = shares_within(found, shares, max_drop)
    frames = f'the first {max_frames} frames of each clip' if max_frames else 'all frames'
    text = format_table(
        [{'part': name, **{f's{i}': value for i, value in enumerate(part['psnr'])}}
         for name, part in found['parts'].items()],
        [('part', 'removed of', 's'), *((f's{i}', f'{share:.0%}', '.2f') for i, share in enumerate(shares))])
    text += (f'\n\nPSNR in dB on Y, {frames} in {data}; with nothing removed {found["psnr"]:.2f}. Units by {score}, '
             'without finetuning.')
    write_text(os.path.join(folder, 'sensitivity.json'), to_json({
        'network': os.fspath(file), 'sha256': file_sha256(file), 'data': options, 'score': score, 'by': by,
        'shares': list(shares), **found, 'max_drop': max_drop, 'ratios': ratios}))
    write_text(os.path.join(folder, 'table.md'), text + '\n')
    heatmap(os.path.join(folder, 'heatmap.png'), list(found['parts']), [f'{share:.0%}' for share in shares],
            [part['psnr'] for part in found['parts'].values()], f'PSNR in dB; whole: {found["psnr"]:.2f}')
    return text


def parts(net: Any, by: By) -> dict[str, list[str]]:
    """Names of groups by part: the last word of their names, or each its own."""
    result: dict[str, list[str]] = {}
    for group in net.groups:
        result.setdefault(group.name if by == 'group' else group.name.rpartition('.')[2], []).append(group.name)
    return result


def measure_parts(net: nn.Module, psnr: Callable[[nn.Module], float], named: Mapping[str, Sequence[str]],
                  shares: Sequence[float], score: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """``psnr`` of the network, and in ``parts`` of those in which each part lost each share of its units."""
    found: dict[str, Any] = {'psnr': psnr(net), 'parts': {}}
    progress(f'nothing removed: {found["psnr"]:.2f} dB')
    for name, groups in named.items():
        values = []
        for share in shares:
            options = PruningOptions.of(ratios=dict.fromkeys(groups, share), score=score)
            values.append(psnr(cut_network(net, choose_units(net, options))))
        found['parts'][name] = {'groups': list(groups), 'psnr': values}
        progress(f'{name}: ' + ', '.join(f'{share:.0%} {value:.2f}' for share, value in zip(shares, values)))
    return found


def shares_within(found: Mapping[str, Any], shares: Sequence[float], max_drop: float) -> dict[str, float]:
    """Group name to the largest share whose removal, and that of all smaller ones, costs its part at most so many dB.

    Each part was measured alone: what they lose together is more.
    """
    ratios = {}
    for part in found['parts'].values():
        share = 0.0
        for share_tried, value in sorted(zip(shares, part['psnr'])):
            if not found['psnr'] - value <= max_drop:
                break
            share = share_tried
        ratios |= dict.fromkeys(part['groups'], share)
    return ratios
