"""From the benchmarks' option files to results.json and the tables: what is measured, said and marked."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.matlab_functions import imresize
from nets import tiny_net

import basicsr_ssl
from basicsr_ssl import config
from basicsr_ssl.cli import main
from basicsr_ssl.data.catalog import BENCHMARKS
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.evaluation.protocol import describe_protocol
from basicsr_ssl.evaluation.result import Figures, read_result
from basicsr_ssl.report import benchmarks
from basicsr_ssl.report.benchmarks import benchmark_table, paper_table
from basicsr_ssl.report.plots import Point, pareto_front
from basicsr_ssl.report.published import IMAGE_TESTS, PUBLISHED, PUBLISHED_IMAGES, SOURCES, TESTS
from basicsr_ssl.test import network_label

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / 'options/test').glob('*.yml') if not path.stem.startswith('images_'))

# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(('reference', 'label'), [
    ('bicubic', 'bicubic'),
    ('zoo://BasicVSR_REDS4', 'BasicVSR_REDS4'),
    ('zoo://mmagic/spynet', 'mmagic_spynet'),
    ('experiments/BasicVSR_REDS_l1/finetune/models/net_g_latest.safetensors', 'BasicVSR_REDS_l1_finetune'),
    ('/data/experiments/old/experiments/run/models/net_g_latest.safetensors', 'run'),
    ('experiments/run/finetune/models/net_g_5000.safetensors', 'run_finetune_5000'),
    ('moved/models/net_g_latest.pth', 'moved'),
    ('experiments/run/finetune/models/best.safetensors', 'best'),
    ('weights/BasicVSR_REDS4-543c8261.pth', 'BasicVSR_REDS4-543c8261'),
    ('weights/my net, 2nd (final).v1.pt', 'my_net_2nd_final_.v1'),
    ('weights/../.hidden.pth', 'hidden'),
    ('weights/§§.pth', 'network'),
])
def test_network_labels(reference: str, label: str) -> None:
    assert network_label(reference) == label


# ---------------------------------------------------------------- protocol

def loaded(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    opt = config.load_options(ROOT / f'options/test/{name}.yml', overrides)
    return opt['datasets']['test'], opt['val']


def protocol(name: str, *overrides: str, missing: tuple[str, ...] = (), segment: Any = None,
             clips: Any = None) -> dict[str, Any]:
    return describe_protocol(*loaded(name, *overrides), Figures({}, clips or {}, 0, segment), missing)


def test_clips_that_the_mean_leaves_out_are_named() -> None:
    clips = {'city': {'psnr': 30.0, 'ssim': 0.9}, 'walk': {'psnr': math.inf, 'ssim': 1.0}}
    assert protocol('Vid4_BI', clips={'city': clips['city']})['published']
    found = protocol('Vid4_BI', clips=clips)
    assert found['deviations'] == ['of walk a metric is infinite, since the output equals GT; the mean leaves it out']
    assert not found['published']


BD = {'kernel': 'Gaussian, sigma 1.6, 13x13', 'border': 'replicate', 'phase': 0}
BI = {'kernel': 'MATLAB bicubic, antialiased', 'border': 'symmetric', 'phase': 'centred'}
FROM_FILES = {'kernel': None, 'border': None, 'phase': None}


@pytest.mark.parametrize(('name', 'channel', 'frames', 'flip_seq', 'lr'), [
    ('REDS4_BI', 'RGB', 'all', False, FROM_FILES),
    ('Vimeo90K-T_BI', 'Y', 'centre frames', True, BI),
    ('Vid4_BI', 'Y', 'all', False, BI),
    ('UDM10_BD', 'Y', 'all', False, BD),
    ('Vimeo90K-T_BD', 'Y', 'centre frames', True, BD),
    ('Vid4_BD', 'Y', 'all', False, BD),
])
def test_option_files_follow_the_published_protocols(name: str, channel: str, frames: str, flip_seq: bool,
                                                     lr: dict[str, Any]) -> None:
    described, (options, _) = protocol(name), loaded(name)
    assert described['published'] and not described['partial'] and not described['deviations']
    assert (described['channel'], described['crop'], described['frames']) == (channel, 0, frames)
    assert described['flip_seq'] is flip_seq and described['averaging'] == 'mean of the clip means'
    assert {key: described[key] for key in lr} == lr
    assert name == f'{options["benchmark"]}_{options["degradation"]}'
    expected = {'psnr', 'ssim'} | ({'ssim_y'} if name.startswith('REDS4') else set())
    assert set(described['measured']) == expected
    assert {key for key, metric in described['measured'].items() if metric['test_y_channel']} == (
        {'ssim_y'} if channel == 'RGB' else expected)


def test_every_column_of_the_papers_table_has_an_option_file() -> None:
    assert {path.stem for path in FILES} == {f'{benchmark}_{degradation}' for benchmark, degradation in TESTS}
    assert all(degradation in BENCHMARKS[benchmark].lr for benchmark, degradation in TESTS)


@pytest.mark.parametrize(('name', 'override', 'said'), [
    ('Vid4_BI', 'val:metrics:psnr:test_y_channel=false', 'psnr is measured on RGB, that of Vid4 on Y'),
    ('REDS4_BI', 'val:metrics:ssim:test_y_channel=true', 'ssim is measured on Y, that of REDS4 on RGB'),
    ('Vid4_BI', 'val:metrics:ssim:crop_border=4', 'ssim leaves out a border of 4 pixels'),
    ('Vid4_BI', 'val:metrics:psnr:type=calculate_ssim', 'psnr is measured by calculate_ssim'),
    ('Vimeo90K-T_BI', 'val:center_frame_only=false', 'only the centre frames count, here all do'),
    ('Vid4_BI', 'val:center_frame_only=true', 'of Vid4 all frames count'),
    ('Vimeo90K-T_BI', 'val:flip_seq=false', 'here they are not'),
    ('UDM10_BD', 'val:flip_seq=true', 'those of UDM10 are not'),
    ('UDM10_BD', 'datasets:test:degradation=BI', 'BI is not published for UDM10, only BD'),
    ('REDS4_BI', 'datasets:test:dataroot_lq=none', 'LR frames are made from GT, those of REDS4 are published'),
    ('Vid4_BI', 'datasets:test:benchmark=none', 'its frames were not checked'),
    ('Vid4_BI', 'scale=2', 'the scale is 2'),
])
def test_deviations_are_said(name: str, override: str, said: str) -> None:
    described = protocol(name, override)
    assert not described['published'] and not described['partial']
    [deviation] = described['deviations']
    assert said in deviation


def test_segments_and_missing_frames_are_said() -> None:
    assert 'segments of 10 frames that share 2' in protocol('Vid4_BI', segment={'frames': 10, 'overlap': 2})[
        'deviations'][0]
    partial = protocol('Vid4_BI', missing=('walk is missing',))
    assert (partial['published'], partial['partial'], partial['missing']) == (False, True, ['walk is missing'])
    assert protocol('Vid4_BI', 'datasets:test:max_frames=3')['frames'] == 'all, at most 3 of a clip'


def test_lr_files_have_an_unknown_border(tmp_path: Path) -> None:
    described = protocol('Vid4_BD', f'datasets:test:dataroot_lq={tmp_path}')
    assert described['lr'] == 'files' and {key: described[key] for key in FROM_FILES} == FROM_FILES
    assert described['published']


# LR files of a benchmark are compared with GT

def shrink(gt: np.ndarray, border: int = cv2.BORDER_REPLICATE, sigma: float = 1.6, cut: bool = False) -> np.ndarray:
    """BD by OpenCV, and what others make of it."""
    levels = cv2.GaussianBlur(gt.astype(np.float64), (13, 13), sigma, borderType=border)[::4, ::4]
    return np.floor(levels if cut else levels + 0.5).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(('make', 'differs'), [
    (lambda gt, other: shrink(gt), False),
    (lambda gt, other: shrink(gt) + (np.indices((24, 32)).sum(0) % 10 == 0)[..., None], False),  # a tenth off by one
    (lambda gt, other: shrink(gt, cv2.BORDER_REFLECT_101), True),
    (lambda gt, other: shrink(gt, cut=True), False),
    (lambda gt, other: shrink(gt, cv2.BORDER_REFLECT_101, cut=True), True),
    (lambda gt, other: shrink(gt, sigma=1.5), True),
    (lambda gt, other: shrink(gt[1:].copy()), True),
    (lambda gt, other: shrink(other), True),
    (lambda gt, other: np.floor(imresize(gt.astype(np.float64), 0.25).clip(0, 255) + 0.5).astype(np.uint8), True),
], ids=['same', 'rounding', 'border', 'cut off', 'cut off, border', 'sigma', 'phase', 'other frame', 'BI'])
def test_lr_files_that_are_not_what_they_are_taken_for(make: Any, differs: bool, tmp_path: Path) -> None:
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (100, 128, 3), dtype=np.uint8), (0, 0), 1)
    for name, gt, other in (('0', texture[:96], texture[4:]), ('1', texture[4:], texture[:96])):
        for folder, image in (('gt', gt), ('lq', make(gt, other))):
            (tmp_path / folder / 'walk').mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / 'walk' / f'{name}.png'), image)
    dataset = ClipFoldersTestDataset({
        'name': 'Vid4', 'type': 'ClipFoldersTestDataset', 'phase': 'test', 'benchmark': 'Vid4', 'allow_partial': True,
        'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq'), 'degradation': 'BD'})
    found = dataset.lr_difference()
    assert (found is not None) == differs, found
    if found is not None:
        assert f'{tmp_path}/lq/walk/1.png differs from BD made from GT by ' in found


def test_a_result_from_lr_of_another_degradation_deviates(data_root: Path) -> None:
    lq = data_root / 'Vid4/BDx4'
    for path in (data_root / 'Vid4/GT').rglob('*.png'):
        (lq / path.parent.name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(lq / path.parent.name / path.name), shrink(np.asarray(cv2.imread(str(path)))))
    for name, deviations in (('Vid4_BD', 0), ('Vid4_BI', 1)):
        assert vid4('bicubic', f'datasets:test:dataroot_lq={lq}', name=name) == 0
        assert len(result_of(f'{name}_bicubic_partial')['protocol']['deviations']) == deviations
    table = Path('results/Vid4_BI_bicubic_partial/table.md').read_text()
    assert 'bicubic (partial, deviates)' in table and 'differs from BI made from GT by' in table


# ---------------------------------------------------------------- published rows

# lines of the SSL paper's table, and figures of mmagic's zoo
PRINTED = '''
| Bicubic | - | 26.14/.7292 | 31.32/.8684 | 23.78/.6347 | 28.47/.8253 | 31.30/.8687 | 21.80/.5246 |
| SSL-bi | 1.0 | 31.06/.8833 | 36.82/.9419 | 27.15/.8208 | 39.35/.9665 | 37.06/.9458 | 27.56/.8431 |
| L1-norm-uni | 0.7 | 29.97/.8570 | 36.45/.9381 | 26.70/.8031 | 38.43/.9601 | 36.53/.9405 | 26.89/.8187 |
| SSL-uni | 0.5 | 30.24/.8633 | 36.56/.9392 | 27.01/.8148 | 38.68/.9615 | 36.77/.9429 | 27.18/.8296 |
'''.strip().splitlines()


@pytest.mark.parametrize('line', PRINTED, ids=lambda line: line.split()[1])
def test_published_rows_are_the_papers(line: str) -> None:
    method, params, *cells = line.strip('| ').split(' | ')
    [row] = [row for row in PUBLISHED if row.method == method]
    assert row.params == (None if params == '-' else float(params) * 1e6)
    assert row.scores == {test: tuple(map(float, cell.split('/'))) for test, cell in zip(TESTS, cells)}


def test_independent_rows_are_mmagics() -> None:
    rows = {row.method.removeprefix('BasicVSR trained on '): row.scores for row in PUBLISHED if row.source == 'mmagic'}
    assert rows['REDS'][('REDS4', 'BI')] == (31.4170, .8909)
    assert rows['Vimeo90K BI'][('Vimeo90K-T', 'BI')] == (37.2026, .9451)
    assert rows['Vimeo90K BI'][('REDS4', 'BI')] == (30.3128, .8660)
    assert rows['Vimeo90K BD'] == {('UDM10', 'BD'): (39.9953, .9695), ('Vimeo90K-T', 'BD'): (37.5501, .9499),
                                   ('Vid4', 'BD'): (27.9791, .8556)}


def test_published_rows_are_plausible() -> None:
    assert len({(row.method, row.source) for row in PUBLISHED}) == len(PUBLISHED)
    pruned = 'Singh'  # of the pruning study, with tables of its own
    assert {row.source for row in PUBLISHED + PUBLISHED_IMAGES} | {pruned} == set(SOURCES)
    for row in PUBLISHED:
        assert set(row.scores) <= set(TESTS) and set(row.doubts) <= set(row.scores)
        assert all(21 < psnr < 41 and .5 < (ssim or 0) < 1 for psnr, ssim in row.scores.values()), row.method
    # no figure of the paper's networks is below bicubic
    bicubic = PUBLISHED[0].scores
    assert all(score > bicubic[test] for row in PUBLISHED[1:] for test, score in row.scores.items())


@pytest.mark.parametrize('line', '''
| ASSLN | 2 | 0.721 | 165.8G | 38.12/.9608 | 33.77/.9194 | 32.27/.9007 | 32.41/.9309 |
| ASSLN | 3 | 0.728 | 74.4G | 34.51/.9280 | 30.45/.8439 | 29.19/.8069 | 28.35/.8562 |
| ASSLN | 4 | 0.737 | 42.4G | 32.29/.8964 | 28.69/.7844 | 27.66/.7384 | 26.27/.7907 |
| SRPN-Lite | 2 | 0.609 | 139.9G | 38.10/.9608 | 33.70/.9189 | 32.25/.9005 | 32.26/.9294 |
| SRPN-Lite | 3 | 0.615 | 62.7G | 34.47/.9276 | 30.38/.8425 | 29.16/.8061 | 28.22/.8534 |
| SRPN-Lite | 4 | 0.623 | 35.8G | 32.24/.8958 | 28.69/.7836 | 27.63/.7373 | 26.16/.7875 |
| SRPN | 2 | ? | ? | 38.34/.9619 | 34.29/.9232 | 32.47/.9032 | 33.50/.9401 |
| SRPN | 4 | ? | ? | 32.72/.9010 | 29.04/.7917 | 27.87/.7457 | 27.25/.8172 |
'''.strip().splitlines())
def test_published_rows_of_images_are_the_papers(line: str) -> None:
    method, scale, params, macs, *cells = line.strip('| ').split(' | ')
    [row] = [row for row in PUBLISHED_IMAGES if row.method == f'{method} x{scale}']
    assert row.params == (None if params == '?' else pytest.approx(float(params) * 1e6))
    # of an LR frame of 180x320, where the paper's is 1280x720 divided by the scale
    assert row.macs == (None if macs == '?' else pytest.approx(
        float(macs.rstrip('G')) * 1e9 * (180 * 320) / (1280 * 720 / int(scale)**2)))
    assert [row.scores[benchmark, f'BIx{scale}'] for benchmark in ('Set5', 'Set14', 'B100', 'Urban100')] == [
        tuple(map(float, cell.split('/'))) for cell in cells]
    assert set(row.scores) <= set(IMAGE_TESTS)


# ---------------------------------------------------------------- tables

def write_result(folder: Path, name: str = 'a', **changes: Any) -> str:
    """A result as a test writes it, with changes; ``protocol`` updates the published one."""
    result = {'benchmark': 'Vid4', 'degradation': 'BI', 'network': 'net', 'checkpoint_sha256': 64 * 'a',
              'params': 1_000_000, 'params_with_flow': 2_440_300, 'macs': 92_000_000_000,
              'macs_with_flow': 140_000_000_000, 'lr_size': [180, 320],
              'metrics': {'psnr': 27.123456, 'ssim': .812345}, 'clips': {'walk': {'frames': 47, 'psnr': 27.123456}},
              'seconds_per_frame': 0.5, 'device': 'cpu', 'time': '2024-01-01T00:00:00+00:00', **changes}
    test = f'{result["benchmark"]}_{result["degradation"]}'
    known = test if any(path.stem == test for path in FILES) else 'Vid4_BI'
    result['protocol'] = {**protocol(known), **changes.get('protocol', {})}
    path = folder / f'{name}.json'
    path.write_text(json.dumps(result))
    return str(path)


def cells_of(markdown: str) -> list[dict[str, str]]:
    """The rows of the Markdown table at the start of a text, by column."""
    lines = [line for line in markdown.splitlines() if line.startswith('|')]
    header, rule, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert all(re.fullmatch(r'-+:?', cell) for cell in rule) and {len(row) for row in rows} == {len(header)}
    return [dict(zip(header, row)) for row in rows]


def test_paper_table_in_markdown(tmp_path: Path) -> None:
    paths = [write_result(tmp_path, 'a'),
             write_result(tmp_path, 'b', benchmark='REDS4', metrics={'psnr': 30.996, 'ssim': .88, 'ssim_y': .89}),
             write_result(tmp_path, 'c', network='bicubic', checkpoint_sha256=None, params=0, params_with_flow=0,
                          macs=0, macs_with_flow=0, metrics={'psnr': 23.7836, 'ssim': .63472})]
    own, bicubic = cells_of(paper_table(paths))
    assert own == {'method': 'net', 'source': 'own test', 'params': '1M', 'params+flow': '2.44M', 'MACs': '92G',
                   'MACs+flow': '140G', 'REDS4 BI (RGB)': '31.00/.8800', 'Vid4 BI (Y)': '27.12/.8123'}
    assert bicubic['params'] == bicubic['MACs'] == bicubic['REDS4 BI (RGB)'] == '-'
    assert bicubic['Vid4 BI (Y)'] == '23.78/.6347'


def test_paper_table_with_published_rows(tmp_path: Path) -> None:
    text = paper_table([write_result(tmp_path)], published=True)
    rows = cells_of(text)
    assert list(rows[0])[6:] == ['REDS4 BI (RGB)', 'Vimeo90K-T BI (Y)', 'Vid4 BI (Y)', 'UDM10 BD (Y)',
                                 'Vimeo90K-T BD (Y)', 'Vid4 BD (Y)']
    assert [row['method'] for row in rows] == [*(row.method for row in PUBLISHED), 'net']
    ssl = rows[5]
    assert (ssl['method'], ssl['params'], ssl['MACs'], ssl['UDM10 BD (Y)']) == ('SSL-bi', '1M', '92G', '39.35/.9665')
    mark = re.search(r'21\.80/\.5246 \[(\d)\]', text)
    assert mark and f'[{mark[1]}] the published SSIM of Bicubic, .5246, looks like transposed digits' in text
    assert '- SSL: Structured Sparsity Learning' in text and '- mmagic: ' in text


def test_images_stand_beside_published_images(tmp_path: Path) -> None:
    image = {'benchmark': 'Set5', 'protocol': {'scale': 2}}
    rows = cells_of(paper_table([write_result(tmp_path, **image)], published=True))
    assert [row['method'] for row in rows] == [*(row.method for row in PUBLISHED_IMAGES), 'net']
    assert rows[-1]['Set5 BIx2 (Y)'] == '27.12/.8123' and rows[0]['Set5 BIx2 (Y)'] == '38.12/.9608'
    rows = cells_of(paper_table([write_result(tmp_path, 'a', **image), write_result(tmp_path, 'b')], published=True))
    assert [row['method'] for row in rows] == [*(row.method for row in PUBLISHED + PUBLISHED_IMAGES), 'net']


def test_networks_are_told_by_their_checksum(tmp_path: Path) -> None:
    paths = [write_result(tmp_path, 'a', network='first name'),
             write_result(tmp_path, 'b', network='renamed', degradation='BD'),  # the same file
             write_result(tmp_path, 'c', network='first name', checkpoint_sha256=64 * 'b')]  # another of that name
    rows = cells_of(paper_table(paths))
    assert [(row['method'], row['Vid4 BI (Y)'], row['Vid4 BD (Y)']) for row in rows] == [
        ('first name (aaaaaaaa)', '27.12/.8123', '27.12/.8123'), ('first name (bbbbbbbb)', '27.12/.8123', '-')]


def test_of_several_results_the_newest_counts_and_a_whole_one_before_a_partial(tmp_path: Path) -> None:
    old = write_result(tmp_path, 'old', metrics={'psnr': 1., 'ssim': .1})
    new = write_result(tmp_path, 'new', metrics={'psnr': 2., 'ssim': .2}, time='2024-01-02T00:00:00+00:00')
    part = write_result(tmp_path, 'part', metrics={'psnr': 3., 'ssim': .3}, time='2024-01-03T00:00:00+00:00',
                        protocol={'published': False, 'partial': True, 'missing': ['walk is missing']})
    for paths in ([old, new, part], [part, new, old]):
        text = paper_table(paths)
        assert [row['Vid4 BI (Y)'] for row in cells_of(text)] == ['2.00/.2000 [1]']
        assert f'[1] of 3 results of net on Vid4 BI this is {new}.' in text


def test_partial_and_deviating_results_are_marked(tmp_path: Path) -> None:
    partial = {'published': False, 'partial': True, 'missing': ['city is missing', 'walk is missing']}
    paths = [write_result(tmp_path, 'a', protocol=partial),
             write_result(tmp_path, 'b', degradation='BD',
                          protocol={'published': False, 'deviations': ['psnr is measured on RGB']})]
    expected = {'Vid4 BI': ('27.12/.8123 (partial)', 'net on Vid4 BI is partial: 1 clip, 47 frames'),
                'Vid4 BD': ('27.12/.8123 (deviates)',
                            'net on Vid4 BD deviates from the published protocol: psnr is measured on RGB')}
    text = paper_table(paths)
    [row] = cells_of(text)
    for number, (test, (cell, note)) in enumerate(expected.items(), 1):
        assert row[f'{test} (Y)'] == f'{cell} [{number}]' and f'- [{number}] {note}.' in text
    [line] = csv.DictReader(io.StringIO(paper_table(paths, 'csv')))
    latex = paper_table(paths, 'latex')
    for test, (cell, note) in expected.items():
        assert line[f'{test} note'] == note
        assert f'{cell}$^{{' in latex and f'$ {note}.' in latex
    single = benchmark_table(read_result(paths[0]))
    assert cells_of(single)[-1]['network'] == 'net (partial)'
    assert '- net on Vid4 BI is partial: 1 clip, 47 frames. city is missing; walk is missing.' in single


def test_paper_table_in_csv_is_unrounded(tmp_path: Path) -> None:
    paths = [write_result(tmp_path, 'a', network='a, "b"'),
             write_result(tmp_path, 'b', network='bicubic', checkpoint_sha256=None, params=0, benchmark='mine')]
    first, second = csv.DictReader(io.StringIO(paper_table(paths, 'csv')))
    assert (first['method'], first['params'], first['macs_with_flow']) == ('a, "b"', '1000000', '140000000000')
    assert (float(first['Vid4 BI psnr']), float(first['Vid4 BI ssim'])) == (27.123456, .812345)
    assert (second['params'], second['Vid4 BI psnr'], second['mine BI psnr']) == ('', '', '27.123456')
    rows = list(csv.DictReader(io.StringIO(paper_table(paths, 'csv', published=True))))
    assert len(rows) == len(PUBLISHED) + 2
    assert [float(rows[11][f'{" ".join(test)} psnr']) for test in TESTS[:3]] == [31.4170, 36.2848, 27.2694]


def test_paper_table_in_latex(tmp_path: Path) -> None:
    hard = r'net_1 & 50% {of} $x$ #2 ~a^b \c'
    text = paper_table([write_result(tmp_path, network=hard)], 'latex', published=True)
    begin, *body = text.split(r'\end{tabular}')[0].splitlines()
    columns = re.fullmatch(r'\\begin\{tabular\}\{([lr]+)\}', begin)
    rows = [line.removesuffix(r' \\').split(' & ') for line in body if line != r'\hline']
    assert columns and len(columns[1]) == 12 and len(rows) == 1 + len(PUBLISHED) + 1
    assert all(len(row) == 12 for row in rows[:-1])
    assert rows[6] == ['SSL-bi', 'SSL', '1M', '2.4M', '92G', '-', '31.06/.8833$^{2}$', '36.82/.9419', '27.15/.8208',
                       '39.35/.9665', '37.06/.9458', '27.56/.8431']
    escaped = body[-2].removesuffix(r' \\').rsplit(' & ', 11)[0]
    back = escaped
    for command, character in ((r'\textbackslash{}', '\0'), (r'\textasciitilde{}', '~'), (r'\textasciicircum{}', '^')):
        back = back.replace(command, character)
    assert not re.search(r'(?<!\\)[&%$#_{}]', back)  # each of them would break the table
    assert re.sub(r'\\([&%$#_{}])', r'\1', back).replace('\0', '\\') == hard


def test_benchmark_table(tmp_path: Path) -> None:
    path = write_result(tmp_path, benchmark='REDS4', metrics={'psnr': 31.0, 'ssim': .88, 'ssim_y': .8933})
    text = benchmark_table(read_result(path))
    rows = cells_of(text)
    assert [row['network'] for row in rows] == [
        *(row.method for row in PUBLISHED if ('REDS4', 'BI') in row.scores), 'net']
    assert (rows[-1]['PSNR (RGB)'], rows[-1]['SSIM (RGB)'], rows[-1]['SSIM (Y)']) == ('31.00', '0.8800', '0.8933')
    assert (rows[5]['PSNR (RGB)'], rows[5]['SSIM (Y)']) == ('31.06', '-')  # SSL-bi, published on RGB only
    assert text.startswith('REDS4 BI:') and 'PSNR in dB and SSIM on RGB, no border left out, all frames' in text
    assert '180x320 LR pixels' in text and 'an SSIM of .8933, most likely measured on Y' in text


def test_benchmark_table_without_published_figures(tmp_path: Path) -> None:
    path = write_result(tmp_path, benchmark='mine', degradation=None, metrics={'niqe': 4.0})
    [row] = cells_of(benchmark_table(read_result(path)))
    assert row == {'network': 'net', 'source': 'own test', 'params': '1M', 'params+flow': '2.44M', 'MACs': '92G',
                   'MACs+flow': '140G', 'niqe': '4.00'}


@pytest.mark.parametrize(('text', 'message'), [
    ('{"psnr"', 'is no JSON file'), ('[]', 'is no result'), ('{"benchmark": "Vid4"}', 'it lacks degradation, network'),
    ('\udcff', 'is no JSON file')])
def test_files_that_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / 'foreign.json'
    path.write_bytes(text.encode('utf-8', 'surrogateescape'))
    assert main(['table', write_result(tmp_path), str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'basicsr-ssl: {path}') and message in error and error.count('\n') == 1


def test_table_of_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['table', str(tmp_path / '*/results.json')]) == 1
    assert str(tmp_path / '*/results.json') in capsys.readouterr().err
    with pytest.raises(ValueError, match="no table format 'word'; there are markdown, csv, latex, html"):
        paper_table([], 'word')


# ---------------------------------------------------------------- tests that run

@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Vid4 without foliage, in tiny frames."""
    rng = np.random.default_rng(0)
    for clip, frames in (('calendar', 3), ('city', 2), ('walk', 4)):
        folder = tmp_path / 'data/Vid4/GT' / clip
        folder.mkdir(parents=True)
        texture = cv2.GaussianBlur(rng.random((32 + frames, 48, 3)), (0, 0), 1.5)
        texture = (texture - texture.min()) / np.ptp(texture) * 255
        for i in range(frames):
            cv2.imwrite(str(folder / f'{i:08d}.png'), texture[i:i + 32].round().astype(np.uint8))
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'data'))
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data'


def run(option_file: Path, *arguments: str) -> int:
    return main(['test', '-opt', str(option_file), *arguments])


def vid4(network: str, *overrides: str, name: str = 'Vid4_BI', partial: bool = True) -> int:
    return run(ROOT / f'options/test/{name}.yml', *(['--allow-partial'] if partial else []), '--force_yml',
               f'path:pretrain_network_g={network}', 'num_gpu=0', *overrides)


def result_of(folder: str) -> dict[str, Any]:
    return json.loads(Path('results', folder, 'results.json').read_text())


def test_a_partial_benchmark_is_refused(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vid4('bicubic', partial=False) == 1
    error = capsys.readouterr().err
    assert 'Vid4' in error and 'foliage' in error and '--allow-partial' in error
    assert not Path('results').exists()


def test_a_partial_benchmark_is_measured_and_marked(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vid4('bicubic') == 0
    folder = Path('results/Vid4_BI_bicubic_partial')
    result, table = result_of(folder.name), (folder / 'table.md').read_text()

    expected = {}  # with BasicSR's own functions
    for clip in sorted((data_root / 'Vid4/GT').iterdir()):
        scores = []
        for path in sorted(clip.iterdir()):
            gt = np.asarray(cv2.imread(str(path)))
            lr = np.floor(imresize(gt.astype(np.float64), 0.25).clip(0, 255) + 0.5)
            sr = np.rint(imresize(lr, 4).clip(0, 255)).astype(np.uint8)
            scores.append([measure(sr, gt, 0, test_y_channel=True) for measure in (calculate_psnr, calculate_ssim)])
        expected[clip.name] = np.mean(scores, axis=0)
    for clip, (psnr, ssim) in expected.items():
        assert result['clips'][clip]['psnr'] == pytest.approx(psnr, abs=1e-3)
        assert result['clips'][clip]['ssim'] == pytest.approx(ssim, abs=1e-4)
    assert {clip: values['frames'] for clip, values in result['clips'].items()} == {'calendar': 3, 'city': 2, 'walk': 4}
    means = np.mean(list(expected.values()), axis=0)
    assert [result['metrics']['psnr'], result['metrics']['ssim']] == pytest.approx(means, abs=1e-3)

    assert (result['benchmark'], result['degradation'], result['network'], result['checkpoint_sha256']) == (
        'Vid4', 'BI', 'bicubic', None)
    assert (result['params'], result['macs'], result['lr_size']) == (0, 0, [180, 320])
    assert result['seconds_per_frame'] > 0 and set(result['versions']) == {'basicsr_ssl', 'torch', 'basicsr', 'python'}
    protocol = result['protocol']
    assert protocol['partial'] and not protocol['published'] and not protocol['deviations']
    assert any('foliage' in sentence for sentence in protocol['missing'])
    assert cells_of(table)[-1]['network'] == 'bicubic (partial)' and 'is partial: 3 clips, 9 frames' in table
    assert table.strip() in capsys.readouterr().out
    assert 'WARNING: Vid4: only a part of the benchmark is there' in (folder / 'test.log').read_text()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_option_file_runs(data_root: Path, path: Path) -> None:
    """On one clip where the catalogue says; of identical frames, which bicubic upsampling restores exactly."""
    shutil.rmtree(data_root / 'Vid4')
    name, degradation = path.stem.rsplit('_', 1)
    benchmark = BENCHMARKS[name]
    clip = next(iter(benchmark.clips or {'00001/0001': 7}))
    for folder, side in ((benchmark.gt, 48), (benchmark.lr[degradation], 12)):
        frames = data_root / folder / clip
        frames.mkdir(parents=True)
        for i in range(7):
            cv2.imwrite(str(frames / f'im{i + 1}.png'), np.full((side, side, 3), 100, np.uint8))
    if benchmark.list_file:
        (data_root / benchmark.list_file).write_text(f'{clip}\n')

    assert vid4('bicubic', name=path.stem) == 0
    folder = Path('results', f'{path.stem}_bicubic_partial')
    result = result_of(folder.name)
    assert (result['benchmark'], result['degradation']) == (name, degradation)
    assert {key: values['frames'] for key, values in result['clips'].items()} == {clip: 1 if benchmark.flip_seq else 7}
    assert result['protocol']['deviations'] == [
        f'of {clip} a metric is infinite, since the output equals GT; the mean leaves it out']
    # infinite, which JSON does not have
    assert result['metrics']['psnr'] is None and ' inf |' in (folder / 'table.md').read_text()
    assert result['metrics']['ssim'] == pytest.approx(1)


def test_results_of_a_checkpoint(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label, checksum and costs are the file's; the result before is moved aside; frames are saved."""
    file = Path('experiments/tiny/finetune/models/net_g_latest.safetensors')
    net = tiny_net()
    basicsr_ssl.save_network(net, file)
    assert vid4(str(file), 'val:save_img=true', 'datasets:test:degradation=BD', name='Vid4_BD') == 0
    folder = Path('results/Vid4_BD_tiny_finetune_partial')
    first = result_of(folder.name)
    assert first['checkpoint_sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert first['params'] == sum(parameter.numel() for parameter in net.parameters())
    assert first['macs'] == basicsr_ssl.count_macs(net, (180, 320), flow=False)
    assert {key: first['protocol'][key] for key in BD} == BD
    assert len(list((folder / 'visualization/Vid4').glob('*/*.png'))) == 9
    assert vid4(str(file), name='Vid4_BD') == 0
    kept = [path for path in Path('results').iterdir() if path != folder]
    assert len(kept) == 1 and json.loads((kept[0] / 'results.json').read_text()) == first
    assert result_of(folder.name)['clips'] == first['clips']
    capsys.readouterr()
    assert main(['table', *map(str, Path('results').glob('*/results.json'))]) == 0
    assert 'of 2 results of tiny_finetune on Vid4 BD this is' in capsys.readouterr().out


def test_an_unreadable_network_leaves_the_result_before(data_root: Path) -> None:
    Path('net.pth').write_text('no network')
    assert vid4('bicubic') == 0
    before = result_of('Vid4_BI_bicubic_partial')
    assert vid4('net.pth', 'name=Vid4_BI_bicubic') == 1
    assert [path.name for path in Path('results').iterdir()] == ['Vid4_BI_bicubic_partial']
    assert result_of('Vid4_BI_bicubic_partial') == before


def test_several_test_sets_have_a_folder_each(data_root: Path, tmp_path: Path) -> None:
    option_file = tmp_path / 'both.yml'
    option_file.write_text(f'''
_base_: {ROOT}/options/test/Vid4_BI.yml
name: both_{{network}}
path: {{pretrain_network_g: bicubic}}
num_gpu: 0
datasets:
  test: {{name: whole, benchmark: null, clips: [city]}}
  test_2: {{name: Vid4, type: ClipFoldersTestDataset, benchmark: Vid4, degradation: BD, dataroot_gt: data/Vid4/GT}}
''')
    assert run(option_file, '--allow-partial') == 0
    folder = 'both_bicubic_partial'
    assert not Path('results', folder, 'results.json').exists()
    whole, vid4 = result_of(f'{folder}/whole'), result_of(f'{folder}/Vid4')
    # `benchmark` is the set's name where the option file names none, and nothing is claimed about it
    assert (whole['benchmark'], whole['degradation'], set(whole['clips'])) == ('whole', 'BI', {'city'})
    assert not any(whole['protocol'][key] for key in ('published', 'partial', 'deviations'))
    assert (vid4['benchmark'], vid4['degradation'], vid4['protocol']['partial']) == ('Vid4', 'BD', True)


# ---------------------------------------------------------------- real frames

@pytest.mark.parametrize(('name', 'psnr', 'ssim'), [
    ('Vid4_BI', 23.7836, .6347), pytest.param('Vid4_BD', 21.7933, .5427, marks=pytest.mark.slow)])
def test_bicubic_on_vid4(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, psnr: float,
                         ssim: float) -> None:
    """The published 23.78/.6347 for BI, 21.80 for BD; here with the digits that BasicSR's functions give."""
    (tmp_path / 'Vid4').mkdir()
    (tmp_path / 'Vid4/GT').symlink_to(test_data / 'vid4/GT')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert vid4('bicubic', name=name, partial=False) == 0
    result = result_of(f'{name}_bicubic')
    assert result['protocol']['published']
    assert (round(result['metrics']['psnr'], 4), round(result['metrics']['ssim'], 4)) == (psnr, ssim)
    assert {clip: values['frames'] for clip, values in result['clips'].items()} == {
        'calendar': 41, 'city': 34, 'foliage': 49, 'walk': 47}


def test_pieces_of_reds_and_vimeo90k(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for link, target in (('REDS/train_sharp/000', 'reds/GT/seq_3'),
                         ('REDS/train_sharp_bicubic/X4/000', 'reds/BIx4/seq_3'),
                         ('vimeo90k/vimeo_septuplet/sequences', 'vimeo90k/sequences')):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(test_data / target)
    septuplets = sorted(path.relative_to(test_data / 'vimeo90k/sequences').as_posix()
                        for path in (test_data / 'vimeo90k/sequences').glob('*/*'))
    (tmp_path / 'vimeo90k/vimeo_septuplet/sep_testlist.txt').write_text('\n'.join(septuplets))

    assert vid4('bicubic', name='REDS4_BI') == 0
    reds = result_of('REDS4_BI_bicubic_partial')
    assert {name: round(value, 4) for name, value in reds['metrics'].items()} == {
        'psnr': 25.0577, 'ssim': .7133, 'ssim_y': .7344}
    assert reds['clips']['000']['frames'] == 10 and reds['protocol']['lr'] == 'files'

    assert vid4('bicubic', name='Vimeo90K-T_BD') == 0
    vimeo = result_of('Vimeo90K-T_BD_bicubic_partial')
    assert {clip: values['frames'] for clip, values in vimeo['clips'].items()} == dict.fromkeys(septuplets, 1)
    assert any('7824' in sentence for sentence in vimeo['protocol']['missing'])


# ---------------------------------------------------------------- pictures

def test_the_front_is_what_no_other_point_beats() -> None:
    points = [Point(*values) for values in (('a', 3, 30), ('b', 1, 28), ('c', 2, 27), ('d', 2, 29), ('e', 3, 31),
                                            ('f', 9, 31))]
    slowly = [p for p in points if not any(
        q.cost <= p.cost and q.psnr >= p.psnr and (q.cost, q.psnr) != (p.cost, p.psnr) for q in points)]
    assert pareto_front(points) == sorted(slowly, key=lambda p: p.cost)
    assert [p.label for p in pareto_front(points)] == ['b', 'd', 'e']


def test_the_chart_shows_every_result_by_macs_and_by_ms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(benchmarks, 'pareto_chart', lambda path, rows: drawn.append((path, rows)))
    half: dict[str, Any] = {'lr_size': [90, 320], 'degradation': 'BI', 'checkpoint_sha256': 64 * 'a'}
    paths = [write_result(tmp_path, name, benchmark=name, metrics={'psnr': psnr, 'ssim': .9}, protocol={'scale': 2},
                          macs=5_000_000_000, seconds_per_frame=seconds, **half)
             for name, psnr, seconds in (('Set5', 37.0, 0.1), ('Set14', 33.0, 0.2))]
    assert main(['table', *paths, '--plot', 'front.png', '--published']) == 0
    assert '35.00/-' in capsys.readouterr().out  # the mean that CDISM's chart shows
    [(path, rows)] = drawn
    shown = {(title, name.split(' ')[0]): {p.label: (p.cost, p.psnr, p.own) for p in points}
             for title, panels in rows for name, points in panels}
    assert path == 'front.png' and list(shown) == [(title, name) for title in (
        'Set5 BIx2', 'Set14 BIx2', 'Mean of Set5 and Set14 BIx2') for name in ('G', 'ms')]
    assert shown['Set5 BIx2', 'ms'] == {'net': (100, 37, True)}
    # published ones are counted for 180x320, twice the pixels
    assert shown['Set5 BIx2', 'G']['net'] == (5, 37, True)
    assert shown['Set5 BIx2', 'G']['ASSLN x2'] == (pytest.approx(165.8 / 4 / 2), 38.12, False)
    assert shown['Mean of Set5 and Set14 BIx2', 'G']['EDSRmini x2'] == (pytest.approx(11.65 / 8), 35.44, False)
    other = write_result(tmp_path, 'other', benchmark='Set5', protocol={'scale': 2})
    assert main(['table', paths[0], other, '--plot', 'front.png']) == 1
    assert 'LR frames of different sizes, 90x320 and 180x320' in capsys.readouterr().err


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    paths = [write_result(tmp_path, 'a'), write_result(tmp_path, 'b', network='bicubic', checkpoint_sha256=None,
                                                       macs=0, metrics={'psnr': 23.7, 'ssim': .63})]
    benchmarks.plot_results(paths, tmp_path / 'front.png')
    picture: Any = cv2.imread(str(tmp_path / 'front.png'))
    assert picture.shape == (400, 1120, 3)
    with pytest.raises(ValueError, match='there is no PSNR to draw'):
        benchmarks.plot_results([write_result(tmp_path, 'c', metrics={'ssim': .8})], tmp_path / 'none.png')
