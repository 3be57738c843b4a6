"""What a test's ``results.json`` is: figures, and the protocol by which they were really measured.

A result is a dict: ``benchmark``, ``degradation``, ``network`` (a label), ``checkpoint_sha256``, ``protocol`` (see
``describe_protocol``), ``metrics`` (``{name: mean of the clip means}``), ``clips`` (``{clip: {'frames': number, metric:
mean}}``), ``params`` and ``macs`` without the flow network, both also ``_with_flow``, ``lr_size`` (at which MACs are
counted), ``seconds_per_frame``, ``device``, ``versions``, ``time``, and a little more that only people read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr_ssl.checkpoints.zoo import PREFIX
from basicsr_ssl.data.catalog import BENCHMARKS, SCALE, Benchmark
from basicsr_ssl.data.frames import shortened

Result = Mapping[str, Any]

AVERAGING = 'mean of the clip means'  # as evaluation.clips averages
# What the tables need, and its type.
_KEYS = {'benchmark': str, 'degradation': (str, type(None)), 'network': str, 'checkpoint_sha256': (str, type(None)),
         'protocol': dict, 'metrics': dict, 'clips': dict, 'params': int, 'params_with_flow': int, 'macs': int,
         'macs_with_flow': int, 'lr_size': list, 'time': str}


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


def describe_protocol(options: Mapping[str, Any], val: Mapping[str, Any], missing: Sequence[str],
                      segment: Mapping[str, int] | None, degradations: Mapping[Any, Mapping[str, Any]],
                      clips: Mapping[str, Mapping[str, float]], lr_difference: str | None = None) -> dict[str, Any]:
    """How the figures of a test set were measured, and whether that is the published protocol of its benchmark.

    Args:
        options: of the test set.
        val: the section of the options: metrics, ``flip_seq``, ``center_frame_only``.
        missing: what the frames lack to be the whole benchmark, a sentence each.
        segment: length and overlap of the segments that clips were run in, None for whole clips.
        degradations: kernel, border and phase of LR frames made from GT, by degradation.
        clips: the figures of every clip.
        lr_difference: how LR files differ from what ``degradation`` makes of GT, None if they do not or there are none.

    Returns:
        ``published``: the frames are the whole benchmark, and everything is measured as its published figures are;
        ``partial``, ``missing``; ``deviations``: a sentence for everything else that differs; ``channel`` and ``crop``
        of PSNR and SSIM; ``frames``, ``flip_seq``, ``segment``, ``averaging``; ``lr``, ``kernel``, ``border``,
        ``phase``, the last three None for LR files; ``scale``; ``measured``: the metrics' own options.
    """
    benchmark = BENCHMARKS.get(options.get('benchmark') or '')
    metrics = val['metrics'] or {}
    judged = {name: metrics[name] for name in ('psnr', 'ssim') if name in metrics} or metrics
    made = options.get('degradation') if options.get('dataroot_lq') is None else None
    deviations = [] if benchmark is None else _deviations(benchmark, options, val, segment)
    if benchmark is None and options['name'] in BENCHMARKS:
        deviations = [f'its frames were not checked: the test set is named {options["name"]}, but has no benchmark: '
                      f'{options["name"]}']
    if lr_difference is not None:
        deviations.append(lr_difference)
    infinite = [clip for clip, figures in clips.items() if any(map(math.isinf, figures.values()))]
    if infinite:
        deviations.append(f'of {shortened(infinite)} a metric is infinite, since the output equals GT; the mean leaves '
                          f'{"it" if len(infinite) == 1 else "them"} out')
    return {
        'published': benchmark is not None and not missing and not deviations,
        'partial': bool(missing), 'missing': list(missing), 'deviations': deviations,
        'channel': ' and '.join(dict.fromkeys(map(_channel, judged.values()))),
        'crop': max((metric.get('crop_border', 0) for metric in judged.values()), default=0),
        'frames': _frames(options, val), 'flip_seq': val['flip_seq'], 'segment': segment, 'averaging': AVERAGING,
        'lr': 'made from GT' if made else 'files', **(degradations[made] if made else dict.fromkeys(
            ('kernel', 'border', 'phase'))),
        'scale': options['scale'], 'measured': metrics}


def read_result(path: str | os.PathLike) -> Result:
    """A ``results.json`` of ``basicsr-ssl test``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else; names the file.
    """
    try:
        result = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file ({error}); give the results.json that `basicsr-ssl test` writes'
                         ) from error
    wrong = [key for key, kind in _KEYS.items()
             if not isinstance(result, dict) or not isinstance(result.get(key, ...), kind)]
    if wrong:
        raise ValueError(f'{path} is no result of this version of `basicsr-ssl test`: it lacks {", ".join(wrong)}; '
                         'test again, or leave the file out')
    return result


def _deviations(benchmark: Benchmark, options: Mapping[str, Any], val: Mapping[str, Any],
                segment: Mapping[str, int] | None) -> list[str]:
    name, found = benchmark.name, []
    for metric, measured in (val['metrics'] or {}).items():
        if metric not in ('psnr', 'ssim'):
            continue
        if measured['type'] != f'calculate_{metric}':
            found.append(f'{metric} is measured by {measured["type"]}, not by calculate_{metric}')
        if _channel(measured) != benchmark.channel:
            found.append(f'{metric} is measured on {_channel(measured)}, that of {name} on {benchmark.channel}')
        if crop := measured.get('crop_border', 0):
            found.append(f'{metric} leaves out a border of {crop} pixels, that of {name} none')
    if val['center_frame_only'] != benchmark.centre_frame_only:
        found.append(f'of {name} only the centre frames count, here all do' if benchmark.centre_frame_only else
                     f'of {name} all frames count, here only the centre frames do')
    if val['flip_seq'] != benchmark.flip_seq:
        found.append(f'clips of {name} are extended by their mirror image in time, here they are not'
                     if benchmark.flip_seq else
                     f'clips are extended by their mirror image in time, those of {name} are not')
    if segment:
        found.append(f'clips were run in segments of {segment["frames"]} frames that share {segment["overlap"]}')
    if options['scale'] != SCALE:
        found.append(f'the scale is {options["scale"]}, that of {name} is {SCALE}')
    if options['degradation'] not in benchmark.lr:
        found.append(f'{options["degradation"]} is not published for {name}, only {", ".join(benchmark.lr)}')
    elif benchmark.lr_published and options['dataroot_lq'] is None:
        found.append(f'LR frames are made from GT, those of {name} are published and differ a little')
    return found


def _channel(metric: Mapping[str, Any]) -> str:
    return 'Y' if metric.get('test_y_channel') else 'RGB'


def _frames(options: Mapping[str, Any], val: Mapping[str, Any]) -> str:
    first, most = options.get('first_frame') or 0, options.get('max_frames')
    part = (f' from frame {first} on' if first else '') + (f', at most {most} of a clip' if most else '')
    return ('centre frames' if val['center_frame_only'] else 'all') + part
