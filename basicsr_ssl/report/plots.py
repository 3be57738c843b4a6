"""Pictures of results: crops side by side, and what pruning left of each layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from basicsr_ssl.files import write_atomically

Panel = tuple[str, np.ndarray, str]

DPI = 100
# of a picture: pixels
PANEL = 256
GAP = 6
LINE = 17
# of a chart
BARS = 50


class Point(NamedTuple):
    """A network in a chart: its cost and its PSNR in dB; ``own``: whether it was measured here."""
    label: str
    cost: float
    psnr: float
    own: bool = True


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in cost or PSNR without losing in the other, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.psnr)):
        if not front or point.psnr > front[-1].psnr:
            front.append(point)
    return front


def pareto_chart(path: str | os.PathLike, rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[Point]]]]]) -> None:
    """Draw PSNR against cost, on a logarithmic axis, with the Pareto front of all points of a panel.

    Args:
        path: PNG file.
        rows: title and panels, each the name of its cost and its points; a panel may have none.

    Raises:
        ValueError: there is nothing to draw.
        OSError: the file could not be written.
    """
    if not any(points for _, panels in rows for _, points in panels):
        raise ValueError('there is no PSNR to draw against a cost')
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(5.6 * columns, 4 * len(rows)), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    for (title, panels), line in zip(rows, figure.subplots(len(rows), columns, squeeze=False)):
        for (cost, points), axes in zip(panels, line):
            front = pareto_front(points)
            axes.plot([point.cost for point in front], [point.psnr for point in front], color='C0', linewidth=1)
            for point in points:
                axes.plot(point.cost, point.psnr, 'o' if point.own else 's', color='C0' if point.own else '0.6')
                axes.annotate(point.label, (point.cost, point.psnr), (4, -4), textcoords='offset points', fontsize=7,
                              color='black' if point.own else '0.4')
            if points:
                axes.set_xscale('log')
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(cost, fontsize=8)
            axes.set_ylabel('PSNR (dB)', fontsize=8)
            axes.tick_params(labelsize=7)
            axes.margins(0.15)
    _save(figure, path)


def pick_crop(gt: np.ndarray, dense: np.ndarray, bicubic: np.ndarray, size: int, step: int = 1) -> tuple[int, int]:
    """The square in which a network gains most over bicubic, in squared error; the first one where several do.

    Args:
        gt, dense, bicubic: images of one size, (h, w, 3), uint8.
        size: side of the square in pixels; one that is larger than the image is cut to fit in.
        step: top and left are multiples of this: the scale, for the LR crop to show the same region.

    Returns:
        Top and left of the square, which lies inside the image.

    Raises:
        ValueError: the images differ in size.
    """
    if not gt.shape == dense.shape == bicubic.shape:
        raise ValueError(f'images of one size are needed to compare, got {gt.shape}, {dense.shape}, {bicubic.shape}')
    truth, new, old = (image.astype(np.int64) for image in (gt, dense, bicubic))
    gain = ((old - truth)**2 - (new - truth)**2).sum(axis=2)
    h, w = (min(size, side) for side in gain.shape)
    # sums over all windows as differences of sums over all corners; integers, so that ties are ties
    corner = np.pad(gain, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = (corner[h:, w:] - corner[:-h, w:] - corner[h:, :-w] + corner[:-h, :-w])[::step, ::step]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top) * step, int(left) * step


def comparison_picture(path: str | os.PathLike, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw rows of crops, e.g. LR, bicubic, dense, compact, GT of one frame.

    All panels are drawn at the same width, a whole multiple of the widest crop's, and pixels stay squares: an LR crop
    appears enlarged by repetition.

    Args:
        path: PNG file.
        rows: panels (label, image (h, w, 3) uint8 RGB, caption) from left to right; label and caption, e.g. the PSNR,
            stand below the image.

    Raises:
        ValueError: there are no panels, or an image is of another form.
        OSError: the file could not be written.
    """
    images = [image for row in rows for _, image, _ in row]
    if not images:
        raise ValueError('no panels to draw: give at least one row with one panel')
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'panels are images (h, w, 3) of uint8, got {image.shape} of {image.dtype}')
    widest = max(image.shape[1] for image in images)
    width = widest * max(1, round(PANEL / widest))
    heights = [round(width * max(image.shape[0] / image.shape[1] for _, image, _ in row)) for row in rows]
    texts = [LINE * (2 if any(caption for _, _, caption in row) else 1) + GAP for row in rows]
    total = (GAP + max(map(len, rows)) * (width + GAP), GAP + sum(heights) + sum(texts) + GAP * (len(rows) - 1))

    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor='white')
    canvas = FigureCanvasAgg(figure)
    bottom = total[1] - GAP
    for row, height, text in zip(rows, heights, texts):
        bottom -= height
        for i, (label, image, caption) in enumerate(row):
            left = GAP + i * (width + GAP)
            axes = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
            axes.imshow(image, interpolation='nearest', aspect='auto')
            axes.set_axis_off()
            for line, (words, weight) in enumerate(((label, 'bold'), (caption, 'normal'))):
                shown = figure.text((left + width / 2) / total[0], (bottom - GAP / 2 - line * LINE) / total[1], words,
                                    ha='center', va='top', fontsize=10, weight=weight)
                _fit(shown, width, canvas)
        bottom -= text + GAP
    _save(figure, path)


def kept_units_chart(path: str | os.PathLike, report: Mapping[str, Any]) -> None:
    """Draw a bar for every layer: the share of its units that pruning kept.

    Args:
        path: PNG file.
        report: of pruning, with ``{'groups': {name: {'kept': units, 'size': units of the dense network}}}``.

    Raises:
        ValueError: the report has no groups.
        OSError: the file could not be written.
    """
    groups = report.get('groups')
    if not groups:
        raise ValueError('the report has no groups to draw; give the report.json of a pruning stage')
    names = list(groups)
    columns = -(-len(names) // BARS)
    length = -(-len(names) // columns)
    # `a.0.in` and `a.1.in` play the same part in different blocks and share a colour; names without dots share one too
    parts = list(dict.fromkeys(name.rpartition('.')[2] for name in names if '.' in name))
    figure = Figure(figsize=(4.2 * columns, 0.17 * length + 0.9), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained', wspace=0.06)
    FigureCanvasAgg(figure)
    for axes, start in zip(figure.subplots(1, columns, squeeze=False)[0], range(0, len(names), length)):
        shown = names[start:start + length]
        shares = [groups[name]['kept'] / groups[name]['size'] for name in shown]
        colours = [f'C{parts.index(name.rpartition(".")[2])}' if '.' in name else '0.4' for name in shown]
        axes.barh(shown, [1] * len(shown), color='0.9')
        axes.barh(shown, shares, color=colours)
        for y, name in enumerate(shown):
            axes.text(1.02, y, f'{groups[name]["kept"]}/{groups[name]["size"]}', va='center', fontsize=7,
                      in_layout=False)
        axes.set_ylim(length - 0.4, -0.6)  # first layer on top; a shorter column keeps its bars as thin
        axes.set_xlim(0, 1.2)  # room for the counts
        axes.set_xticks([0, 0.5, 1], ['0', '50 %', '100 %'])
        axes.tick_params(labelsize=7, length=0)
        axes.set_frame_on(False)
    kept, size = (sum(group[key] for group in groups.values()) for key in ('kept', 'size'))
    figure.suptitle(f'Kept {kept} of {size} units ({kept / size:.1%})', fontsize=10)
    _save(figure, path)


def share_chart(path: str | os.PathLike,
                panels: Mapping[str, tuple[float | None, Mapping[str, Mapping[float, float]]]], title: str) -> None:
    """Draw PSNR against the share that was removed, panels side by side with a scale each.

    Args:
        path: PNG file.
        panels: by title, PSNR in dB of the network before anything was removed (None: not drawn), and by label, a line
            each, PSNR in dB by share in [0, 1]. A label has the same colour in all panels.
        title: above the panels.

    Raises:
        ValueError: there is nothing to draw.
        OSError: the file could not be written.
    """
    labels = list(dict.fromkeys(label for _, curves in panels.values() for label in curves))
    if not labels:
        raise ValueError('no figures to draw: run some rows of the study first')
    figure = Figure(figsize=(0.6 + 3.6 * len(panels), 3.6), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for axes, (name, (level, curves)) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        if level is not None:
            handles['nothing removed'] = axes.axhline(level, color='0.6', linewidth=1)
        for label, curve in curves.items():
            shares = sorted(curve)
            handles[label], = axes.plot([100 * share for share in shares], [curve[share] for share in shares],
                                        color=f'C{labels.index(label)}', linewidth=1.5, marker='o', markersize=4)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel('removed, %')
        axes.set_ylabel('PSNR, dB')
        axes.grid(color='0.9')
    figure.suptitle(title, fontsize=10)
    figure.legend(list(handles.values()), list(handles), loc='outside lower center', ncols=len(handles), fontsize=8,
                  frameon=False)
    _save(figure, path)


def heatmap(path: str | os.PathLike, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]],
            title: str) -> None:
    """Draw PSNR by part and share removed, a colour for each value; what is not finite is left white.

    Args:
        path: PNG file.
        rows, columns: names of the parts, and the shares as they are to be written.
        values: of each part, PSNR in dB at each share.
        title: above the picture.

    Raises:
        OSError: the file could not be written.
    """
    table = np.ma.masked_invalid(np.asarray(values, dtype=float))
    figure = Figure(figsize=(2.6 + 0.55 * len(columns), 0.9 + 0.22 * len(rows)), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(table, aspect='auto', cmap='viridis')
    middle = (table.min() + table.max()) / 2
    for (i, j), value in np.ndenumerate(table.filled(np.nan)):
        if np.isfinite(value):
            axes.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=6,
                      color='white' if value < middle else 'black')
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel('removed', fontsize=7)
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    _save(figure, path)


def curves_chart(path: str | os.PathLike, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
                 across: str, up: str, logarithmic: bool = False) -> None:
    """Draw lines, panels side by side, at most three in a row. A label has the same colour in all panels.

    Args:
        path: PNG file.
        panels: by title and label, where the points lie across and up; what is not finite interrupts the line.
        across, up: names of the axes.
        logarithmic: the upper axis.

    Raises:
        ValueError: there is nothing to draw.
        OSError: the file could not be written.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    if not labels:
        raise ValueError('no lines to draw')
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 0.6 + 3 * rows), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, lines) in zip(every, panels.items()):
        for label, (x, y) in lines.items():
            handles[label], = axes.plot(x, y, color=f'C{labels.index(label)}', linewidth=1.2,
                                        marker='o' if len(x) < 12 else None, markersize=3)
        if logarithmic:
            axes.set_yscale('log')
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(across, fontsize=8)
        axes.set_ylabel(up, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color='0.9')
    for axes in every[len(panels):]:
        axes.set_axis_off()
    figure.legend(list(handles.values()), list(handles), loc='outside lower center', ncols=min(4, len(handles)),
                  fontsize=8, frameon=False)
    _save(figure, path)


def gates_chart(path: str | os.PathLike, panels: Mapping[str, Sequence[tuple[int, float, Sequence[int]]]]) -> None:
    """Draw histograms along time, a column for each, dark where many gates are (by the logarithm of their number).

    Args:
        path: PNG file.
        panels: by title, iteration, upper end of the bins, which begin at 0, and counts; not empty.

    Raises:
        ValueError: there is nothing to draw.
        OSError: the file could not be written.
    """
    if not any(panels.values()):
        raise ValueError('no histograms to draw')
    figure = Figure(figsize=(0.6 + 4.2 * len(panels), 3.2), dpi=DPI, facecolor='white')
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    most = max(max(counts) for histograms in panels.values() for _, _, counts in histograms)
    for axes, (title, histograms) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        before = 0
        for iteration, top, counts in histograms:
            edges = np.linspace(0, top or 1, len(counts) + 1)
            axes.pcolormesh([before, iteration], edges, np.log1p(np.asarray(counts, float))[:, None], cmap='Blues',
                            vmin=0, vmax=np.log1p(most))
            before = iteration
        axes.set_title(title, fontsize=9)
        axes.set_xlabel('iteration', fontsize=8)
        axes.set_ylabel('magnitude', fontsize=8)
        axes.tick_params(labelsize=7)
    _save(figure, path)


def _fit(text: Text, width: float, canvas: FigureCanvasAgg) -> None:
    """Make a text smaller if it is wider than ``width`` pixels."""
    needed = text.get_window_extent(canvas.get_renderer()).width
    if needed > width:
        text.set_fontsize(float(text.get_fontsize()) * width / needed)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format='png', dpi=DPI))
