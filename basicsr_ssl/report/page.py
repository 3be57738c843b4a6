"""One self-contained HTML file of what runs have left behind: figures, pictures, and the course of training."""

from __future__ import annotations

import base64
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from basicsr_ssl.checkpoints.store import build_network, load_network
from basicsr_ssl.evaluation.result import Result, read_result
from basicsr_ssl.files import write_text
from basicsr_ssl.history import NAME as HISTORY
from basicsr_ssl.history import read_history
from basicsr_ssl.report.benchmarks import paper_table, plot_results
from basicsr_ssl.report.pictures import FOLDER, LIST, read_pictures
from basicsr_ssl.report.plots import curves_chart, gates_chart, kept_units_chart
from basicsr_ssl.report.summary import format_summary
from basicsr_ssl.report.tables import html_table
from basicsr_ssl.version import __version__

MOST_CLIPS = 6  # of which PSNR is drawn frame by frame
NETWORK = 'models/net_g_latest.safetensors'
ARCHIVED = '_archived_'  # in the names of folders of runs that were moved aside

STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid #ddd }
h3 { font-size: 1em; margin-bottom: .3em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .25em .7em; text-align: left; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
.number { text-align: right; font-variant-numeric: tabular-nums }
.note { color: #666; font-size: 12px; margin: .2em 0 }
img { max-width: 100% }
.panels { display: flex; flex-wrap: wrap; gap: 8px } .panels figure { margin: 0; font-size: 12px; text-align: center }
.panels img { width: 160px; image-rendering: pixelated }
.profile img { width: auto; height: 300px; min-width: 120px; image-rendering: pixelated }
.slider { position: relative; width: 512px; max-width: 100%; aspect-ratio: 1; margin: .5em 0; background: #eee }
.slider img { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated }
.slider img + img { clip-path: inset(0 0 0 var(--at, 50%)) }
.slider hr { position: absolute; inset: 0 auto 0 var(--at, 50%); width: 1px; margin: 0; border: 0; background: #fff }
.controls { display: flex; gap: 1em; width: 512px; max-width: 100% } .controls input { flex: 1 }
'''
# of every clip: two of its panels, one over the other from where the slider stands
SCRIPT = '''
for (const clip of document.querySelectorAll('.clip')) {
  const panels = [...clip.querySelectorAll('.panels img')], box = clip.querySelector('.slider')
  const [under, over] = box.querySelectorAll('img'), [left, right] = clip.querySelectorAll('select')
  const range = clip.querySelector('input')
  const show = () => {
    under.src = panels[left.value].src; over.src = panels[right.value].src
    box.style.setProperty('--at', range.value + '%')
  }
  for (const control of [left, right, range]) control.addEventListener('input', show)
  show()
}
'''


@dataclass
class Found:
    """What lies in the folders of a report, in the order of their paths.

    Attributes:
        results: files, and what they hold.
        summaries: rows of recipes' summaries, by the folder's name.
        pictures: see ``read_pictures``, by the folder's name.
        histories: see ``history``, by the stage's name.
        networks: files that stages have left, by the stage's name.
    """
    results: list[tuple[str, Result]] = field(default_factory=list)
    summaries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)


def write_page(folders: Sequence[str | os.PathLike], output: str | os.PathLike, published: bool = False) -> None:
    """Write the report of all that lies in folders: ``results.json`` of tests, reports of recipes, trainings.

    Table and Pareto charts of the tests; tables of recipes, crops with a slider, a column of pixels along time; PSNR
    frame by frame; kept units of compact networks; learning curves; histograms of gates along time. Parts of which
    there is nothing are left out. The file needs no other one, and no network.

    Args:
        folders: of ``results`` and ``experiments``, searched with all folders inside; or single ``results.json``.
        output: the HTML file.
        published: with the published rows.

    Raises:
        OSError: a file cannot be read, or the page not be written.
        ValueError: a file is not what its name says; or there is nothing to report.
    """
    found = find(folders)
    if not (found.results or found.summaries or found.histories or found.networks):
        raise ValueError(f'there is nothing to report in {", ".join(map(str, folders))}: give folders of results '
                         'or experiments, with results.json of `basicsr-ssl test`, a summary.json, or a '
                         f'{HISTORY} of a training')
    with tempfile.TemporaryDirectory() as scratch:
        def drawn(draw: Callable[..., None], *args: Any) -> str:
            picture = os.path.join(scratch, 'chart.png')
            draw(picture, *args)
            return f'<img src="{_embedded(picture)}" alt="">\n'
        parts = [(title, text) for title, text in (
            ('Tests', _tests(found, published, drawn)), ('Recipes', _summaries(found)), ('Crops', _crops(found)),
            ('Along time', _profiles(found)), ('Frame by frame', _frames(found, drawn)),
            ('Kept units', _kept(found, drawn)), ('Learning curves', _curves(found, drawn)),
            ('Gates', _gates(found, drawn))) if text]
    title = 'Report: ' + ', '.join(dict.fromkeys(os.path.basename(os.path.abspath(folder)) for folder in folders))
    body = ''.join(f'<h2>{name}</h2>\n{text}' for name, text in parts)
    write_text(output, f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
                       f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
                       f'<body><h1>{escape(title)}</h1>\n{body}<p class="note">basicsr_ssl {__version__}</p>\n'
                       f'<script>{SCRIPT}</script></body></html>\n')


def find(folders: Sequence[str | os.PathLike]) -> Found:
    """What lies in the folders.

    Runs that were moved aside are left out.

    Raises:
        OSError, ValueError: see ``write_page``.
    """
    found = Found()
    for folder in (Path(folder) for folder in folders):
        if not folder.exists():
            raise FileNotFoundError(f'{folder} does not exist: give folders of results or experiments')
        base = folder.parent if folder.is_dir() else folder
        for path in [folder] if folder.is_file() else sorted(folder.rglob('*')):
            name = os.path.relpath(path.parent, base)
            if ARCHIVED in name:
                continue
            if path.name == 'results.json':
                found.results.append((str(path), read_result(path)))
            elif path.name == 'summary.json':
                found.summaries[name] = _rows(path)
            elif path.name == HISTORY:
                found.histories[name] = read_history(path.parent)
            elif path.parts[-2:] == (FOLDER, LIST):
                told = read_pictures(path.parent.parent)
                assert told is not None
                found.pictures[os.path.dirname(name) or name] = told
            elif path.parts[-2:] == tuple(NETWORK.split('/')):
                found.networks[os.path.dirname(name) or name] = str(path)
    return found


def kept_units(net: Any) -> dict[str, dict[str, int]]:
    """Group name to units kept and units of the dense network."""
    full: Any = build_network(replace(net.spec, widths={}, index={}))
    return {group.name: {'kept': group.size, 'size': whole.size} for group, whole in zip(net.groups, full.groups)}


# ---------------------------------------------------------------- parts

Drawn = Callable[..., str]  # draws a chart by the function given first, and says it in HTML


def _tests(found: Found, published: bool, drawn: Drawn) -> str:
    if not found.results:
        return ''
    paths = [path for path, _ in found.results]
    text = paper_table(paths, 'html', published)
    comparable = len({tuple(result.lr_size) for _, result in found.results}) == 1
    if comparable and any(result.metrics.get('psnr') for _, result in found.results):
        text += drawn(lambda picture: plot_results(paths, picture, published))
    return text


def _summaries(found: Found) -> str:
    text = ''
    for name, rows in found.summaries.items():
        table, *notes = format_summary(rows).split('\n\n')
        head, _, *lines = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
        text += f'<h3>{escape(name)}</h3>\n' + html_table(head, lines)
        text += ''.join(f'<p class="note">{escape(note)}</p>\n' for note in '\n'.join(notes).splitlines())
    return text


def _crops(found: Found) -> str:
    text = ''
    for name, told in found.pictures.items():
        for row in told['crops']:
            labels = [panel['label'] for panel in row]
            left, right = (_options(labels, chosen) for chosen in (min(1, len(row) - 1), max(0, len(row) - 2)))
            text += (f'<div class="clip"><h3>{escape(name)}: {escape(row[0]["caption"])}</h3>\n'
                     '<div class="slider"><img alt=""><img alt=""><hr></div>\n'
                     f'<div class="controls"><select>{left}</select><input type="range" value="50">'
                     f'<select>{right}</select></div>\n{_panels(row)}</div>\n')
    return text


def _profiles(found: Found) -> str:
    text = ''
    for name, told in found.pictures.items():
        if told['profile']:
            text += f'<h3>{escape(name)}</h3>\n' + _panels(told['profile'], 'panels profile')
    if text:
        text += ('<p class="note">The middle column of pixels of the first clip, one frame beside the other: flicker '
                 'shows as stripes.</p>\n')
    return text


def _frames(found: Found, drawn: Drawn) -> str:
    charts: dict[str, dict[str, dict[str, tuple[list[int], list[float]]]]] = {}
    for _, result in found.results:
        for clip, values in list(result.frames.items())[:MOST_CLIPS]:
            psnr = next((values[metric] for metric in values if metric.startswith('psnr')), [])
            if len(psnr) > 1:
                lines = charts.setdefault(result.benchmark, {}).setdefault(clip, {})
                lines[result.network] = list(range(len(psnr))), _numbers(psnr)
    return ''.join(f'<h3>{escape(benchmark)}</h3>\n' + drawn(curves_chart, clips, 'frame', 'PSNR (dB)')
                   for benchmark, clips in charts.items())


def _kept(found: Found, drawn: Drawn) -> str:
    charts: dict[str, tuple[list[str], dict[str, dict[str, int]]]] = {}
    for name, file in found.networks.items():
        net: Any = load_network(file)
        if net.spec.form == 'compact':  # of those before and after finetuning one chart is enough
            units = kept_units(net)
            charts.setdefault(json.dumps(units), ([], units))[0].append(name)
    return ''.join(f'<h3>{escape(", ".join(names))}</h3>\n' + drawn(kept_units_chart, {'groups': units})
                   for names, units in charts.values())


def _curves(found: Found, drawn: Drawn) -> str:
    losses, scores = {}, {}
    for name, entries in found.histories.items():
        seen = [entry for entry in entries if 'losses' in entry]
        if seen:
            losses.setdefault('loss', {})[name] = ([entry['iter'] for entry in seen],
                                                   _numbers([entry['losses'].get('l_pix') for entry in seen]))
        for entry in entries:
            for test_set, metrics in entry.get('metrics', {}).items():
                for metric in [metric for metric in metrics if metric.startswith(('psnr', 'epe'))][:1]:
                    x, y = scores.setdefault(f'{test_set}, {metric}', {}).setdefault(name, ([], []))
                    x.append(entry['iter'])
                    y.extend(_numbers([metrics[metric]]))
    return ''.join(drawn(curves_chart, panels, 'iteration', up, log) for panels, up, log in (
        (losses, 'reconstruction loss', True), (scores, 'validation', False)) if panels)


def _gates(found: Found, drawn: Drawn) -> str:
    text = ''
    for name, entries in found.histories.items():
        panels: dict[str, list[tuple[int, float, list[int]]]] = {}
        for entry in entries:
            for which in ('all', 'selected'):
                if which in entry.get('gates', {}):
                    title = 'all gates' if which == 'all' else 'of the units that go'
                    panels.setdefault(title, []).append((entry['iter'], entry['gates']['top'], entry['gates'][which]))
        if panels:
            text += f'<h3>{escape(name)}</h3>\n' + drawn(gates_chart, panels)
    return text


# ---------------------------------------------------------------- pieces

def _panels(panels: Sequence[Mapping[str, str]], kind: str = 'panels') -> str:
    return f'<div class="{kind}">' + ''.join(
        f'<figure><img src="{_embedded(panel["file"])}" alt=""><figcaption>{escape(panel["label"])}<br>'
        f'{escape(panel["caption"])}</figcaption></figure>' for panel in panels) + '</div>\n'


def _options(labels: Sequence[str], chosen: int) -> str:
    return ''.join(f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(label)}</option>'
                   for i, label in enumerate(labels))


def _embedded(picture: str) -> str:
    return 'data:image/png;base64,' + base64.b64encode(Path(picture).read_bytes()).decode()


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding='utf-8'))
        return [{'network': row['network'], **row} for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path} is no summary of a recipe ({error!r}): leave it out, or run the recipe again'
                         ) from error
