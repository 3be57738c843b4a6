"""Results of tests as tables: one benchmark beside its published figures, and the papers' table of all benchmarks."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from basicsr_ssl.data.image_catalog import ALL_BENCHMARKS, IMAGE_BENCHMARKS
from basicsr_ssl.evaluation.protocol import how_measured, quoted
from basicsr_ssl.evaluation.result import COSTS, Result, read_result
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.report.plots import Point, pareto_chart
from basicsr_ssl.report.published import (
    CHART,
    IMAGE_TESTS,
    PUBLISHED,
    PUBLISHED_IMAGES,
    SOURCES,
    TESTS,
    Published,
    Test,
)
from basicsr_ssl.report.tables import Column, format_table, html_table

OWN = 'own test'
_SCORES = 'PSNR in dB / SSIM'


class Cell(NamedTuple):
    """PSNR in dB and SSIM, either may be None; a mark beside them; what is to be known about them, or None; seconds per
    LR frame, or None."""
    psnr: float | None
    ssim: float | None
    mark: str = ''
    note: str | None = None
    seconds: float | None = None


class Line(NamedTuple):
    """A method in the papers' table: where it comes from, its costs (None where unknown), its figures."""
    method: str
    source: str
    costs: Mapping[str, float | None]
    cells: Mapping[Test, Cell]


def benchmark_table(result: Result) -> str:
    """One result in Markdown, below the published figures of its benchmark.

    Args:
        result: see ``evaluation.result``.

    Returns:
        Table and notes; lines joined by newlines, without one at the end.
    """
    test, protocol = _test(result), result.protocol
    rows: list[dict[str, Any]] = [
        {'network': row.method, 'source': row.source, **_published_costs(row),
         'psnr': row.scores[test][0], 'ssim': row.scores[test][1]}
        for row in PUBLISHED + PUBLISHED_IMAGES if test in row.scores]
    rows.append({'network': result.network + _mark(protocol), 'source': OWN, **_costs(result), **result.metrics})
    columns: list[Column] = [('network', 'network', 's'), ('source', 'source', 's'), *_COST_COLUMNS]
    columns += [(name, _metric_header(name, result), '.4f' if name.startswith('ssim') else '.2f')
                for name in dict.fromkeys(('psnr', 'ssim', *result.metrics))]
    columns = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    doubts = [row.doubts[test] for row in PUBLISHED if test in row.doubts]
    notes = [how_measured(protocol), _cost_note(result.lr_size),
             f'{result.seconds_per_frame:.3g} seconds per LR frame on {result.device}, metrics not counted',
             *_reservations(result, quote=True), *doubts, *_source_notes({row['source'] for row in rows})]
    return '\n'.join([f'{_title(test)}:', '', format_table(rows, columns), '', *_listed(notes)])


def paper_table(paths: Sequence[str | os.PathLike], form: str = 'markdown', published: bool = False) -> str:
    """The papers' table: methods as rows, benchmarks as columns.

    Results of one network file, told by its sha256, make one row. Of several results of it on one benchmark that by the
    published protocol counts, else the newest; a note says so.

    Args:
        paths: ``results.json`` files.
        form: ``'markdown'``, ``'csv'`` (figures unrounded), ``'latex'`` (a plain tabular, and the notes below it) or
            ``'html'`` (a part of a page).
        published: begin with the published rows, of video, of single images or both as the results are.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no result; an unknown ``form``.
    """
    if form not in _WRITERS:
        raise ValueError(f'there is no table format {form!r}; there are {", ".join(_WRITERS)}')
    results = [(os.fspath(path), read_result(path)) for path in paths]
    own = _own_lines(results)
    if published:
        own = [_with_mean(line) for line in own]
    lines = [_published_line(row) for row in _published_beside(own) if published] + own
    measured = {test for line in lines for test in line.cells}
    known = (*TESTS, *IMAGE_TESTS, CHART)
    tests = [test for test in known if test in measured]
    tests += list(dict.fromkeys(test for line in lines for test in line.cells if test not in known))
    sizes = {tuple(result.lr_size) for _, result in results}
    notes = [_cost_note(size) for size in sorted(sizes)]
    notes += _source_notes({line.source for line in lines})
    return _WRITERS[form](lines, tests, notes)


def _published_beside(lines: Sequence[Line]) -> tuple[Published, ...]:
    """The rows of single images if only those were tested, of video if none was, else both."""
    images = {test in (*IMAGE_TESTS, CHART) for line in lines for test in line.cells}
    return (PUBLISHED if images != {True} else ()) + (PUBLISHED_IMAGES if True in images else ())


def plot_results(paths: Sequence[str | os.PathLike], picture: str | os.PathLike, published: bool = False) -> None:
    """Draw PSNR against MACs, and against milliseconds, for every test of the results; with the Pareto fronts.

    Which result counts of several is as in ``paper_table``.

    Args:
        paths: ``results.json`` files.
        picture: PNG file.
        published: also the published rows, whose milliseconds are not known.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file is no result; the results count MACs for LR frames of different sizes, or have no PSNR.
    """
    results = [(os.fspath(path), read_result(path)) for path in paths]
    sizes = {tuple(result.lr_size) for _, result in results}
    if len(sizes) > 1:
        raise ValueError('the results count MACs for LR frames of different sizes, '
                         f'{" and ".join(f"{h}x{w}" for h, w in sorted(sizes))}: give those of one')
    h, w = sizes.pop()
    own = _own_lines(results)
    if published:
        own = [_with_mean(line) for line in own]
    share = h * w / (LR_SIZE[0] * LR_SIZE[1])  # for which the published ones are counted
    points = [(line, share if line.source != OWN else 1)
              for line in [*own, *(_published_line(row) for row in _published_beside(own) if published)]]
    devices = ' and '.join(sorted({result.device for _, result in results}))
    rows = []
    for test in dict.fromkeys(test for line in own for test in line.cells):
        macs, seconds = [], []
        for line, factor in points:
            cell = line.cells.get(test)
            if cell is None or cell.psnr is None:
                continue
            label, count = line.method + cell.mark, line.costs.get('macs')
            if count:
                macs.append(Point(label, count * factor / 1e9, cell.psnr, line.source == OWN))
            if cell.seconds and math.isfinite(cell.seconds):
                seconds.append(Point(label, cell.seconds * 1000, cell.psnr, True))
        if macs or seconds:
            rows.append((_title(test), ((f'G MACs per LR frame of {h}x{w}, without the flow network', macs),
                                        (f'ms per LR frame of the test, on {devices}', seconds))))
    pareto_chart(picture, rows)


def _with_mean(line: Line) -> Line:
    """With the mean that CDISM's chart shows, if both of its parts were measured."""
    parts = [line.cells.get((benchmark, CHART[1])) for benchmark in ('Set5', 'Set14')]
    psnr = [cell.psnr for cell in parts if cell and cell.psnr is not None]
    if len(psnr) < 2:
        return line
    marks = ''.join(dict.fromkeys(cell.mark for cell in parts if cell))
    return line._replace(cells={**line.cells, CHART: Cell(sum(psnr) / 2, None, marks)})


def _own_lines(results: Iterable[tuple[str, Result]]) -> list[Line]:
    """The rows of the papers' table that these results, by file, make; in their order."""
    by_network: dict[str, list[tuple[str, Result]]] = {}
    for path, result in results:
        by_network.setdefault(result.checkpoint_sha256 or result.network, []).append((path, result))
    labels = [named[0][1].network for named in by_network.values()]
    lines = []
    for key, named in by_network.items():
        result = named[0][1]
        # two files of one name
        label = result.network + (f' ({key[:8]})' if labels.count(result.network) > 1 else '')
        by_test: dict[Test, list[tuple[str, Result]]] = {}
        for path, result in named:
            by_test.setdefault(_test(result), []).append((path, result))
        lines.append(Line(label, OWN, _costs(result), {test: _cell(found) for test, found in by_test.items()}))
    return lines


def _cell(found: list[tuple[str, Result]]) -> Cell:
    """The result that counts of several of one network on one test."""
    path, result = max(found, key=lambda pair: (pair[1].protocol.get('published', False), pair[1].time))
    notes = _reservations(result)
    if len(found) > 1:
        notes.append(f'of {len(found)} results of {result.network} on {_title(_test(result))} this is {path}')
    metrics = result.metrics
    return Cell(metrics.get('psnr'), metrics.get('ssim'), _mark(result.protocol), '; '.join(notes) or None,
                result.seconds_per_frame)


def _published_line(row: Published) -> Line:
    return Line(row.method, row.source, _published_costs(row),
                {test: Cell(*scores, note=row.doubts.get(test)) for test, scores in row.scores.items()})


def _published_costs(row: Published) -> dict[str, float | None]:
    return {'params': row.params, 'params_with_flow': row.params_with_flow, 'macs': row.macs, 'macs_with_flow': None}


def _costs(result: Result) -> dict[str, float | None]:
    return {key: cost or None for key, cost in result.costs().items()}  # bicubic has none


# ---------------------------------------------------------------- words

def _test(result: Result) -> Test:
    scale = f'x{result.protocol["scale"]}' if result.benchmark in IMAGE_BENCHMARKS else ''
    return result.benchmark, f'{result.degradation or ""}{scale}'


def _title(test: Test) -> str:
    return ' '.join(filter(None, test))


def _mark(protocol: Mapping[str, Any]) -> str:
    """What stands beside a figure that is not by the benchmark's protocol."""
    words = [word for word, key in (('partial', 'partial'), ('deviates', 'deviations')) if protocol.get(key)]
    return f' ({", ".join(words)})' if words else ''


def _reservations(result: Result, quote: bool = False) -> list[str]:
    """Why a result cannot be compared with published ones, a sentence each; ``quote`` what a partial one lacks."""
    protocol, clips = result.protocol, result.clips
    what, reservations = f'{result.network} on {_title(_test(result))}', []
    if protocol.get('partial'):
        frames = sum(int(clip['frames'] or 0) for clip in clips.values())
        reservations.append(f'{what} is partial: {_count(len(clips), "clip")}, {_count(frames, "frame")}'
                            + (f'. {quoted(protocol.get("missing") or [])}' if quote else ''))
    if protocol.get('deviations'):
        reservations.append(f'{what} deviates from the published protocol: {"; ".join(protocol["deviations"])}')
    return reservations


def _cost_note(lr_size: Sequence[int]) -> str:
    return ('params and MACs without the flow network, "+flow" with it; MACs per frame of '
            f'{lr_size[0]}x{lr_size[1]} LR pixels')


def _source_notes(sources: set[str]) -> list[str]:
    return [f'{source}: {text}' for source, text in SOURCES.items() if source in sources]


def _metric_header(name: str, result: Result) -> str:
    channel = 'Y' if result.protocol['measured'].get(name, {}).get('test_y_channel') else 'RGB'
    return f'{name.split("_")[0].upper()} ({channel})' if name.startswith(('psnr', 'ssim')) else name


def _count(number: int, word: str) -> str:
    return f'{number} {word}{"" if number == 1 else "s"}'


def _listed(notes: Iterable[str]) -> list[str]:
    return [f'- {_sentence(note)}' for note in notes]


def _sentence(text: str) -> str:
    return text.rstrip('.') + '.'


def _scaled(unit: float, letter: str) -> Callable[[float], str]:
    return lambda number: f'{number / unit:.4g}{letter}'


_COST_COLUMNS: list[Column] = [
    ('params', 'params', _scaled(1e6, 'M')), ('params_with_flow', 'params+flow', _scaled(1e6, 'M')),
    ('macs', 'MACs', _scaled(1e9, 'G')), ('macs_with_flow', 'MACs+flow', _scaled(1e9, 'G'))]


# ---------------------------------------------------------------- forms of the papers' table

def _texts(lines: Sequence[Line], tests: Sequence[Test], cite: Callable[[int], str]
           ) -> tuple[list[str], list[list[str]], list[str]]:
    """Headers, cells and numbered notes as text; ``cite`` gives the mark in a cell that leads to a note."""
    headers = ['method', 'source', *(header for _, header, _ in _COST_COLUMNS), *map(_header, tests)]
    notes: dict[str, int] = {}
    rows = []
    for line in lines:
        row = [line.method, line.source]
        for key, _, form in _COST_COLUMNS:
            value = line.costs.get(key)
            row.append('-' if value is None else form(value) if callable(form) else format(value, form))
        for test in tests:
            cell = line.cells.get(test)
            mark = cite(notes.setdefault(cell.note, len(notes) + 1)) if cell and cell.note else ''
            row.append('-' if cell is None else f'{_score(cell)}{cell.mark}{mark}')
        rows.append(row)
    return headers, rows, list(notes)


def _header(test: Test) -> str:
    channel = f' ({ALL_BENCHMARKS[test[0]].channel})' if test[0] in ALL_BENCHMARKS else ''
    return _title(test) + channel


def _score(cell: Cell) -> str:
    """``23.78/.6347``, as the papers write it."""
    psnr = '-' if cell.psnr is None else f'{cell.psnr:.2f}'
    ssim = '-' if cell.ssim is None else f'{cell.ssim:.4f}'.removeprefix('0')
    return f'{psnr}/{ssim}'


def _markdown(lines: Sequence[Line], tests: Sequence[Test], notes: Sequence[str]) -> str:
    headers, rows, cited = _texts(lines, tests, lambda number: f' [{number}]')
    keys = [str(i) for i in range(len(headers))]
    columns: list[Column] = [(key, header, 's') for key, header in zip(keys, headers)]
    return '\n'.join([format_table([dict(zip(keys, row)) for row in rows], columns), '',
                      *_listed([_SCORES, *notes, *(f'[{number}] {note}' for number, note in enumerate(cited, 1))])])


def _csv(lines: Sequence[Line], tests: Sequence[Test], notes: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    figures = [f'{_title(test)} {figure}' for test in tests for figure in ('psnr', 'ssim', 'note')]
    writer.writerow(['method', 'source', *COSTS, *figures])
    for line in lines:
        cells = [line.cells.get(test, Cell(None, None)) for test in tests]
        writer.writerow([line.method, line.source, *(line.costs.get(key) for key in COSTS),
                         *(value for cell in cells for value in (cell.psnr, cell.ssim, cell.note))])
    return stream.getvalue().rstrip('\n')


_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '"': "''",
          **{character: f'\\{character}' for character in '&%$#_{}'}}


def _latex(lines: Sequence[Line], tests: Sequence[Test], notes: Sequence[str]) -> str:
    def escaped(text: str) -> str:
        return ''.join(_LATEX.get(character, character) for character in text)

    # a mark that no text holds, since what it becomes must not be escaped
    headers, rows, cited = _texts(lines, tests, lambda number: f'\0{number}\0')

    def line(cells: Iterable[str]) -> str:
        parts = (escaped(text).split('\0') for text in cells)
        return ' & '.join(part[0] if len(part) == 1 else f'{part[0]}$^{{{part[1]}}}$' for part in parts) + r' \\'

    return '\n'.join([
        f'\\begin{{tabular}}{{ll{"r" * (len(headers) - 2)}}}', r'\hline', line(headers), r'\hline', *map(line, rows),
        r'\hline', r'\end{tabular}', '', *(f'\\par {escaped(_sentence(note))}' for note in (_SCORES, *notes)),
        *(f'\\par $^{{{number}}}$ {escaped(_sentence(note))}' for number, note in enumerate(cited, 1))])


def _html(lines: Sequence[Line], tests: Sequence[Test], notes: Sequence[str]) -> str:
    headers, rows, cited = _texts(lines, tests, lambda number: f' [{number}]')
    notes = [_SCORES, *notes, *(f'[{number}] {note}' for number, note in enumerate(cited, 1))]
    return html_table(headers, rows, left=2) + ''.join(f'<p class="note">{escape(_sentence(note))}</p>\n'
                                                       for note in notes)


_WRITERS: dict[str, Callable[[Sequence[Line], Sequence[Test], Sequence[str]], str]] = {
    'markdown': _markdown, 'csv': _csv, 'latex': _latex, 'html': _html}
