"""Video files, read and written with FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basicsr_ssl.files import cannot_save
from basicsr_ssl.terminal import plain
from basicsr_ssl.upscale.colour import BT709, Coding, Planes, matrix_of
from basicsr_ssl.upscale.media import BrokenInputError, Encoding, Picture

try:
    import av
    from av.codec.codec import find_best_pix_fmt_of_list
    from av.codec.context import Flags
    from av.error import FFmpegError
    from av.stream import Disposition
except ModuleNotFoundError as error:
    raise ValueError('videos are read and written with PyAV, which is not installed: run '
                     "pip install -c constraints.txt -e '.[video]'. Folders of images do without") from error

#: FFmpeg's name for the format of a file, by the file's suffix.
FORMATS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm', '.ts': 'mpegts'}
#: Options that make an encoder lossless.
LOSSLESS = {'libx264': {'qp': '0'}, 'libx264rgb': {'qp': '0'}, 'libx265': {'x265-params': 'lossless=1:log-level=error'},
            'libvpx-vp9': {'lossless': '1'}, 'ffv1': {}}
# Finer than the encoders' own: whoever upscales wants to see it.
_CRF = {'libx264': 18, 'libx264rgb': 18, 'libx265': 20, 'libvpx-vp9': 24, 'libsvtav1': 24}
_QUIET = {'libx265': {'x265-params': 'log-level=error'}}
# Metadata that the muxer writes by itself, or that were true of the input only.
_NOT_COPIED = ('encoder', 'major_brand', 'minor_version', 'compatible_brands', 'duration', 'bps', 'number_of_',
               '_statistics_', 'rotate')
_SLACK = 1  # seconds by which a whole file may be shorter than its header says
_FULL, _LIMITED = 2, 1  # FFmpeg's AVColorRange


class VideoSource:
    """The frames of a video file: of its first stream of moving pictures.

    Args:
        path: of the file; it is read twice at the same time, so it cannot be a pipe.
        start: frames that are decoded and left out.
        most: frames that are read at most.

    Attributes:
        stream: that it reads.
        rate: frames per second, on average.

    Raises:
        ValueError: it is no video, has no pictures, or is of a codec that is not known.
    """

    def __init__(self, path: Path, start: int = 0, most: int | None = None) -> None:
        self.path, self._start, self._most = path, start, most
        self._container = opened(path)
        streams = [stream for stream in self._container.streams.video
                   if not stream.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ', '.join(dict.fromkeys(stream.type for stream in self._container.streams)) or 'nothing'
            raise ValueError(f'{path} has no moving pictures, only {kinds}')
        self.stream: Any = streams[0]
        if self.stream.codec_context is None:
            raise ValueError(f'{path} is of a codec that this build of FFmpeg cannot decode: convert it first')
        self.stream.thread_type = 'AUTO'
        self.rate: Fraction = self.stream.guessed_rate or self.stream.average_rate or Fraction(25)
        self.aspect: Fraction | None = self.stream.sample_aspect_ratio
        self.primaries, self.transfer = self.stream.color_primaries, self.stream.color_trc
        count = self.stream.frames or round((self._container.duration or 0) * self.rate / av.time_base)
        self.size = self.stream.height, self.stream.width
        self.count = max(0, min(count - start, count if most is None else most)) or None

    def pictures(self) -> Iterator[Picture]:
        most = None if self._most is None else self._start + self._most
        for number, frame in enumerate(islice(self._frames(), most)):
            if number >= self._start:
                yield self._picture(frame, number)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Decoded frames; raises BrokenInputError at the first that is damaged or missing."""
        furthest = Fraction(0)
        try:
            for packet in self._container.demux():
                if packet.pts is not None:
                    furthest = max(furthest, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream.index == self.stream.index:
                    if packet.has_sidedata('encryption_info'):
                        raise ValueError(f'{self.path} is encrypted: decrypt it first')
                    for frame in packet.decode():
                        self._check(frame)
                        yield frame
        except FFmpegError as error:
            yield from self._delayed()
            raise BrokenInputError(f'{self.path} is damaged or cut off: {reason(error)}') from error
        duration, begin = self._container.duration, self._container.start_time or 0
        if duration and furthest < (promised := Fraction(begin + duration, av.time_base)) - _SLACK:
            raise BrokenInputError(f'{self.path} is cut off: it promises {float(promised):.1f} seconds, and has '
                                   f'{float(furthest):.1f}')

    def _delayed(self) -> Iterator[av.VideoFrame]:
        """Whole frames that the decoder still holds."""
        with contextlib.suppress(FFmpegError, BrokenInputError):
            for frame in self.stream.decode(None):
                self._check(frame)
                yield frame

    def _check(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            raise BrokenInputError(f'{self.path} is damaged or cut off')

    def _picture(self, frame: av.VideoFrame, number: int) -> Picture:
        full = frame.color_range == _FULL or frame.format.name.startswith('yuvj')
        coding = coding_of(frame.format, full, matrix_of(frame.colorspace, frame.height, frame.width))
        name = plain_format(coding)
        side_data: Any = frame.side_data
        matrix = next((struct.unpack('<9i', bytes(data)) for data in side_data.keys()
                       if data.type.name == 'DISPLAYMATRIX'), ())
        time = frame.pts if frame.pts is not None else round(number / self.rate / self.stream.time_base)
        duration = frame.duration or round(1 / self.rate / self.stream.time_base)
        if frame.format.name.replace('yuvj', 'yuv') != name:
            frame = frame.reformat(format=name)
        return Picture(_planes(frame, coding), coding, number, '', time, duration, matrix)


def opened(path: Path) -> Any:
    """A media file, open for reading.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is empty, or no media file.
    """
    with open(path, 'rb') as stream:
        if not stream.read(1):
            raise ValueError(f'{path} is empty: copy or download it again')
    try:
        return av.open(os.fspath(path), metadata_errors='replace')
    except FFmpegError as error:
        raise ValueError(f'{path} is no video that FFmpeg can read, or it is damaged: {reason(error)}') from error


def coding_of(pixel_format: av.VideoFormat, full: bool, matrix: int) -> Coding:
    """What a pixel format holds; of one that is not planar, after conversion to ``plain_format``."""
    bits = next((bits for bits in (8, 9, 10, 12, 14) if bits >= max(part.bits for part in pixel_format.components)), 16)
    if pixel_format.is_rgb or pixel_format.has_palette or pixel_format.is_bayer:
        return Coding('rgb', bits)
    if len(pixel_format.components) < 3:
        return Coding('grey', bits, full, matrix)
    rows, columns = 64 // pixel_format.chroma_height(64), 64 // pixel_format.chroma_width(64)
    return Coding('yuv', bits, full, matrix, *((rows, columns) if (rows, columns) in _CHROMA else (1, 1)))


_CHROMA = {(1, 1): '444', (1, 2): '422', (2, 2): '420'}


def plain_format(coding: Coding) -> str:
    """The planar pixel format, without alpha, of a coding."""
    depth = '' if coding.bits == 8 else f'{coding.bits}le'
    if coding.kind == 'yuv':
        return f'yuv{_CHROMA[coding.rows, coding.columns]}p{depth}'
    return f'{"gbrp" if coding.kind == "rgb" else "gray"}{depth}'


def _planes(frame: av.VideoFrame, coding: Coding) -> Planes:
    planes, kind = [], _sample(coding)
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
        planes.append(torch.from_numpy(rows[:plane.height, :plane.width].astype('u1' if coding.bits == 8 else 'i4')))
    if coding.kind == 'rgb':
        green, blue, red = planes
        return (torch.stack((red, green, blue)),)
    return tuple(planes)


def _frame(planes: Planes, coding: Coding) -> av.VideoFrame:
    height, width = planes[0].shape[-2:]
    frame = av.VideoFrame(width, height, plain_format(coding))
    if coding.kind == 'rgb':
        red, green, blue = planes[0]
        planes = green, blue, red
    kind = _sample(coding)
    for plane, values in zip(frame.planes, planes):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // kind.itemsize), kind)
        rows[:plane.height, :plane.width] = values.numpy()
        plane.update(rows.tobytes())
    return frame


def _sample(coding: Coding) -> np.dtype:
    return np.dtype('u1' if coding.bits == 8 else '<u2')


class VideoSink:
    """Writes a video, and copies what else is in the one that it is made of.

    Args:
        temporary: the file to write to, whatever its name.
        path: what its name is to be, which decides its format.
        first: the first picture of the input: size, colours and orientation are those of all.
        scale: by which the pictures are larger.
        encoding: see there.
        source: the video that the pictures are of, None for images. Times, pixel aspect, metadata, chapters and all
            other streams are copied from it, if the format can hold them.
        shift: the output begins at time 0, since the input begins in the middle; else times are those of the input.

    Attributes:
        notes: what could not be kept, a sentence each.

    Raises:
        ValueError: the encoder does not exist, or cannot encode this.
    """

    def __init__(self, temporary: str, path: Path, first: Picture, scale: int, encoding: Encoding,
                 source: VideoSource | None = None, shift: bool = False) -> None:
        self._path, self._source = path, source
        self._unit = source.stream.time_base if source else 1 / encoding.rate
        self._begin = first.time if shift or source is None else 0
        self._last, self._end = -math.inf, Fraction(0)
        self.notes: Sequence[str] = (notes := [])
        codec, options = _encoder(encoding, path)
        name = _pixel_format(codec, encoding, first.coding, source is not None)
        pixel_format = av.VideoFormat(name)
        full = name.startswith('yuvj') or (first.coding.kind != 'rgb' and first.coding.full)
        self.coding = coding_of(pixel_format, full, first.coding.matrix)
        height, width = (scale * side for side in first.planes[0].shape[-2:])
        if height % self.coding.rows or width % self.coding.columns:
            raise ValueError(f'{width} x {height} pixels do not fit {name}: add --pix-fmt yuv444p')
        self._size = height, width
        self._container = av.open(temporary, 'w', format=FORMATS[path.suffix.lower()])
        try:
            self._video: Any = self._container.add_stream(
                codec, rate=source.rate if source else encoding.rate, options=options, width=width, height=height,
                pix_fmt=name, time_base=self._unit)
            self._describe(first, scale)
            self._copies = None if source is None else _Copies(source, self._container, self._begin * self._unit, shift,
                                                               notes)
            self._container.start_encoding()
            if unknown := set(options) & set(self._video.codec_context.options):
                raise ValueError(f'this encoder has no option {", ".join(sorted(unknown))}')
        except (ValueError, FFmpegError) as error:
            what = f'{codec} of {width} x {height} pixels, {name}'
            raise ValueError(f'{path} cannot be {what}: {reason(error)}. Choose another --codec, --pix-fmt or suffix'
                             ) from error

    def _describe(self, first: Picture, scale: int) -> None:
        """What the header says of the pictures."""
        context = self._video.codec_context
        context.flags |= Flags.frame_duration
        if self.coding.kind == 'rgb':
            context.colorspace = 0
        else:
            context.color_range, context.colorspace = _FULL if self.coding.full else _LIMITED, self.coding.matrix
        if self._source is None:
            context.color_primaries = context.color_trc = BT709
            return
        context.color_primaries, context.color_trc = self._source.primaries, self._source.transfer
        if self._source.aspect:
            context.sample_aspect_ratio = self._source.aspect
        if first.orientation:  # the offsets, in pixels, stand at 6 and 7
            self._video.set_display_matrix([value * scale if place in (6, 7) else value
                                            for place, value in enumerate(first.orientation)])
        self._video.metadata.update(_copied(self._source.stream.metadata))
        self._video.disposition = self._source.stream.disposition

    def write(self, planes: Planes, source: Picture) -> None:
        if planes[0].shape[-2:] != self._size:
            raise BrokenInputError(f'picture {source.number} is of another size than those before, and a video has one')
        frame = _frame(planes, self.coding)
        time = source.time - self._begin
        if time <= self._last:  # encoders refuse times that do not grow
            time = int(self._last) + 1
        frame.pts, frame.duration, frame.time_base = time, source.duration, self._unit
        self._last, self._end = time, (time + source.duration) * self._unit
        with self._saving():
            self._container.mux(self._video.encode(frame))
            if self._copies:
                self._copies.copy(time * self._unit)

    def close(self, cut: bool) -> None:
        with self._saving():
            self._container.mux(self._video.encode(None))
            if self._copies:
                self._copies.copy(self._end if cut else None)
            self._container.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except FFmpegError as error:
            raise cannot_save(self._path, error) from error

    def abandon(self) -> None:
        """Close the file, whatever is in it."""
        with contextlib.suppress(FFmpegError, ValueError):
            self._container.close()


class _Copies:
    """All streams of a video but its moving pictures, copied packet by packet as time goes on.

    Args:
        source: read once more, beside its decoder, so that nothing has to be held in memory.
        output: the container that is written, whose header is not yet.
        begin: time in the input that is 0 in the output, in seconds.
        cut: leave out what comes before it.
        notes: gets a sentence for each stream that the output cannot hold.
    """

    def __init__(self, source: VideoSource, output: Any, begin: Fraction, cut: bool, notes: list[str]) -> None:
        self._output, self._begin, self._cut = output, begin, cut
        self._input = opened(source.path)
        self._streams: dict[int, Any] = {}
        output.metadata.update(_copied(self._input.metadata))
        chapters = self._input.chapters()
        for stream in self._input.streams:
            if stream.index == source.stream.index or _is_made_again(stream, bool(chapters)):
                continue
            try:
                if stream.type in ('data', 'unknown') or (
                        stream.type == 'attachment' and output.format.name != 'matroska'):
                    raise ValueError(f'{output.format.name!r} format does not support {stream.type}')
                copy = output.add_stream_from_template(stream, opaque=True)
            except (ValueError, FFmpegError) as error:
                notes.append(f'stream {stream.index} ({stream.type}) is left out: {reason(error)}')
                continue
            copy.metadata.update(_copied(stream.metadata))
            copy.disposition = stream.disposition
            self._streams[stream.index] = copy
        output.set_chapters([{**chapter, **{end: chapter[end] - round(begin / chapter['time_base'])
                                            for end in ('start', 'end')}}
                             for chapter in chapters if not cut or chapter['end'] * chapter['time_base'] > begin])
        streams = [stream for stream in self._input.streams if stream.index in self._streams]
        self._packets = self._input.demux(streams) if streams else iter(())
        self._next: Any = next(self._packets, None)

    def copy(self, until: Fraction | None = None) -> None:
        """Copy what begins before a time of the output, in seconds; None: all that is left."""
        while self._next is not None:
            packet, shift = self._next, round(self._begin / self._next.time_base)
            copy = self._streams[packet.stream.index]
            picture = bool(copy.disposition & Disposition.attached_pic)
            time = packet.pts if packet.dts is None else packet.dts
            begins = None if time is None else (time - shift) * packet.time_base
            if begins is not None and until is not None and begins >= until and not picture:
                return
            if packet.size and (picture or (begins is not None and not (self._cut and begins < 0))):
                if not picture:
                    packet.pts = None if packet.pts is None else packet.pts - shift
                    packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = copy
                self._output.mux(packet)
            try:
                self._next = next(self._packets, None)
            except FFmpegError:  # the decoder says where the input breaks off
                self._next = None


def _is_made_again(stream: Any, has_chapters: bool) -> bool:
    """Whether the muxer makes such a stream by itself, from chapters or the time code in the metadata."""
    if stream.type == 'data' and 'timecode' in stream.metadata:
        return True
    return has_chapters and stream.type in ('subtitle', 'data') and getattr(stream, 'codec_tag', '') == 'text'


def _copied(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not key.lower().startswith(_NOT_COPIED)}


def _encoder(encoding: Encoding, path: Path) -> tuple[str, dict[str, str]]:
    """Name and options of the encoder."""
    codec = encoding.codec or ('libvpx-vp9' if path.suffix.lower() == '.webm' else 'libx264')
    try:
        found = av.Codec(codec, 'w')
    except ValueError:  # PyAV's error for a name that it does not know
        raise ValueError(f'--codec {codec}: there is no such encoder; among others there are '
                         f'{", ".join(sorted({*LOSSLESS, *_CRF}))}') from None
    if found.type != 'video':
        raise ValueError(f'--codec {codec} encodes {found.type}, not pictures')
    if encoding.lossless:
        if encoding.crf is not None:
            raise ValueError('--lossless leaves nothing for --crf to say: leave one of them out')
        if codec not in LOSSLESS:
            raise ValueError(f'--codec {codec} is not known to be lossless; choose one of {", ".join(LOSSLESS)}')
        return codec, LOSSLESS[codec]
    crf = _CRF.get(codec) if encoding.crf is None else encoding.crf
    return codec, {**_QUIET.get(codec, {}), **({} if crf is None else {'crf': f'{crf:g}'})}


def _pixel_format(codec: str, encoding: Encoding, coding: Coding, is_video: bool) -> str:
    """The pixel format to encode."""
    known = [found.name for found in av.Codec(codec, 'w').video_formats or ()]
    if encoding.pix_fmt is not None:
        if encoding.pix_fmt not in known:
            raise ValueError(f'--pix-fmt {encoding.pix_fmt}: {codec} has {", ".join(known)}')
        return encoding.pix_fmt
    # images become what every player knows
    wanted = plain_format(coding) if is_video else 'yuv420p'
    best, _ = find_best_pix_fmt_of_list(known, wanted)
    return wanted if wanted in known or best is None else best.name


def reason(error: Exception) -> str:
    """What FFmpeg says, without numbers and names of functions."""
    return plain(getattr(error, 'strerror', None) or error)
