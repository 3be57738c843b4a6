"""``basicsr-ssl upscale``: a video, a folder of images or an image in, the same in a larger size out."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from basicsr_ssl.files import Unfinished, kind_of, unfinished
from basicsr_ssl.nn.resize import bicubic_resize
from basicsr_ssl.runtime import StopSignal
from basicsr_ssl.terminal import plain
from basicsr_ssl.upscale import images
from basicsr_ssl.upscale.ahead import Ahead, Stopped
from basicsr_ssl.upscale.colour import Coding, Planes, from_rgb, to_rgb
from basicsr_ssl.upscale.media import BrokenInputError, Encoding, Picture, Sink, Source, partial_name
from basicsr_ssl.upscale.networks import Runner
from basicsr_ssl.upscale.scenes import scenes

T = TypeVar('T')

#: Suffixes of videos that can be written.
VIDEOS = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.ts')
READ_AHEAD = 4  # pictures that wait for the network
WRITE_BEHIND = 2  # results that wait to be written
CONTEXT = 10  # frames on either side that the network sees for a preview
_LINES = 10  # seconds between two lines of progress where there is no terminal
_LABEL = 20  # pixels


def upscale(source: str | os.PathLike, output: str | os.PathLike, runner: Runner, *, encoding: Encoding | None = None,
            start: int = 0, frames: int | None = None, detect_scenes: bool = True, overwrite: bool = False) -> int:
    """Upscale a video, a folder of images or an image.

    Reading, the network and writing run in threads side by side. In memory are at a time ``READ_AHEAD`` pictures of the
    input, ``WRITE_BEHIND`` of the output, and what the network needs, however long the input is.

    The output appears under its name when it is whole. If the input breaks off, or SIGINT or SIGTERM come, what there
    is appears as ``NAME.partial.SUFFIX``.

    Args:
        source: a video file of any kind that FFmpeg reads, a folder of images, or an image.
        output: a video (``VIDEOS``), an image, or a folder.
        runner: the network.
        encoding: of a video.
        start: pictures at the beginning that are left out.
        frames: that are upscaled at most.
        detect_scenes: restart the network's states where a new scene begins.
        overwrite: replace what is there.

    Returns:
        An exit code: 0; 1 if the input broke off; 128 and its number after a signal.

    Raises:
        OSError: the input cannot be read, or the output not written.
        ValueError: the input is nothing to upscale, or cannot be put into such an output.
        FloatingPointError: the network's output is not finite.
    """
    source, output = Path(source), Path(output)
    check_output(source, output, overwrite)
    opened = open_source(source, start, frames)
    if images.is_image(output) and opened.count != 1:
        raise ValueError(f'{output} holds one image: name a folder or a video, or add --frames 1')
    if images.is_image(output) and encoding and encoding.lossless and output.suffix.lower() in images.LOSSY:
        raise ValueError(f'{output} cannot be lossless: name a PNG')
    pictures = opened.pictures()
    first = next(pictures, None)
    if first is None:
        raise ValueError(f'{source} has no picture' + (f' from --start {start} on' if start else ''))
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignal('what is finished is kept'))
        over = threading.Event()

        def ahead(items: Iterable[T], most: int) -> Ahead[T]:
            thread = Ahead(items, most, lambda: over.is_set() or bool(signals.signum))
            stack.callback(thread.join)
            return thread

        progress = stack.enter_context(Progress(opened.count))
        with _target(output) as file:
            sink = _open_sink(Path(file.name), output, first, runner.scale, encoding or Encoding(), opened,
                              start > 0)
            read = ahead(chain([first], pictures), READ_AHEAD)
            del first
            results = ahead(_super_resolved(runner, read, sink.coding, detect_scenes), WRITE_BEHIND)
            stack.callback(over.set)  # before the threads are waited for
            try:
                broken = _write(results, sink, progress)
                stopped = broken is not None or bool(signals.signum)
                sink.close(cut=stopped or frames is not None)
            except BaseException:
                sink.abandon()
                raise
            if stopped:
                file.target = partial_name(output) if progress.done else None
        for note in sink.notes:
            print(f'basicsr-ssl: {plain(note)}', file=sys.stderr)
        if stopped:
            kept = f'The {progress.done} pictures before are in {file.target}' if file.target else 'Nothing is written'
            print(f'basicsr-ssl: {plain(broken or "stopped")}. {kept}', file=sys.stderr)
            return 1 if broken else 128 + signals.signum
    print(f'{output}: {progress.done} pictures in {datetime.timedelta(seconds=round(progress.seconds))}')
    return 0


def _write(results: Iterable[tuple[Picture, Planes]], sink: Sink, progress: Progress) -> BrokenInputError | None:
    """Write what comes until it ends, is stopped, or the input breaks off, which is returned."""
    try:
        for picture, planes in results:
            sink.write(planes, picture)
            progress.step()
    except BrokenInputError as error:
        return error
    except Stopped:
        pass
    return None


def _super_resolved(runner: Runner, pictures: Iterable[Picture], coding: Coding, detect_scenes: bool
                    ) -> Iterator[tuple[Picture, Planes]]:
    """Every picture, without its planes, and its HR version, coded.

    Where the input breaks off, the network is told that it ends, and the error comes after the last picture.
    """
    waiting: deque[Picture] = deque()
    broken: list[BrokenInputError] = []

    def frames() -> Iterator[Tensor]:
        try:
            for picture in pictures:
                _check_size(picture, runner)
                waiting.append(picture._replace(planes=()))
                yield to_rgb(tuple(plane.to(runner.device) for plane in picture.planes), picture.coding)
                del picture  # before the next one is made
        except BrokenInputError as error:
            broken.append(error)

    def coded(hr: Tensor) -> tuple[Picture, Planes]:
        picture = waiting.popleft()
        if not hr.isfinite().all():
            raise FloatingPointError(f'picture {picture.number}: the output of the network is not finite')
        return picture, tuple(plane.cpu() for plane in from_rgb(hr, coding))

    try:
        # maps and not loops, whose variables would keep one frame alive while the next one is made
        yield from map(coded, chain.from_iterable(map(runner.run, scenes(frames(), detect_scenes))))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or 'memory' in str(error):
            raise ValueError('there is not enough memory for pictures of this size: choose a smaller --segment, '
                             '--keep-states host, a smaller network, or make them smaller first') from error
        raise
    if broken:
        raise broken[0]


def _check_size(picture: Picture, runner: Runner) -> None:
    """Raises ValueError if a single frame would need more memory than there is."""
    height, width = picture.planes[0].shape[-2:]
    needed, there = height * width * runner.bytes_per_pixel, _memory(runner.device)
    if needed > there:
        name = picture.name or f'picture {picture.number}'
        raise ValueError(f'{name} has {width} x {height} pixels, for which this network needs {needed / 1e9:.0f} GB at '
                         f'least; there are {there / 1e9:.0f}. Make it smaller, or choose a smaller network')


def _memory(device: torch.device) -> int:
    """Bytes of a device."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Whether the output may be written.

    Raises:
        ValueError: it is the input, is there already, or has a suffix that says nothing.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f'{output} is the input itself: choose another name')
    if output.suffix and not output.is_dir() and not images.is_image(output) and output.suffix.lower() not in VIDEOS:
        raise ValueError(f'{output}: a video ends in one of {", ".join(VIDEOS)}, an image in one of '
                         f'{", ".join(images.EXTENSIONS)}, and a folder has no suffix')
    if output.is_dir() and not any(output.iterdir()):
        return
    if os.path.lexists(output) and not overwrite:
        raise ValueError(f'{output} is there already: choose another name, or add --overwrite')


def open_source(path: Path, start: int = 0, most: int | None = None) -> Source:
    """The pictures of a file or folder.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it has no pictures.
    """
    if not path.exists():
        raise FileNotFoundError(f'there is no {path}')
    if path.is_dir() or images.is_image(path):
        return images.ImageSource(path, start, most)
    if not path.is_file():
        raise ValueError(f'{path} is {kind_of(path.stat().st_mode)}, and a video must be a file, which is read twice')
    from basicsr_ssl.upscale.video import VideoSource  # needs PyAV
    return VideoSource(path, start, most)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and not path.is_dir()


def _target(output: Path) -> contextlib.AbstractContextManager[Unfinished]:
    return unfinished(output) if output.suffix and not output.is_dir() else images.unfinished_folder(output)


def _open_sink(place: Path, output: Path, first: Picture, scale: int, encoding: Encoding, source: Source,
               shift: bool) -> Sink:
    if not _is_video(output):
        return images.ImageSink(place, '' if place.is_dir() else output.name, encoding.lossless)
    from basicsr_ssl.upscale.video import VideoSink, VideoSource  # needs PyAV
    return VideoSink(os.fspath(place), output, first, scale, encoding,
                     source if isinstance(source, VideoSource) else None, shift)


class Progress:
    """A bar with frames per second and the time left; where there is no terminal, lines.

    Args:
        total: pictures that are expected; None: not known.
        interval: seconds between two lines.

    Attributes:
        done: pictures.
        seconds: since it began.
    """

    def __init__(self, total: int | None, interval: float = _LINES) -> None:
        self.done, self._total, self._interval = 0, total, interval

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        self._bar = tqdm(total=self._total, unit=' frames', disable=not sys.stderr.isatty(), leave=False, bar_format=(
            '{percentage:3.0f}% |{bar}| {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left') if self._total
            else '{n_fmt} frames, {rate_noinv_fmt}, {elapsed}')
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def step(self) -> None:
        self.done += 1
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._said >= self._interval:
            self._said, rate = now, self.done / (now - self._began)
            left = datetime.timedelta(seconds=round((self._total - self.done) / rate)) if self._total else None
            print(f'{self.done}{f" of {self._total}" if self._total else ""} frames, {rate:.2f} frames/s'
                  + (f', {left} left' if left is not None else ''), file=sys.stderr, flush=True)


def preview(source: str | os.PathLike, output: str | os.PathLike, runner: Runner, number: int, *,
            detect_scenes: bool = True, overwrite: bool = False) -> None:
    """Write one picture of a video or folder twice, side by side: enlarged by bicubic interpolation and by the network.

    The network sees ``CONTEXT`` frames before it and after it.

    Args:
        source, runner, detect_scenes, overwrite: as of ``upscale``.
        output: an image.
        number: of the picture, counted from 0.

    Raises:
        OSError, ValueError: as ``upscale``.
    """
    source, output = Path(source), Path(output)
    check_output(source, output, overwrite)
    if not images.is_image(output):
        raise ValueError(f'--preview writes an image: {output} should end in one of {", ".join(images.EXTENSIONS)}')
    start = max(0, number - CONTEXT)
    seen: dict[int, Tensor] = {}

    def noted() -> Iterator[Picture]:
        for picture in open_source(source, start, number - start + CONTEXT + 1).pictures():
            if picture.number == number:
                frame = to_rgb(picture.planes, picture.coding)
                seen[number] = bicubic_resize(frame, runner.scale).clamp(0, 1)
            yield picture

    for picture, (hr,) in _super_resolved(runner, noted(), Coding(), detect_scenes):
        if picture.number == number:
            (bicubic,) = from_rgb(seen[number], Coding())
            shown = _side_by_side({label: images.upright(pixels, picture.orientation)
                                   for label, pixels in (('bicubic', bicubic), ('network', hr))})
            with unfinished(output) as file:
                images.write(shown, Path(file.name), output.name, {})
            return
    raise ValueError(f'{source} has no picture {number}; they are counted from 0')


def _side_by_side(pictures: dict[str, Tensor]) -> Tensor:
    """Pictures (3, h, w) uint8 of one size beside each other, each below its name."""
    panels = []
    for label, pixels in pictures.items():
        bar = Image.new('RGB', (pixels.shape[2], _LABEL + 8))
        ImageDraw.Draw(bar).text((6, 2), label, 'white', ImageFont.load_default(_LABEL))
        panels.append(torch.cat((torch.from_numpy(np.array(bar)).permute(2, 0, 1), pixels), dim=1))
    return torch.cat(panels, dim=2)
