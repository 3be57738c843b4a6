"""The course of trainings on disk, and the one HTML file that shows it with figures and pictures."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from nets import tiny_net
from PIL import Image
from tiny_runs import options, write_clips, write_options
from torch import Tensor

from basicsr_ssl import load_network, prune_network, save_network
from basicsr_ssl.archs import BicubicUpsampler
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.cli import main
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.evaluation.inference import as_image
from basicsr_ssl.history import NAME, History, read_history
from basicsr_ssl.report import plots
from basicsr_ssl.report.page import kept_units, write_page
from basicsr_ssl.report.pictures import Pictures, make_pictures, read_pictures, save_pictures
from basicsr_ssl.report.summary import write_summary

SPARSE: dict[str, Any] = {'model_type': 'SparsityLearningModel', 'pruning': {'ratio': 0.5, 'score': 'l1'},
                          'sparsity': {'interval': 1, 'delta': 0.01}, 'train': {'ema_decay': 0}, 'val': {'val_freq': 4}}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path / 'clips')


def train(folder: Path, opt: dict[str, Any], *arguments: str) -> Path:
    assert main(['train', '-opt', str(write_options(folder / 'run.yml', opt)), *arguments]) == 0
    return folder / 'experiments/run'


# ---- history


def test_history_of_a_training(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and rates of every line of the log, histograms of the gates as they are, metrics as the file has them."""
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path, options(clips, **SPARSE))
    entries = read_history(run)
    assert [(entry['iter'], *sorted(set(entry) - {'iter'})) for entry in entries] == [
        *((n, 'gates', 'losses', 'rates') for n in (2, 4)), (4, 'metrics'),
        *((n, 'gates', 'losses', 'rates') for n in (6, 8)), (8, 'metrics')]
    log = (run / 'train.log').read_text()
    for entry in entries:
        if 'losses' in entry:
            assert f'l_pix: {entry["losses"]["l_pix"]:.4e}' in log
            assert entry['losses']['penalty'] == pytest.approx(0.01 * entry['iter'])
            assert set(entry['rates']) == {'net', 'gates'}
    latest = run / 'models/net_g_latest.safetensors'
    assert entries[-1]['metrics'] == read_metadata(latest)['metrics']

    net: Any = load_network(latest)
    parameters = dict(net.named_parameters())
    kept = read_metadata(latest)['selection']['kept']
    every, gone = [], []
    for group in net.groups:
        for gate in group.gates:
            values = parameters[gate].detach().abs().numpy()
            every.append(values)
            gone.append(np.delete(values, kept[group.name]))
    told = entries[-2]['gates']
    assert told['top'] == pytest.approx(np.concatenate(every).max())
    for which, values in (('all', every), ('selected', gone)):
        expected, _ = np.histogram(np.concatenate(values), 40, (0, told['top']))
        assert told[which] == expected.tolist()


def test_a_resumed_history_is_that_of_one_go(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path, options(clips, **SPARSE))
    whole = read_history(run)
    (run / 'training_states/8.state').unlink()
    with (run / NAME).open('a') as stream:  # as if it had gone on, and the disk had been full
        stream.write('{"iter": 9, "losses": {}}\n{"iter": 10, "los')
    train(tmp_path, options(clips, **SPARSE), '--auto_resume')
    assert read_history(run) == whole
    train(tmp_path, options(clips, **SPARSE))  # anew: the folder was moved aside
    assert read_history(run) == whole


def test_a_full_disk_does_not_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, 0)
    said: list[str] = []
    monkeypatch.setattr('basicsr_ssl.history.get_root_logger', lambda: SimpleNamespace(warning=said.append))
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to('/dev/full')
    history.add(1, losses={})
    history.add(2, losses={})
    assert len(said) == 1 and 'history.jsonl cannot be written' in said[0] and 'goes on without it' in said[0]


def test_other_files_of_that_name_are_refused(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    history = History(tmp_path, 0)
    history.add(1, losses={'l_pix': math.nan})
    assert read_history(tmp_path) == [{'iter': 1, 'losses': {'l_pix': None}}]
    for line in ('{"losses": {}}\n', 'text\n', '[1]\n'):
        (tmp_path / NAME).write_text('{"iter": 1}\n' + line)
        with pytest.raises(ValueError, match=r'history\.jsonl, line 2 is not of a training'):
            read_history(tmp_path)


# ---- pictures


class Shifted(BicubicUpsampler):
    """Bicubic upsampling, and a fifth of white."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.2


def test_pictures_show_what_networks_make(clips: Path, tmp_path: Path) -> None:
    dataset = ClipFoldersTestDataset({'name': 'held', 'type': 'ClipFoldersTestDataset', 'dataroot_gt': str(clips),
                                      'degradation': 'BI', 'phase': 'test'})
    nets = {'bicubic': BicubicUpsampler(4).eval(), 'x': Shifted(4).eval()}
    pictures = make_pictures(nets, dataset, torch.device('cpu'), 6)
    assert len(pictures.crops) == 3
    for index, row in enumerate(pictures.crops):
        item = dataset[index]
        with torch.no_grad():
            made = {label: as_image(net(item['lq'][2][None].float() / 255)[0]) for label, net in nets.items()}
        gt = as_image(item['gt'][2])
        assert [(label, caption) for label, _, caption in row] == [
            ('LR', item['folder']), *((label, f'{calculate_psnr(image, gt, crop_border=0):.2f} dB')
                                      for label, image in made.items()), ('GT', '')]
        # the place is where the first network but bicubic gains most: found by trying all
        old, new, truth = (image.astype(int) for image in (made['bicubic'], made['x'], gt))
        gain = ((old - truth)**2 - (new - truth)**2).sum(2)
        places = [(y, x) for y in range(0, 25, 4) for x in range(0, 41, 4)]
        top, left = max(places, key=lambda at: gain[at[0]:at[0] + 24, at[1]:at[1] + 24].sum())
        for (label, image, _), whole in zip(row[1:], (*made.values(), gt)):
            assert np.array_equal(image, whole[top:top + 24, left:left + 24, ::-1]), label
        small = as_image(item['lq'][2])[top // 4:top // 4 + 6, left // 4:left // 4 + 6, ::-1]
        assert np.array_equal(row[0][1], small)
    item = dataset[0]
    for label, image, _ in pictures.profile:
        frames = [as_image(item['gt'][i]) if label == 'GT' else as_image(nets[label](
            item['lq'][i][None].float() / 255)[0].detach()) for i in range(4)]
        assert np.array_equal(image, np.stack([frame[:, 32, ::-1] for frame in frames], axis=1))
    assert [label for label, _, _ in pictures.profile] == ['bicubic', 'x', 'GT']

    save_pictures(tmp_path, pictures)
    told = read_pictures(tmp_path)
    assert told is not None and len(told['crops']) == 3
    for row, saved in zip([*pictures.crops, pictures.profile], [*told['crops'], told['profile']]):
        for (label, image, caption), panel in zip(row, saved, strict=True):
            assert (panel['label'], panel['caption']) == (label, caption)
            assert np.array_equal(np.asarray(Image.open(panel['file'])), image)
    assert read_pictures(tmp_path / 'nowhere') is None
    (tmp_path / 'pictures/pictures.json').write_text('{"crops": [[{}]]}')
    with pytest.raises(ValueError, match=r'pictures\.json is not what a report writes'):
        read_pictures(tmp_path)


# ---- charts


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    figures: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, '_save', lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def test_curves_have_the_points_and_a_colour_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    panels = {'a': {'one': ([1, 2], [3.0, math.nan]), 'two': ([1], [4.0])}, 'b': {'two': ([5, 6], [7.0, 8.0])}}
    plots.curves_chart(tmp_path / 'chart.png', panels, 'iteration', 'PSNR (dB)')
    first, second = figures[0].axes
    assert [(axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) for axes in (first, second)] == [
        (name, 'iteration', 'PSNR (dB)') for name in 'ab']
    one, two = first.lines
    again, = second.lines
    assert one.get_xydata()[0].tolist() == [1, 3] and np.isnan(one.get_xydata()[1, 1])
    assert again.get_xydata().tolist() == [[5, 7], [6, 8]]
    assert two.get_color() == again.get_color() != one.get_color()
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ['one', 'two']
    assert first.get_yscale() == 'linear'
    plots.curves_chart(tmp_path / 'chart.png', panels, '', '', True)
    assert figures[1].axes[0].get_yscale() == 'log'
    with pytest.raises(ValueError, match='no lines to draw'):
        plots.curves_chart(tmp_path / 'none.png', {'a': {}}, '', '')


def test_histograms_stand_along_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    plots.gates_chart(tmp_path / 'chart.png', {'all': [(10, 2.0, [3, 0]), (20, 1.0, [1, 2])]})
    axes, = figures[0].axes
    early, late = axes.collections
    assert early.get_array().ravel().tolist() == pytest.approx([math.log(4), 0])
    assert late.get_array().ravel().tolist() == pytest.approx([math.log(2), math.log(3)])
    assert early.get_coordinates()[..., 0].tolist() == [[0, 10]] * 3
    assert late.get_coordinates()[..., 0].tolist() == [[10, 20]] * 3
    assert late.get_coordinates()[:, 0, 1].tolist() == [0, 0.5, 1]
    assert early.get_clim() == late.get_clim() == (0, pytest.approx(math.log(4)))
    with pytest.raises(ValueError, match='no histograms to draw'):
        plots.gates_chart(tmp_path / 'none.png', {'all': []})


# ---- the page


class Page(HTMLParser):
    """Headings, cells of all tables, pictures, and what is named outside of the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        for key, value in attrs:
            if key == 'src' and value and value.startswith('data:image/png;base64,'):
                picture = Image.open(io.BytesIO(base64.b64decode(value.partition(',')[2])))
                self.pictures.append(np.asarray(picture.convert('RGB')))
            elif key in ('src', 'href', 'srcset', 'action'):
                self.outside.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ('h1', 'h2', 'h3'):
            self.headings.append(data)
        if self.open and self.open[-1] in ('td', 'th'):
            self.cells.append(data)


def test_a_page_of_all_there_is(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, options(clips, **SPARSE))
    compact: Any = prune_network(tiny_net(), 0.5, score='l1')
    save_network(compact, 'experiments/<b>/models/net_g_latest.safetensors')
    opt = options(clips, name='test', path={'pretrain_network_g': 'experiments/<b>/models/net_g_latest.safetensors'})
    del opt['network_g'], opt['train'], opt['datasets']['train']
    assert main(['test', '-opt', str(write_options(tmp_path / 'test.yml', opt))]) == 0
    result = json.loads(Path('results/test/results.json').read_text())
    for clip, frames in result['frames'].items():
        assert len(frames['psnr']) == 4 and len(frames['ssim']) == 4
        for metric, values in frames.items():
            assert result['clips'][clip][metric] == pytest.approx(sum(values) / 4)
    write_summary('results/recipe', [{'network': 'dense <i>', 'params': 5, 'macs': 7, 'ms_per_frame': 1.5,
                                      'psnr': 31.4159, 'ssim': 0.9}])
    rng = np.random.default_rng(0)
    crops = [[(label, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), caption)
              for label, caption in (('LR', 'clip <u>'), ('a', '30.00 dB'), ('GT', ''))]]
    profile = [('a', rng.integers(0, 256, (8, 3, 3), dtype=np.uint8), '')]
    save_pictures('results/recipe', Pictures(crops, profile))

    assert main(['report', 'results', 'experiments', '--output', 'out/page.html']) == 0
    page = Page(Path('out/page.html'))
    assert page.headings == [
        'Report: results, experiments', 'Tests', 'Recipes', 'results/recipe', 'Crops', 'results/recipe: clip <u>',
        'Along time', 'results/recipe', 'Frame by frame', 'held', 'Kept units', 'experiments/<b>', 'Learning curves',
        'Gates', 'experiments/run']
    assert page.outside == [] and 'http' not in page.text.replace('http-equiv', '')
    for cell in ('b', f'{result["metrics"]["psnr"]:.2f}/{result["metrics"]["ssim"]:.4f}'.replace('/0.', '/.'),
                 'dense <i>', '31.42', '0.9000', '1.50'):
        assert cell in page.cells, cell
    found = [picture.shape for picture in page.pictures]
    assert len(found) == 1 + 3 + 1 + 1 + 1 + 2 + 1  # Pareto, crops, profile, frames, kept, curves, gates
    for picture, (_, image, _) in zip(page.pictures[1:5], [*crops[0], *profile]):
        assert np.array_equal(picture, image)
    assert all(picture.std() > 1 for picture in page.pictures)

    write_page(['results/test'], 'test.html', published=True)
    test = Page(Path('test.html'))
    assert test.headings == ['Report: test', 'Tests', 'Frame by frame', 'held'] and 'BasicVSR' in test.cells
    write_page(['results/test/results.json'], 'one.html')
    assert Page(Path('one.html')).headings == ['Report: results.json', 'Tests', 'Frame by frame', 'held']


def test_what_is_drawn_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves by stage and test set, gates by kind; stages without them are left out."""
    calls: list[tuple[str, Any]] = []
    for name in ('curves_chart', 'gates_chart', 'kept_units_chart'):
        def record(path: str, *args: Any, name: str = name) -> None:
            calls.append((name, args))
            Image.new('RGB', (4, 4)).save(path, 'PNG')
        monkeypatch.setattr(f'basicsr_ssl.report.page.{name}', record)
    first, second = History(tmp_path / 'e/a', 0), History(tmp_path / 'e/b', 0)
    first.add(2, losses={'l_pix': 0.5, 'penalty': 1.0}, rates={}, gates={'top': 1.5, 'all': [1, 2]})
    first.add(4, losses={'l_pix': math.inf}, rates={}, gates={'top': 1.0, 'all': [3, 0], 'selected': [1, 0]})
    first.add(4, metrics={'Vid4': {'psnr': 24.5, 'ssim': 0.7}, 'x': {'ssim': 0.5}})
    second.add(6, metrics={'Vid4': {'psnr': 25.5}, 'motion': {'epe': 1.5}})
    compact: Any = prune_network(tiny_net(), 0.5, score='l1')
    save_network(compact, tmp_path / 'e/b/models/net_g_latest.safetensors')
    save_network(compact, tmp_path / 'e/c/models/net_g_latest.safetensors')
    save_network(tiny_net(), tmp_path / 'e/a/models/net_g_latest.safetensors')
    History(tmp_path / 'e/a_archived_20260101_000000', 0).add(3, metrics={'Vid4': {'psnr': 1.0}})
    write_page([tmp_path / 'e'], tmp_path / 'page.html')
    nan = pytest.approx(math.nan, nan_ok=True)
    assert calls == [
        ('kept_units_chart', ({'groups': kept_units(compact)},)),
        ('curves_chart', ({'loss': {'e/a': ([2, 4], [0.5, nan])}}, 'iteration', 'reconstruction loss', True)),
        ('curves_chart', ({'Vid4, psnr': {'e/a': ([4], [24.5]), 'e/b': ([6], [25.5])},
                           'motion, epe': {'e/b': ([6], [1.5])}}, 'iteration', 'validation', False)),
        ('gates_chart', ({'all gates': [(2, 1.5, [1, 2]), (4, 1.0, [3, 0])],
                          'of the units that go': [(4, 1.0, [1, 0])]},))]
    dense: Any = tiny_net()
    assert kept_units(compact) == {group.name: {'kept': group.size, 'size': whole.size}
                                   for group, whole in zip(compact.groups, dense.groups)}


def test_nothing_to_report(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    assert main(['report', 'empty']) == 1
    assert 'there is nothing to report in empty: give folders of results or experiments' in capsys.readouterr().err
    assert main(['report', 'nowhere']) == 1
    assert 'nowhere does not exist' in capsys.readouterr().err
    Path('empty/summary.json').write_text('[{"psnr": 3}]')
    assert main(['report', 'empty']) == 1
    assert 'summary.json is no summary of a recipe' in capsys.readouterr().err
    assert not Path('report.html').exists()
