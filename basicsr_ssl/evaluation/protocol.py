"""How figures were really measured, and whether that is the published protocol of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from basicsr_ssl.data.catalog import Benchmark
from basicsr_ssl.data.degradations import DESCRIPTIONS
from basicsr_ssl.data.frames import shortened
from basicsr_ssl.data.image_catalog import ALL_BENCHMARKS, ImageBenchmark
from basicsr_ssl.evaluation.inference import TRANSFORMS
from basicsr_ssl.evaluation.result import Figures

AVERAGING = 'mean of the clip means'  # as `clips.combine` averages
_QUOTED = 3  # of what a partial benchmark lacks, in a note


def describe_protocol(options: Mapping[str, Any], val: Mapping[str, Any], figures: Figures,
                      missing: Sequence[str] = (), lr_difference: str | None = None) -> dict[str, Any]:
    """How the figures of a test set were measured, and whether that is the published protocol of its benchmark.

    Args:
        options: of the test set.
        val: the section of the options: metrics, ``flip_seq``, ``center_frame_only``.
        figures: of the test.
        missing: what the frames lack to be the whole benchmark, a sentence each.
        lr_difference: how LR files differ from what ``degradation`` makes of GT, None if they do not or there are none.

    Returns:
        ``published``: the frames are the whole benchmark, and everything is measured as its published figures are;
        ``partial``, ``missing``; ``deviations``: a sentence for everything else that differs; ``channel`` and ``crop``
        of PSNR and SSIM; ``frames``, ``flip_seq``, ``segment``, ``self_ensemble``, ``averaging``; ``lr``,
        ``kernel``, ``border``, ``phase``, the last three None for LR files; ``scale``; ``measured``: the metrics' own
        options.
    """
    benchmark = ALL_BENCHMARKS.get(options.get('benchmark') or '')
    metrics = val['metrics'] or {}
    judged = {name: metrics[name] for name in ('psnr', 'ssim') if name in metrics} or metrics
    made = options.get('degradation') if options.get('dataroot_lq') is None else None
    deviations = [] if benchmark is None else _deviations(benchmark, options, val, figures.segment)
    if benchmark is None and options['name'] in ALL_BENCHMARKS:
        deviations = [f'its frames were not checked: the test set is named {options["name"]}, but has no benchmark: '
                      f'{options["name"]}']
    if lr_difference is not None:
        deviations.append(lr_difference)
    infinite = [clip for clip, means in figures.clips.items() if any(map(math.isinf, means.values()))]
    if infinite:
        deviations.append(f'of {shortened(infinite)} a metric is infinite, since the output equals GT; the mean leaves '
                          f'{"it" if len(infinite) == 1 else "them"} out')
    return {
        'published': benchmark is not None and not missing and not deviations,
        'partial': bool(missing), 'missing': list(missing), 'deviations': deviations,
        'channel': ' and '.join(dict.fromkeys(map(_channel, judged.values()))),
        'crop': max((metric.get('crop_border', 0) for metric in judged.values()), default=0),
        'frames': _frames(options, val), 'flip_seq': val['flip_seq'], 'segment': figures.segment,
        'self_ensemble': bool(val.get('self_ensemble')),
        'averaging': AVERAGING,
        'lr': 'made from GT' if made else 'files', **(DESCRIPTIONS[made] if made else dict.fromkeys(
            ('kernel', 'border', 'phase'))),
        'scale': options['scale'], 'measured': metrics}


def quoted(sentences: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = [f'and {len(sentences) - _QUOTED} more'] if len(sentences) > _QUOTED else []
    return '; '.join([*sentences[:_QUOTED], *more])


def how_measured(protocol: Mapping[str, Any]) -> str:
    """A protocol (see ``describe_protocol``) in words, without what it lacks or where it deviates."""
    parts = [f'{name}: {metric["type"]}' for name, metric in protocol['measured'].items()]
    if protocol['channel']:
        parts = [f'PSNR in dB and SSIM on {protocol["channel"]}',
                 f'border of {protocol["crop"]} pixels left out' if protocol['crop'] else 'no border left out']
    if protocol.get('self_ensemble'):
        parts.append(f'output averaged over {TRANSFORMS} flips and turns')
    parts.append('all frames' if protocol['frames'] == 'all' else protocol['frames'])
    if protocol['flip_seq']:
        parts.append('clips extended by their mirror image in time')
    parts.append(protocol['averaging'])
    if protocol['kernel']:
        parts.append(f'LR {protocol["lr"]} ({protocol["kernel"]}; border {protocol["border"]}; phase '
                     f'{protocol["phase"]})')
    elif protocol['lr']:
        parts.append(f'LR from {protocol["lr"]}')
    return ', '.join(parts)


def in_words(protocol: Mapping[str, Any]) -> str:
    """How the figures of a test set were measured, and why they are not comparable with published ones if so."""
    parts = [how_measured(protocol)]
    if protocol['published']:
        parts.append('as its published figures are')
    if protocol['partial']:
        parts.append(f'only a part of the benchmark: {quoted(protocol["missing"])}')
    if protocol['deviations']:
        parts.append(f'deviates from the published protocol: {"; ".join(protocol["deviations"])}')
    return '. '.join(parts)


def _deviations(benchmark: Benchmark | ImageBenchmark, options: Mapping[str, Any], val: Mapping[str, Any],
                segment: Mapping[str, int] | None) -> list[str]:
    name, found = benchmark.name, []
    for metric, measured in (val['metrics'] or {}).items():
        if metric not in ('psnr', 'ssim'):
            continue
        if measured['type'] != f'calculate_{metric}':
            found.append(f'{metric} is measured by {measured["type"]}, not by calculate_{metric}')
        if _channel(measured) != benchmark.channel:
            found.append(f'{metric} is measured on {_channel(measured)}, that of {name} on {benchmark.channel}')
        usual = options['scale'] if benchmark.crop_is_scale else 0
        if (crop := measured.get('crop_border', 0)) != usual:
            found.append(f'{metric} leaves out a border of {crop or "no"} pixels, that of {name} {usual or "none"}')
    if val['center_frame_only'] != benchmark.centre_frame_only:
        found.append(f'of {name} only the centre frames count, here all do' if benchmark.centre_frame_only else
                     f'of {name} all frames count, here only the centre frames do')
    if val['flip_seq'] != benchmark.flip_seq:
        found.append(f'clips of {name} are extended by their mirror image in time, here they are not'
                     if benchmark.flip_seq else
                     f'clips are extended by their mirror image in time, those of {name} are not')
    if segment:
        found.append(f'clips were run in segments of {segment["frames"]} frames that share {segment["overlap"]}')
    if val.get('self_ensemble'):
        found.append(f'the output is averaged over {TRANSFORMS} flips and turns (self-ensemble)')
    if options['scale'] not in benchmark.scales:
        found.append(f'the scale is {options["scale"]}, that of {name} is {" or ".join(map(str, benchmark.scales))}')
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
