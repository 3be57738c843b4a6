"""Tables, expectations, costs, latencies and pictures against figures worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import VARIANTS, clip, tiny_net
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr_ssl.api import network_cost, prune_network
from basicsr_ssl.archs import BicubicUpsampler
from basicsr_ssl.latency import measure_latency
from basicsr_ssl.report import plots
from basicsr_ssl.report.expectations import check_expectations
from basicsr_ssl.report.plots import GAP, comparison_picture, heatmap, kept_units_chart, pick_crop, share_chart
from basicsr_ssl.report.summary import figures, format_summary, write_summary
from basicsr_ssl.report.tables import format_table, human

NAN = math.nan


# ---- tables

@pytest.mark.parametrize('number, text', [
    (0, '0'), (999, '999'), (1000, '1.00K'), (999_499, '999K'), (999_600, '1.00M'), (49_603, '49.6K'),
    (4_851_011, '4.85M'), (9_996_000, '10.0M'), (92e9, '92.0G'), (337.8e9, '338G'), (2.5e15, '2500T')])
def test_human_units(number: float, text: str) -> None:
    assert human(number) == text


def test_table_text() -> None:
    rows = [{'name': 'a', 'x': 1.25, 'n': 1500}, {'name': 'longer', 'x': NAN}, {'name': 'b', 'x': None, 'n': 7}]
    assert format_table(rows, [('name', 'name', 's'), ('x', 'x', '.1f'), ('n', 'count', human)]) == '\n'.join([
        '| name   |   x | count |',
        '| ------ | --: | ----: |',
        '| a      | 1.2 | 1.50K |',
        '| longer |   - |     - |',
        '| b      |   - |     7 |'])


def summary_rows() -> list[dict[str, Any]]:
    return [
        {'network': 'bicubic', 'params': 0, 'params_with_flow': 0, 'macs': 0, 'macs_with_flow': 0,
         'ms_per_frame': 0.5, 'psnr': 26.141, 'ssim': 0.72921},
        {'network': 'dense', 'params': 4_851_011, 'params_with_flow': 6_291_311, 'macs': 300e9,
         'macs_with_flow': 400e9, 'ms_per_frame': 100.0, 'psnr': 31.42, 'ssim': 0.8909},
        {'network': 'ssl', 'params': 1_000_000, 'params_with_flow': 2_440_300, 'macs': 100e9, 'macs_with_flow': 200e9,
         'ms_per_frame': 80.0, 'psnr': NAN, 'ssim': 0.8833},
    ]


def test_summary_text() -> None:
    assert format_summary(summary_rows()) == '\n'.join([
        '| network | params | params+flow | MACs | fewer | MACs+flow | fewer | ms/frame |  faster |  PSNR |   SSIM |',
        '| ------- | -----: | ----------: | ---: | ----: | --------: | ----: | -------: | ------: | ----: | -----: |',
        '| bicubic |      0 |           0 |    0 |     - |         0 |     - |     0.50 | 200.00x | 26.14 | 0.7292 |',
        '| dense   |  4.85M |       6.29M | 300G | 1.00x |      400G | 1.00x |   100.00 |   1.00x | 31.42 | 0.8909 |',
        '| ssl     |  1.00M |       2.44M | 100G | 3.00x |      200G | 2.00x |    80.00 |   1.25x |     - | 0.8833 |',
        '',
        'MACs and ms per frame. "+flow" counts the flow network too; ms always includes it.',
        '"fewer" and "faster": times, against dense.'])


def test_summary_without_the_reference_row_has_no_ratios() -> None:
    text = format_summary(summary_rows()[:1])
    assert text.splitlines()[0] == '| network | params | params+flow | MACs | MACs+flow | ms/frame |  PSNR |   SSIM |'
    assert 'faster' not in text


def test_summary_of_two_test_sets_names_them() -> None:
    rows: list[dict[str, Any]] = [
        {'network': 'dense', 'lr_size': [180, 320], 'device': 'cpu', 'psnr': 31.0,
         'metrics': {'REDS4': {'psnr': 31.0, 'ssim': 0.89}, 'Vid4': {'psnr': 27.0}}},
        {'network': 'ssl', 'lr_size': [180, 320], 'device': 'cpu', 'metrics': {'REDS4': {'psnr': 30.5}}}]
    table = format_summary(rows).splitlines()
    assert table[0].endswith(' REDS4 PSNR | REDS4 SSIM | Vid4 PSNR |')
    assert table[2].endswith('|      31.00 |     0.8900 |     27.00 |')
    assert table[3].endswith('|      30.50 |          - |         - |')
    assert table[5].startswith('MACs and ms per frame of 180x320 LR pixels, on cpu.')


def test_a_single_test_set_is_not_named() -> None:
    rows = [{'network': 'dense', 'metrics': {'REDS4': {'psnr': 31.0, 'psnr_y': 32.5}}}]
    table = format_summary(rows).splitlines()
    assert table[0].endswith('|  PSNR | PSNR_Y |') and table[2].endswith('| 31.00 |  32.50 |')


def test_figures_of_a_row() -> None:
    row = {'network': 'a', 'macs': 5, 'psnr': None, 'lr_size': [1, 2], 'ok': True,
           'metrics': {'A': {'psnr': 1.0, 'clips': {}}, 'B': {'psnr': 2.0, 'ssim': 3.0}}}
    assert figures(row) == {'macs': 5, 'psnr': 1.0, 'A/psnr': 1.0, 'B/psnr': 2.0, 'B/ssim': 3.0}


# ---- expectations

EXPECTED_ROWS = [
    {'network': 'bicubic', 'psnr': 30.1, 'macs': 0, 'metrics': {'A': {'psnr': 30.1}, 'B': {'psnr': 20.0}}},
    {'network': 'dense', 'psnr': 30.4, 'macs': 300},
    {'network': 'ssl', 'psnr': 29.9, 'macs': 101, 'ms_per_frame': NAN},
]


@pytest.mark.parametrize('entry', [
    {'row': 'dense', 'metric': 'psnr', 'over': 'bicubic', 'at_least': 0.3},  # 0.2999999999999972 in floating point
    {'row': 'ssl', 'metric': 'psnr', 'over': 'dense', 'at_least': -0.5, 'at_most': 0.0},
    {'row': 'ssl', 'metric': 'macs', 'ratio_of': 'dense', 'at_most': 0.337},
    {'row': 'dense', 'metric': 'psnr', 'value': 30.0, 'tolerance': 0.5},
    {'row': 'bicubic', 'metric': 'B/psnr', 'value': 20.0},
    {'row': 'ssl', 'metric': 'macs', 'over': None, 'ratio_of': None, 'at_least': None, 'at_most': 101},
], ids=str)
def test_met_expectations(entry: dict[str, Any]) -> None:
    assert check_expectations(EXPECTED_ROWS, [entry]) == []


@pytest.mark.parametrize('entry, line', [
    ({'row': 'dense', 'metric': 'psnr', 'over': 'bicubic', 'at_least': 0.31},
     'dense: psnr over bicubic: expected at least 0.31, seen 0.3'),
    ({'row': 'ssl', 'metric': 'psnr', 'over': 'dense', 'at_least': -0.3},
     'ssl: psnr over dense: expected at least -0.3, seen -0.5'),
    ({'row': 'ssl', 'metric': 'macs', 'ratio_of': 'dense', 'at_most': 0.3334},
     'ssl: macs as a ratio of dense: expected at most 0.3334, seen 0.336667'),
    ({'row': 'dense', 'metric': 'psnr', 'value': 30.0, 'tolerance': 0.3},
     'dense: psnr: expected 30 within 0.3, seen 30.4'),
    ({'row': 'dense', 'metric': 'psnr', 'at_least': 31, 'at_most': 32},
     'dense: psnr: expected at least 31 and at most 32, seen 30.4'),
    ({'row': 'ssl', 'metric': 'ms_per_frame', 'at_least': 0},
     'ssl: ms_per_frame: expected at least 0, seen nan'),
    ({'row': 'dense', 'metric': 'ms_per_frame', 'at_least': 0},
     'dense: ms_per_frame: expected at least 0, seen no figure'),
    ({'row': 'ssl', 'metric': 'ms_per_frame', 'over': 'dense', 'at_most': 0},
     'ssl: ms_per_frame over dense: expected at most 0, seen no figure'),
    ({'row': 'ssl', 'metric': 'macs', 'ratio_of': 'bicubic', 'at_least': 0},
     'ssl: macs as a ratio of bicubic: expected at least 0, seen nan'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_missed_expectations(entry: dict[str, Any], line: str) -> None:
    met = {'row': 'dense', 'metric': 'macs', 'value': 300, 'tolerance': 0}
    assert check_expectations(EXPECTED_ROWS, [met, entry, met]) == [line]


@pytest.mark.parametrize('entry, message', [
    ({'row': 'dens', 'metric': 'psnr', 'at_least': 0}, "there is no row 'dens'; did you mean 'dense'"),
    ({'row': 'ssl', 'metric': 'psnr', 'over': 'dence', 'at_least': 0}, "there is no row 'dence'; did you mean 'dense'"),
    ({'row': 'ssl', 'metric': 'psrn', 'at_least': 0}, "there is no metric 'psrn'; did you mean 'psnr'"),
    ({'row': 'ssl', 'metric': 'psnr'}, "entry for 'ssl', 'psnr' expects nothing; give at_least"),
])
def test_impossible_expectations(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_expectations(EXPECTED_ROWS, [entry])


# ---- summary files

def test_summary_files(tmp_path: Path) -> None:
    rows = summary_rows()
    rows[1]['metrics'] = {'A': {'psnr': math.inf, 'ssim': 1.0}}
    text = write_summary(tmp_path / 'results', rows)
    assert (tmp_path / 'results' / 'summary.md').read_text() == text + '\n'

    def refuse(constant: str) -> None:
        raise AssertionError(f'{constant} is not JSON')

    read = json.loads((tmp_path / 'results' / 'summary.json').read_text(), parse_constant=refuse)
    assert read[0] == rows[0]
    assert read[1]['metrics'] == {'A': {'psnr': None, 'ssim': 1.0}}
    assert read[2] == {**rows[2], 'psnr': None}
    assert math.isnan(rows[2]['psnr'])  # the rows themselves stay as they were
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == ['summary.json', 'summary.md']


# ---- costs

def flops(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


@pytest.mark.parametrize('variant', [name for name, args in VARIANTS.items() if 'flow' not in args])
@pytest.mark.parametrize('compact', [False, True], ids=['dense', 'compact'])
def test_macs_are_half_the_counted_flops(variant: str, compact: bool) -> None:
    net: nn.Module = tiny_net(**VARIANTS[variant])
    if compact:
        net = prune_network(net, 0.5, score='l1')
    cost = network_cost(net, (6, 7))
    assert cost['macs'] == flops(net, clip(frames=3, height=6, width=7)) / 2 / 3
    assert cost['params'] == sum(p.numel() for p in net.parameters())
    assert cost['macs_with_flow'] == cost['macs'] and cost['params_with_flow'] == cost['params']


def test_one_more_frame_costs_one_more_flow_in_each_direction() -> None:
    net = tiny_net(flow='spynet')
    cost = network_cost(net, (20, 30))
    one_more = flops(net, clip(frames=2, height=20, width=30)) - flops(net, clip(frames=1, height=20, width=30))
    assert cost['macs_with_flow'] == one_more / 2
    # without its flow network the rest is a net of the same widths
    assert cost['macs'] == network_cost(tiny_net(), (20, 30))['macs']
    assert cost['params_with_flow'] - cost['params'] == 1_440_300  # SPyNet


def test_bicubic_costs_nothing() -> None:
    assert network_cost(BicubicUpsampler(), (8, 8)) == {
        'params': 0, 'params_with_flow': 0, 'macs': 0, 'macs_with_flow': 0}


# ---- latency

def fake_nets(seconds: dict[str, list[float]]) -> tuple[dict[str, nn.Module], Callable[[], float], list[tuple]]:
    """Networks whose n-th run takes the n-th of the given times, the clock on which it does, and what they saw."""
    now, runs = [0.0], []

    def make(label: str) -> nn.Module:
        class Fake(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                assert not self.training and not torch.is_grad_enabled()
                now[0] += seconds[label][sum(run[0] == label for run in runs)]
                runs.append((label, x))
                return x
        return Fake()

    return {label: make(label) for label in seconds}, lambda: now[0], runs


def test_latency_is_the_median_of_alternating_runs() -> None:
    nets, clock, runs = fake_nets({'a': [50, 1, 9, 2], 'b': [60, 6, 4, 400]})
    assert measure_latency(nets, (4, 5), num_frame=2, repeats=3, warmup=1, clock=clock) == {'a': 1000.0, 'b': 3000.0}
    assert [label for label, _ in runs] == ['a', 'b'] * 4
    assert all(x.shape == (1, 2, 3, 4, 5) and torch.equal(x, runs[0][1]) for _, x in runs)
    assert runs[0][1].std() > 0.1
    assert all(net.training for net in nets.values())  # the given networks are left alone


def test_latency_without_warmup() -> None:
    nets, clock, runs = fake_nets({'a': [3, 5]})
    assert measure_latency(nets, (4, 5), num_frame=1, repeats=2, warmup=0, clock=clock) == {'a': 4000.0}
    assert len(runs) == 2


def test_latency_leaves_the_layout_of_weights() -> None:
    net: Any = tiny_net()
    net.to(memory_format=torch.channels_last)
    layouts = []
    net.conv_last.register_forward_pre_hook(lambda conv, _: layouts.append(conv.weight.stride()))
    measure_latency({'net': net}, (4, 5), num_frame=2, repeats=1)
    assert layouts and set(layouts) == {net.conv_last.weight.stride()}


@pytest.mark.parametrize('num_frame, repeats', [(0, 1), (1, 0)])
def test_latency_of_nothing(num_frame: int, repeats: int) -> None:
    with pytest.raises(ValueError, match='num_frame and repeats must be at least 1'):
        measure_latency({}, (4, 5), num_frame, repeats=repeats)


# ---- pictures

def scene(h: int = 40, w: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize('top, left', [(0, 0), (16, 28), (32, 52)], ids=['corner', 'middle', 'far corner'])
def test_crop_is_where_bicubic_is_worse(top: int, left: int) -> None:
    gt = np.full((40, 60, 3), 100, np.uint8)
    dense, bicubic = gt + np.uint8(3), gt + np.uint8(3)
    bicubic[top:top + 8, left:left + 8] += 90
    assert pick_crop(gt, dense, bicubic, 8) == (top, left)
    assert pick_crop(gt, dense, bicubic, 8, step=4) == (top, left)


def test_crop_agrees_with_a_search_of_all_windows() -> None:
    gt, dense, bicubic = scene(seed=1), scene(seed=2), scene(seed=3)
    gains = {}
    for top in range(0, 40 - 12 + 1, 4):
        for left in range(0, 60 - 12 + 1, 4):
            window = np.s_[top:top + 12, left:left + 12]
            truth = gt[window].astype(float)
            gains[top, left] = ((bicubic[window] - truth)**2).mean() - ((dense[window] - truth)**2).mean()
    assert pick_crop(gt, dense, bicubic, 12, step=4) == max(gains, key=lambda position: gains[position])


def test_crop_of_equal_images_is_the_first_and_a_large_one_the_whole() -> None:
    gt = scene()
    assert pick_crop(gt, gt, gt, 8) == (0, 0)
    assert pick_crop(gt, gt, scene(seed=1), 100) == (0, 0)
    assert pick_crop(gt, gt, np.where(np.arange(60)[:, None] < 50, gt, 255 - gt), 50) == (0, 10)


def test_crop_of_different_sizes() -> None:
    with pytest.raises(ValueError, match='images of one size'):
        pick_crop(scene(), scene(20, 30), scene(), 8)


def test_comparison_shows_every_pixel_as_a_square(tmp_path: Path) -> None:
    lr, sr, gt = scene(8, 8, seed=1), scene(32, 32, seed=2), scene(32, 32, seed=3)
    path = tmp_path / 'pictures' / 'comparison.png'
    comparison_picture(path, [[('LR', lr, 'clip 1'), ('ssl', sr, '30.00 dB'), ('GT', gt, '')],
                              [('LR', sr, ''), ('GT', gt, '')]])
    drawn = np.asarray(Image.open(path).convert('RGB'))
    for i, (image, zoom) in enumerate(((lr, 32), (sr, 8), (gt, 8))):
        left = GAP + i * (256 + GAP)
        np.testing.assert_array_equal(drawn[GAP:GAP + 256, left:left + 256], image.repeat(zoom, 0).repeat(zoom, 1))
    below = drawn[GAP + 256:-256]  # captions, then the second row
    assert (below[GAP:30, :, 0] < 100).any() and (below[0] == 255).all()
    assert (drawn[:, :GAP] == 255).all() and (drawn[:, -GAP:] == 255).all()
    assert [p.name for p in path.parent.iterdir()] == ['comparison.png']


def test_long_labels_do_not_run_into_their_neighbours(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    comparison_picture(tmp_path / 'a.png', [[('a', image, ''), ('compact ' * 20, image, ''), ('b', image, '')]])
    text = np.asarray(Image.open(tmp_path / 'a.png').convert('L'))[GAP + 256:]
    assert (text[:, 256 + 3 * GAP // 2] == 255).all() and (text[:, 2 * 256 + 5 * GAP // 2] == 255).all()
    assert (text[:, 256 + 2 * GAP:2 * 256 + 2 * GAP] < 200).any()


@pytest.mark.parametrize('rows, message', [
    ([], 'no panels to draw'),
    ([[('a', scene().astype(np.float32), '')]], r'got \(40, 60, 3\) of float32'),
    ([[('a', scene()[..., 0], '')]], r'got \(40, 60\) of uint8'),
])
def test_comparison_of_something_else(rows: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        comparison_picture(tmp_path / 'a.png', rows)
    assert not list(tmp_path.iterdir())


def test_kept_units_chart_draws_shares_to_scale(tmp_path: Path) -> None:
    groups = {'trunk.0.in': {'kept': 16, 'size': 64}, 'trunk.1.in': {'kept': 32, 'size': 64}}
    kept_units_chart(tmp_path / 'kept.png', {'groups': groups})
    drawn = np.asarray(Image.open(tmp_path / 'kept.png').convert('RGB')).astype(int)
    bars = (abs(drawn - (31, 119, 180)).sum(axis=2) == 0)  # matplotlib's first colour
    backs = (abs(drawn - 230).sum(axis=2) < 3)
    rows = [i for i in range(len(bars)) if bars[i].any()]  # lines of pixels, from the first bar to the second
    shares = [bars[i].sum() / (bars[i].sum() + backs[i].sum()) for i in (rows[len(rows) // 4], rows[-len(rows) // 4])]
    np.testing.assert_allclose(shares, [0.25, 0.5], atol=0.02)


def test_kept_units_chart_of_a_full_size_network(tmp_path: Path) -> None:
    groups = {f'trunk.{i}.mid': {'kept': i % 64 + 1, 'size': 64} for i in range(184)}
    kept_units_chart(tmp_path / 'kept.png', {'groups': groups})
    width, height = Image.open(tmp_path / 'kept.png').size
    assert width <= 1700 and height <= 900  # on one screen: four columns


def test_share_chart_draws_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, '_save', lambda figure, path: drawn.append(figure))
    share_chart(tmp_path / 'shares.png', {
        'ours': (24.5, {'a': {0.3: 23.0, 0.1: 24.0}, 'b': {0.1: 24.2}}), 'theirs': (None, {'b': {0.15: 7.0}})}, 'title')
    ours, theirs = ([[line.get_xydata().tolist() for line in axes.lines], [line.get_color() for line in axes.lines]]
                    for axes in drawn[0].axes)
    assert ours == [[[[0, 24.5], [1, 24.5]], [[10, 24], [30, 23]], [[10, 24.2]]], ['0.6', 'C0', 'C1']]
    assert theirs == [[[[15, 7]]], ['C1']]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ['nothing removed', 'a', 'b']
    with pytest.raises(ValueError, match='no figures to draw: run some rows'):
        share_chart(tmp_path / 'shares.png', {'ours': (24.5, {})}, 'title')


def test_heatmap_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, '_save', lambda figure, path: drawn.append(figure))
    heatmap(tmp_path / 'heat.png', ['in', 'out'], ['10%', '20%'], [[30.0, 29.5], [math.nan, 20.0]], 'title')
    axes = drawn[0].axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), '30.00'), ((1, 0), '29.50'), ((1, 1), '20.00')}
    assert [label.get_text() for label in axes.get_yticklabels()] == ['in', 'out']


def test_kept_units_chart_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'give the report\.json of a pruning stage'):
        kept_units_chart(tmp_path / 'kept.png', {'params': {}})
