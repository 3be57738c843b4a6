"""Videos, folders and images in, the same in a larger size out."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from basicsr.metrics import calculate_psnr
from nets import tiny_net
from PIL import Image
from torch import Tensor, nn

import basicsr_ssl
from basicsr_ssl import cli, zoo
from basicsr_ssl.archs import PrunableEDSR, StandaloneSpyNet
from basicsr_ssl.evaluation.inference import as_frame, as_image, super_resolve
from basicsr_ssl.nn.resize import bicubic_resize
from basicsr_ssl.upscale import command
from basicsr_ssl.upscale.ahead import Ahead, Stopped
from basicsr_ssl.upscale.colour import MATRICES, Coding, from_rgb, matrix_of, to_rgb
from basicsr_ssl.upscale.images import upright
from basicsr_ssl.upscale.media import Encoding, Picture
from basicsr_ssl.upscale.networks import DEFAULT, OVERLAP, SEGMENT, Runner, open_network
from basicsr_ssl.upscale.scenes import scenes
from basicsr_ssl.upscale.video import VideoSource

WIDTH, HEIGHT = 32, 24
KINDS = {'yuv420p': Coding('yuv', 8, False, 1, 2, 2), 'yuv422p': Coding('yuv', 8, False, 1, 1, 2),
         'yuv444p': Coding('yuv', 8, False, 1, 1, 1), 'yuv420p10le': Coding('yuv', 10, False, 1, 2, 2),
         'yuv444p10le': Coding('yuv', 10, False, 1, 1, 1), 'gray': Coding('grey', 8, False, 1)}


# --- colours --------------------------------------------------------------------------------------------------------


def sample(values: np.ndarray, row: float, column: float) -> float:
    """Linear interpolation, beyond the border the border."""
    result = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            weight = (1 - abs(row - i)) * (1 - abs(column - j))
            result += weight * values[min(max(i, 0), len(values) - 1), min(max(j, 0), values.shape[1] - 1)]
    return result


def slow_to_rgb(planes: list[np.ndarray], coding: Coding) -> np.ndarray:
    """ITU-T H.273, 8.3, pixel by pixel."""
    k_r, k_b = MATRICES[coding.matrix]
    height, width = planes[0].shape
    rgb = np.zeros((3, height, width))
    top = 2**coding.bits - 1
    for y in range(height):
        for x in range(width):
            row = (y + 0.5) / coding.rows - 0.5  # in the middle of the rows, on the first of the columns
            luma, u, v = planes[0][y, x], *(sample(plane, row, x / coding.columns) for plane in planes[1:])
            if coding.full:
                luma, u, v = luma / top, (u - (top + 1) / 2) / top, (v - (top + 1) / 2) / top
            else:
                unit = 2**(coding.bits - 8)
                luma, u, v = (luma / unit - 16) / 219, (u / unit - 128) / 224, (v / unit - 128) / 224
            red, blue = luma + 2 * (1 - k_r) * v, luma + 2 * (1 - k_b) * u
            rgb[:, y, x] = red, (luma - k_r * red - k_b * blue) / (1 - k_r - k_b), blue
    return rgb.clip(0, 1)


def slow_from_rgb(rgb: np.ndarray, coding: Coding) -> list[np.ndarray]:
    """Not rounded."""
    k_r, k_b = MATRICES[coding.matrix]
    red, green, blue = rgb.clip(0, 1)
    luma = k_r * red + (1 - k_r - k_b) * green + k_b * blue
    planes = [luma]
    for part, k in ((blue, k_b), (red, k_r)):
        difference = (part - luma) / (2 * (1 - k))
        height, width = -(-luma.shape[0] // coding.rows), -(-luma.shape[1] // coding.columns)
        chroma = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                for row in range(coding.rows):
                    for column, weight in {1: ((0, 1.0),), 2: ((-1, 0.25), (0, 0.5), (1, 0.25))}[coding.columns]:
                        y = min(coding.rows * i + row, luma.shape[0] - 1)
                        x = min(max(coding.columns * j + column, 0), luma.shape[1] - 1)
                        chroma[i, j] += weight * difference[y, x] / coding.rows
        planes.append(chroma)
    top, unit = 2**coding.bits - 1, 2**(coding.bits - 8)
    if coding.full:
        return [planes[0] * top, *(plane * top + (top + 1) / 2 for plane in planes[1:])]
    return [(planes[0] * 219 + 16) * unit, *((plane * 224 + 128) * unit for plane in planes[1:])]


@pytest.mark.parametrize('full', [False, True], ids=['limited', 'full'])
@pytest.mark.parametrize('matrix', [1, 6, 9])
@pytest.mark.parametrize('kind', ['yuv420p', 'yuv422p', 'yuv444p', 'yuv420p10le', 'yuv444p10le'])
@pytest.mark.parametrize('size', [(6, 8), (5, 7)], ids=str)
def test_colours_are_converted_as_the_standard_says(kind: str, matrix: int, full: bool, size: tuple[int, int]) -> None:
    coding = KINDS[kind]._replace(matrix=matrix, full=full)
    rng, top = np.random.default_rng(0), 2**coding.bits
    shapes = [size] + 2 * [(-(-size[0] // coding.rows), -(-size[1] // coding.columns))]
    planes = [rng.integers(0, top, shape) for shape in shapes]
    found = to_rgb(tuple(map(torch.from_numpy, planes)), coding)
    np.testing.assert_allclose(found.numpy(), slow_to_rgb(planes, coding), atol=2e-6)

    rgb = rng.random((3, *size)) * 1.2 - 0.1
    coded = from_rgb(torch.from_numpy(rgb), coding)
    for plane, wanted in zip(coded, slow_from_rgb(rgb, coding)):
        assert plane.shape == wanted.shape and plane.dtype == (torch.uint8 if coding.bits == 8 else torch.int32)
        assert np.abs(plane.numpy() - wanted.clip(0, top - 1)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize('coding', [*KINDS.values(), Coding(), Coding('rgb', 10), Coding('grey', 12)], ids=str)
def test_colours_that_are_not_changed_come_back(coding: Coding) -> None:
    """Of grey pictures in every coding, of coloured ones where chroma is not reduced."""
    rng, unit = np.random.default_rng(1), 2**(coding.bits - 8)
    luma = torch.from_numpy(rng.integers(64 * unit, 192 * unit, (6, 8)))
    if coding.kind == 'rgb':
        planes: tuple[Tensor, ...] = (torch.from_numpy(rng.integers(0, 256 * unit, (3, 6, 8))),)
    elif coding.kind == 'grey':
        planes = (luma,)
    elif coding.rows * coding.columns == 1:
        planes = luma, *(torch.from_numpy(rng.integers(118 * unit, 138 * unit, (6, 8))) for _ in range(2))
    else:
        planes = luma, *(torch.full((6 // coding.rows, 8 // coding.columns), value * unit) for value in (120, 140))
    for plane, back in zip(planes, from_rgb(to_rgb(planes, coding), coding)):
        assert back.long().equal(plane.long())


def test_colours_that_are_not_said_are_those_that_players_take() -> None:
    assert [matrix_of(2, *size) for size in ((720, 1280), (1080, 1920), (576, 720), (480, 720), (180, 320))] == [
        1, 1, 5, 6, 6]
    assert matrix_of(9, 480, 640) == 9
    with pytest.raises(ValueError, match=r'matrix 8 of ITU-T H\.273'):
        matrix_of(8, 480, 640)


# --- scenes ---------------------------------------------------------------------------------------------------------


def pan(seed: int, count: int, speed: int = 1, gain: float = 1.0) -> Iterator[Tensor]:
    """A camera that moves over a landscape of soft blobs, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    landscape = bicubic_resize(torch.rand(3, 4, 14, generator=generator), 24.0).clamp(0, 1)
    for i in range(count):
        frame = landscape[:, :72, i * speed:i * speed + 128]
        yield (gain * frame + 0.002 * torch.randn(frame.shape, generator=generator)).clamp(0, 1)


def lengths(frames: Iterable[Tensor], detect: bool = True) -> list[int]:
    return [len(list(scene)) for scene in scenes(frames, detect)]


@pytest.mark.parametrize('gain', [1.0, 0.05], ids=['bright', 'dark'])
def test_scenes_end_at_cuts_and_not_at_motion(gain: float) -> None:
    frames = [*pan(0, 7, gain=gain), *pan(1, 5, 4, gain), *pan(2, 1, gain=gain), *pan(3, 4, gain=gain)]
    assert lengths(frames) == [7, 5, 1, 4]
    assert lengths(frames, detect=False) == [17]


def test_frames_that_are_shown_twice_are_no_cuts() -> None:
    assert lengths(frame for frame in pan(0, 30, 3) for _ in range(2)) == [60]


def test_a_new_size_is_a_new_scene() -> None:
    frames = list(pan(0, 4))
    assert lengths([*frames, *(frame[:, :64] for frame in frames)], detect=False) == [4, 4]


def test_scenes_read_one_frame_ahead_only() -> None:
    taken = []

    def frames() -> Iterator[Tensor]:
        for number, frame in enumerate([*pan(0, 3), *pan(1, 3)]):
            taken.append(number)
            yield frame

    for scene, first in zip(scenes(frames()), (0, 3)):
        for number, _ in enumerate(scene, first):
            assert len(taken) <= number + 2


def test_scenes_of_real_frames(test_data: Path) -> None:
    clips = [[as_frame(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
              for file in sorted((test_data / 'vid4' / 'BIx4' / name).iterdir())] for name in
             ('calendar', 'city', 'foliage', 'walk')]
    whole = [frame[:, :120, :176] for clip in clips for frame in clip]
    assert lengths(whole) == [41, 34, 49, 47]


# --- threads --------------------------------------------------------------------------------------------------------


def test_an_iterator_ahead_gives_everything_in_order_and_holds_little() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(30):
            made.append(number)
            yield number

    ahead = Ahead(items(), 3, lambda: False)
    for number, item in enumerate(ahead):
        assert item == number and len(made) <= number + 1 + 3 + 1
    ahead.join()


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError('two')

    ahead = Ahead(items(), 3, lambda: False)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match='two'):
        next(ahead)


def test_an_iterator_ahead_ends_when_it_is_stopped() -> None:
    stopped = threading.Event()
    endless = Ahead(iter(int, 1), 2, stopped.is_set)
    assert next(endless) == 0
    stopped.set()
    with pytest.raises(Stopped):
        next(endless)
    endless.join()


# --- networks -------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Enlarges the mean of each frame and its two neighbours: what happens further away does not matter."""

    scale, bidirectional, task, cost_table = 2, True, 'clip', ()

    def forward(self, x: Tensor) -> Tensor:
        before, after = torch.cat((x[:, :1], x[:, :-1]), 1), torch.cat((x[:, 1:], x[:, -1:]), 1)
        return ((before + x + after) / 3).repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    def save(net: nn.Module) -> str:
        file = str(tmp_path / f'{len(list(tmp_path.iterdir()))}.safetensors')
        basicsr_ssl.save_network(net, file)
        return file
    return save


def stack(frames: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(frames))


@pytest.mark.parametrize('count', [1, 7, 8, 9, 40])
def test_windows_equal_the_whole_clip_where_nothing_from_beyond_them_matters(count: int, monkeypatch: Any) -> None:
    monkeypatch.setattr('basicsr_ssl.upscale.networks.load_network', lambda *args, **kwargs: Mean())
    clip = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = Mean()(clip[None])[0]
    assert stack(open_network('net', segment=8, overlap=2).run(iter(clip))).equal(whole)
    if count == 40:
        assert not stack(open_network('net', segment=8, overlap=1).run(iter(clip))).equal(whole)


def test_windows_of_a_bidirectional_network_converge_to_the_whole_clip(saved: Callable[..., str]) -> None:
    """States fade, so the error sinks with the overlap; what is at least half of it away from a cut is nearly right."""
    net: Any = tiny_net(num_block=1)
    with torch.no_grad():
        for trunk in (net.forward_trunk, net.backward_trunk):
            trunk.main[0].weight.mul_(0.5)
    clip = torch.rand(30, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    whole, file = stack(super_resolve(net, clip)), saved(net)
    errors = [(stack(open_network(file, segment=12, overlap=overlap).run(clip)) - whole).abs().amax((1, 2, 3))
              for overlap in (0, 4, 8)]
    assert errors[0].max() > 5 * errors[1].max() > 25 * errors[2].max() > 0
    unsaid = (stack(open_network(file, segment=12).run(clip)) - whole).abs().amax((1, 2, 3))
    assert unsaid.equal(errors[1])
    near = torch.tensor([min(abs(i + 0.5 - cut) for cut in (12, 24)) for i in range(30)])
    assert errors[0][near > 4].max() < 0.01 * errors[0].max()


def test_networks_that_look_only_back_are_not_cut(saved: Callable[..., str]) -> None:
    net = tiny_net(bidirectional=False)
    clip = torch.rand(SEGMENT + OVERLAP, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert stack(open_network(saved(net)).run(clip)).equal(stack(super_resolve(net, clip)))
    assert stack(open_network(saved(net), segment=6, overlap=2, keep_states='host').run(clip)).equal(
        stack(super_resolve(net, clip, segment=6, overlap=2)))


def test_images_are_enlarged_one_by_one(saved: Callable[..., str]) -> None:
    net = PrunableEDSR(4, 1, scale=3).eval()
    clip = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    runner = open_network(saved(net), segment=2)
    with torch.no_grad():
        torch.testing.assert_close(stack(runner.run(clip)), net(clip))
    assert runner.scale == 3


@pytest.mark.parametrize('arguments, message', [
    ({'segment': 0}, '--segment 0'), ({'segment': 4, 'overlap': 4}, '--overlap 4'), ({'overlap': SEGMENT}, '--overlap'),
    ({'device': 'abacus'}, '--device abacus'), ({'reference': 'zoo://no_such_network'}, 'no_such_network'),
    ({'backend': 'abacus'}, "'abacus'"), ({'reference': '/nowhere.safetensors'}, 'nowhere'),
    ({'backend': 'openvino'}, 'runs in torch only'), ({'backend': 'openvino', 'device': 'cpu'}, '--device cpu is for'),
    ({'reference': 'net.onnx', 'segment': 4}, 'says itself how many frames it takes'),
    ({'reference': '/nowhere.xml'}, 'nowhere')])
def test_networks_that_cannot_be_opened(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((OSError, ValueError), match=message):
        open_network(**{'reference': 'bicubic', **arguments})


def test_a_flow_network_makes_no_frames(saved: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match='estimates flow'):
        open_network(saved(StandaloneSpyNet('small')))


# --- videos ---------------------------------------------------------------------------------------------------------


def pictures(count: int, coding: Coding, seed: int = 0, height: int = HEIGHT, width: int = WIDTH
             ) -> list[tuple[Tensor, ...]]:
    """Planes of a clip that moves."""
    generator = torch.Generator().manual_seed(seed)
    landscape = bicubic_resize(torch.rand(3, -(-height // 4), width // 2, generator=generator), 4.0)
    return [from_rgb(landscape.roll(-i, 2)[:, :height, :width], coding) for i in range(count)]


def to_frame(planes: tuple[Tensor, ...], name: str) -> av.VideoFrame:
    frame = av.VideoFrame(planes[0].shape[-1], planes[0].shape[-2], name)
    kind = np.uint16 if '10' in name else np.uint8
    for plane, values in zip(frame.planes, planes):
        rows = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, :plane.width] = values.numpy()
        plane.update(rows.tobytes())
    return frame


def decoded(file: Path, name: str | None = None) -> list[list[np.ndarray]]:
    """Planes of all frames."""
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
    found = []
    for frame in frames:
        assert name is None or frame.format.name == name
        kind = np.dtype(np.uint16 if '10' in frame.format.name else np.uint8)
        found.append([np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
                      [:plane.height, :plane.width].astype(np.int64) for plane in frame.planes])
    return found


def write_video(file: Path, planes: list[tuple[Tensor, ...]], name: str = 'yuv420p', times: list[int] | None = None,
                unit: Fraction = Fraction(1, 30000), codec: str = 'libx264', sound: bool = False,
                describe: Callable[[Any, Any], None] = lambda container, video: None, **options: Any) -> None:
    times = [1001 * i for i in range(len(planes))] if times is None else times
    with av.open(str(file), 'w', **options) as container:
        video: Any = container.add_stream(codec, rate=Fraction(30000, 1001), options={} if codec == 'ffv1' else {
            'qp': '0', 'bf': '0'})
        video.height, video.width = planes[0][0].shape[-2:]
        video.pix_fmt, video.time_base, video.codec_context.time_base = name, unit, unit
        context = video.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        describe(container, video)
        audio: Any = container.add_stream('aac', rate=16000, layout='mono') if sound else None
        for time, values in zip(times, planes):
            frame = to_frame(values, name)
            frame.pts, frame.time_base = time, unit
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            tone = np.sin(np.arange(int(16000 * float(times[-1] * unit))) / 9).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone[None], 'fltp', 'mono')
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def packets(file: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    container: Any
    with av.open(str(file)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(stream) if packet.size]


def times_of(file: Path) -> list[Fraction]:
    container: Any
    with av.open(str(file)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


@pytest.fixture(scope='module')
def net() -> nn.Module:
    return tiny_net(scale=2).eval()


@pytest.fixture(scope='module')
def runner(net: nn.Module) -> Runner:
    return Runner(2, lambda frames: super_resolve(net, frames), torch.device('cpu'))


def expected(net: nn.Module, planes: Iterable[Any], coding: Coding, out: Coding | None = None
             ) -> list[list[np.ndarray]]:
    """``super_resolve`` of decoded frames, converted."""
    lr = [to_rgb(tuple(torch.as_tensor(plane) for plane in frame), coding) for frame in planes]
    return [[plane.numpy() for plane in from_rgb(hr, out or coding)] for hr in super_resolve(net, stack(lr))]


def assert_same(found: list[list[np.ndarray]], wanted: list[list[np.ndarray]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert len(one) == len(other) and all(map(np.array_equal, one, other))


def run(source: Path, output: Path, runner: Runner, **options: Any) -> int:
    """The clips move too fast for so small frames to have no cuts."""
    return command.upscale(source, output, runner, **{'detect_scenes': False, **options})


LOSSLESS = Encoding(lossless=True)
YUV420 = KINDS['yuv420p']


@pytest.mark.parametrize('full', [False, True], ids=['limited', 'full'])
@pytest.mark.parametrize('matrix', [1, 6, 9])
@pytest.mark.parametrize('kind', KINDS)
def test_a_lossless_video_is_what_the_network_makes_of_the_decoded_one(
        kind: str, matrix: int, full: bool, net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    coding = KINDS[kind]._replace(matrix=matrix, full=full)

    def describe(container: Any, video: Any) -> None:
        video.codec_context.color_range, video.codec_context.colorspace = 2 if full else 1, matrix

    codec = 'ffv1' if kind == 'gray' else 'libx264'  # of which FFmpeg decodes grey as 4:2:0
    write_video(tmp_path / 'in.mkv', pictures(5, coding), kind, describe=describe, codec=codec)
    assert run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', runner, encoding=Encoding(codec, lossless=True)) == 0
    assert_same(decoded(tmp_path / 'out.mkv', kind.replace('yuv', 'yuvj') if full and kind in (
        'yuv420p', 'yuv422p', 'yuv444p') else kind), expected(net, decoded(tmp_path / 'in.mkv'), coding))
    with av.open(str(tmp_path / 'out.mkv')) as container:
        frame: Any = next(container.decode(video=0))
        assert (frame.color_range, frame.colorspace) == (2 if full else 1, matrix)


@pytest.mark.parametrize('codec', ['libx264', 'libx265', 'libvpx-vp9', 'ffv1'])
def test_encoders_that_are_told_to_are_lossless(codec: str, net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mkv', pictures(4, YUV420))
    assert run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', runner,
                           encoding=Encoding(codec, lossless=True)) == 0
    assert_same(decoded(tmp_path / 'out.mkv', 'yuv420p'),
                expected(net, decoded(tmp_path / 'in.mkv'), YUV420))


def test_codec_quality_and_pixel_format_are_those_that_are_asked_for(net: nn.Module, runner: Runner, tmp_path: Path
                                                                     ) -> None:
    write_video(tmp_path / 'in.mp4', pictures(4, YUV420))
    errors = []
    for crf in (5, 40):
        out = tmp_path / f'{crf}.mp4'
        run(tmp_path / 'in.mp4', out, runner, encoding=Encoding('libx265', crf, 'yuv444p10le'))
        with av.open(str(out)) as container:
            assert container.streams.video[0].codec_context.name == 'hevc'
        wanted = expected(net, decoded(tmp_path / 'in.mp4'), YUV420, KINDS['yuv444p10le'])
        errors.append(np.mean([np.abs(one[0] - other[0]).mean() for one, other in zip(
            decoded(out, 'yuv444p10le'), wanted)]))
    assert 0 < 5 * errors[0] < errors[1]


def test_packed_pixel_formats_and_rgb(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    coding = Coding()
    with av.open(str(tmp_path / 'in.mkv'), 'w') as container:
        video: Any = container.add_stream('ffv1', rate=25, width=WIDTH, height=HEIGHT, pix_fmt='bgr0')
        for number, (rgb,) in enumerate(pictures(3, coding)):
            frame = av.VideoFrame.from_ndarray(rgb.permute(1, 2, 0).numpy().copy(), 'rgb24').reformat(format='bgr0')
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', runner, encoding=Encoding('ffv1', lossless=True,
                                                                                         pix_fmt='bgr0'))
    with av.open(str(tmp_path / 'out.mkv')) as container:
        found = [[frame.to_ndarray(format='rgb24').transpose(2, 0, 1)] for frame in container.decode(video=0)]
    assert_same(found, expected(net, pictures(3, coding), coding))


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.mov'])
def test_times_of_a_variable_rate_are_kept(suffix: str, runner: Runner, tmp_path: Path) -> None:
    times = [0, 40, 50, 55, 200, 320, 321]
    write_video(tmp_path / f'in{suffix}', pictures(7, YUV420), times=times, unit=Fraction(1, 1000))
    run(tmp_path / f'in{suffix}', tmp_path / f'out{suffix}', runner)
    assert times_of(tmp_path / f'out{suffix}') == [Fraction(time, 1000) for time in times]


def test_everything_beside_the_pictures_is_copied(runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'plain.mp4', pictures(30, YUV420), sound=True)
    tags = {'title': 'Two cups', 'comment': 'seen twice', 'artist': 'nobody'}
    chapters = [{'id': 1, 'start': 0, 'end': 400, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'one'}},
                {'id': 2, 'start': 400, 'end': 1000, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'two'}}]
    said = [(0.1, 0.3, b'first'), (0.5, 0.4, b'second')]
    with av.open(str(tmp_path / 'plain.mp4')) as read, av.open(str(tmp_path / 'in.mkv'), 'w') as container:
        copies = {stream.index: container.add_stream_from_template(stream, opaque=True) for stream in read.streams}
        subtitles: Any = container.add_mux_stream('subrip', time_base=Fraction(1, 1000))
        copies[0].metadata['title'] = 'main'
        copies[1].metadata['language'], subtitles.metadata['language'] = 'fra', 'deu'
        container.add_attachment('font.ttf', 'font/ttf', b'letters')
        container.metadata.update(tags)
        container.set_chapters(chapters)  # type: ignore[arg-type]
        for packet in read.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                container.mux(packet)
        for begin, duration, text in said:
            packet = av.Packet(text)
            packet.stream, packet.time_base = subtitles, Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * begin)
            packet.duration = round(1000 * duration)
            container.mux(packet)
    assert run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', runner) == 0
    for kind in ('audio', 'subtitle'):
        assert packets(tmp_path / 'out.mkv', kind) == packets(tmp_path / 'in.mkv', kind) != []
    with av.open(str(tmp_path / 'out.mkv')) as container:
        assert container.metadata.items() >= {key.upper() if key != 'title' else key: value
                                              for key, value in tags.items()}.items()
        assert [chapter['metadata']['title'] for chapter in container.chapters()] == ['one', 'two']
        assert [chapter['end'] * (chapter['time_base'] or 0) for chapter in container.chapters()] == [Fraction(2, 5), 1]
        assert [(stream.type, stream.metadata.get('language'), stream.metadata.get('title'))
                for stream in container.streams][:3] == [('video', None, 'main'), ('audio', 'fra', None),
                                                         ('subtitle', 'deu', None)]
        assert [attachment.data for attachment in container.streams.attachments] == [b'letters']


@pytest.mark.parametrize('turn', [(0, False), (90, False), (180, False), (-90, True)], ids=str)
@pytest.mark.parametrize('suffix', ['.mp4', '.mov'])
def test_orientation_aspect_and_colours_are_written_back(suffix: str, turn: tuple[int, bool], runner: Runner,
                                                         tmp_path: Path) -> None:
    def describe(container: Any, video: Any) -> None:
        context = video.codec_context
        context.sample_aspect_ratio = Fraction(16, 11)
        context.color_primaries, context.color_trc, context.colorspace = 9, 16, 9  # BT.2020, PQ
        video.set_display_rotation(turn[0], hflip=turn[1])

    write_video(tmp_path / f'in{suffix}', pictures(2, YUV420), describe=describe)
    run(tmp_path / f'in{suffix}', tmp_path / f'out{suffix}', runner)
    seen = []
    for name in ('in', 'out'):
        with av.open(str(tmp_path / f'{name}{suffix}')) as container:
            frame: Any = next(container.decode(video=0))
            video = container.streams.video[0]
            seen.append((frame.rotation, [bytes(data) for data in frame.side_data.keys()
                                          if data.type.name == 'DISPLAYMATRIX'],
                         frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range,
                         video.sample_aspect_ratio))
    assert seen[0] == seen[1] and seen[0][2:] == (9, 16, 9, 1, Fraction(16, 11))


def test_images_of_a_turned_video_are_upright(runner: Runner, tmp_path: Path) -> None:
    for degrees, hflip, wanted in ((90, False, lambda image: np.rot90(image)), (180, True, lambda image: image[::-1]),
                                   (-90, False, lambda image: np.rot90(image, -1))):
        write_video(tmp_path / 'plain.mp4', pictures(1, YUV420))
        write_video(tmp_path / 'turned.mp4', pictures(1, YUV420),
                    describe=lambda container, video, d=degrees, h=hflip: video.set_display_rotation(d, hflip=h))
        for name in ('plain', 'turned'):
            run(tmp_path / f'{name}.mp4', tmp_path / f'{name}.png', runner, frames=1, overwrite=True)
        plain, turned = (np.array(Image.open(tmp_path / f'{name}.png')) for name in ('plain', 'turned'))
        assert np.array_equal(turned, wanted(plain))


def test_upright_follows_the_display_matrix() -> None:
    one = 1 << 16
    image = torch.arange(6).view(1, 2, 3)
    assert upright(image, (0, -one, 0, one, 0, 0, 0, 0, 1 << 30)).equal(torch.rot90(image, 1, (1, 2)))
    assert upright(image, (-one, 0, 0, 0, one, 0, 0, 0, 1 << 30)).equal(image.flip(2))
    assert upright(image, ()).equal(image)


def test_a_part_of_a_video_begins_at_time_0_with_its_own_sound(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mp4', pictures(60, YUV420), sound=True)
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', runner, start=15, frames=20, encoding=LOSSLESS) == 0
    lr = decoded(tmp_path / 'in.mp4')
    assert_same(decoded(tmp_path / 'out.mp4'), expected(net, lr[15:35], YUV420))
    begin, end = (n * Fraction(1001, 30000) for n in (15, 35))
    assert times_of(tmp_path / 'out.mp4') == [time - begin for time in times_of(tmp_path / 'in.mp4')[15:35]]
    sound = [(time - begin, data) for time, data in packets(tmp_path / 'in.mp4', 'audio') if begin <= time < end]
    found = packets(tmp_path / 'out.mp4', 'audio')
    assert [data for _, data in found] == [data for _, data in sound] and len(sound) > 5
    assert max(abs(one[0] - other[0]) for one, other in zip(found, sound)) <= Fraction(1, 1000)  # of the edit list


def test_states_do_not_cross_cuts(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    lr = [from_rgb(frame[:, :24, :32], YUV420) for frame in [*pan(0, 4), *pan(1, 5)]]
    write_video(tmp_path / 'in.mp4', lr)
    for detect, parts in ((True, (lr[:4], lr[4:])), (False, (lr,))):
        command.upscale(tmp_path / 'in.mp4', tmp_path / 'out.mp4', runner, encoding=LOSSLESS, detect_scenes=detect,
                        overwrite=True)
        assert_same(decoded(tmp_path / 'out.mp4'), [frame for part in parts for frame in expected(net, part, YUV420)])


def test_a_stream_that_the_format_cannot_hold_is_left_out_with_a_word(runner: Runner, tmp_path: Path, capsys: Any
                                                                      ) -> None:
    write_video(tmp_path / 'in.mp4', pictures(30, YUV420), sound=True)
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.webm', runner) == 0
    assert 'stream 1 (audio) is left out' in capsys.readouterr().err
    with av.open(str(tmp_path / 'out.webm')) as container:
        assert [stream.codec_context.name for stream in container.streams] == ['vp9']


def test_cover_pictures_are_copied_and_not_taken_for_the_video(runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'plain.mp4', pictures(3, YUV420))
    cover = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), 'rgb24')
    with av.open(str(tmp_path / 'plain.mp4')) as read, av.open(str(tmp_path / 'in.mp4'), 'w') as container:
        image: Any = container.add_stream('png', rate=1, width=16, height=16, pix_fmt='rgb24')
        image.disposition = Disposition.attached_pic
        copy = container.add_stream_from_template(read.streams[0], opaque=True)
        container.mux(image.encode(cover))
        container.mux(image.encode(None))
        for packet in read.demux():
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', runner) == 0
    with av.open(str(tmp_path / 'out.mp4')) as container:
        kinds = {stream.codec_context.name: (stream.codec_context.width, bool(
            stream.disposition & Disposition.attached_pic)) for stream in container.streams.video}
    assert kinds == {'png': (16, True), 'h264': (2 * WIDTH, False)}


# --- what goes wrong ------------------------------------------------------------------------------------------------


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def cut_off(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:int(share * len(data))])


@pytest.mark.parametrize('suffix', ['.mkv', '.mp4'])
def test_a_truncated_video_is_upscaled_up_to_where_it_breaks(suffix: str, net: nn.Module, runner: Runner,
                                                             tmp_path: Path, capsys: Any) -> None:
    options: dict[str, Any] = {} if suffix == '.mkv' else {'container_options': {'movflags': 'faststart'}}
    write_video(tmp_path / f'whole{suffix}', pictures(90, YUV420), sound=True, **options)
    (tmp_path / f'in{suffix}').write_bytes((tmp_path / f'whole{suffix}').read_bytes())
    cut_off(tmp_path / f'in{suffix}', 0.6)
    assert run(tmp_path / f'in{suffix}', tmp_path / f'out{suffix}', runner, encoding=LOSSLESS) == 1
    assert 'cut off' in (said := capsys.readouterr().err) and f'out.partial{suffix}' in said and said.count('\n') == 1
    assert left(tmp_path) == {f'whole{suffix}', f'in{suffix}', f'out.partial{suffix}'}
    found = decoded(tmp_path / f'out.partial{suffix}')
    assert 30 < len(found) < 80
    assert_same(found, expected(net, decoded(tmp_path / f'whole{suffix}')[:len(found)], YUV420))
    length = len(found) * Fraction(1001, 30000)
    assert length - Fraction(1, 8) < packets(tmp_path / f'out.partial{suffix}', 'audio')[-1][0] < length


def stopping(runner: Runner, signum: int, after: int) -> Runner:
    """Sends a signal to this process while it makes a frame, and goes on when the main thread has handled it."""
    def run(frames: Iterable[Tensor]) -> Iterator[Tensor]:
        for number, frame in enumerate(runner.run(frames)):
            if number == after:
                handler: Any = signal.getsignal(signum)
                os.kill(os.getpid(), signum)
                while not handler.__self__.signum:
                    time.sleep(0.001)
            yield frame
    return Runner(runner.scale, run, runner.device)


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', ''])
@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_playable_part(signum: int, suffix: str, net: nn.Module, runner: Runner, tmp_path: Path,
                                         capsys: Any) -> None:
    before = signal.getsignal(signum)
    write_video(tmp_path / 'in.mp4', pictures(60, YUV420), sound=True)
    assert run(tmp_path / 'in.mp4', tmp_path / f'out{suffix}', stopping(runner, signum, 20),
               encoding=LOSSLESS) == 128 + signum
    assert left(tmp_path) == {'in.mp4', f'out.partial{suffix}'}
    assert f'out.partial{suffix}' in capsys.readouterr().err and signal.getsignal(signum) is before
    if suffix:
        found = decoded(tmp_path / f'out.partial{suffix}')
        assert 10 < len(found) <= 21
        assert_same(found, expected(net, decoded(tmp_path / 'in.mp4'), YUV420)[:len(found)])
    else:
        assert 10 < len(left(tmp_path / 'out.partial')) <= 21


def test_a_signal_before_the_first_picture_leaves_nothing(runner: Runner, tmp_path: Path, capsys: Any) -> None:
    write_video(tmp_path / 'in.mp4', pictures(3, YUV420))
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', stopping(runner, signal.SIGTERM, 0)) == 143
    assert left(tmp_path) == {'in.mp4'} and 'Nothing is written' in capsys.readouterr().err


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file can grow beyond 4 kB, pytest's own log neither: so not a fixture, which lasts until after its report."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('name', ['out.mp4', 'out.mkv', 'out'])
def test_a_full_disk_leaves_nothing(name: str, runner: Runner, tmp_path: Path) -> None:
    noise = [from_rgb(torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(i)), YUV420) for i in range(30)]
    write_video(tmp_path / 'in.mp4', noise)
    with small_disk(), pytest.raises(OSError, match=r'cannot save .*File too large.*free some space'):
        run(tmp_path / 'in.mp4', tmp_path / name, runner, encoding=LOSSLESS)
    assert left(tmp_path) == {'in.mp4'}


def test_an_output_that_is_there_stays(runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mp4', pictures(3, YUV420))
    (tmp_path / 'out.mp4').write_text('mine')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').write_text('mine')
    for name in ('out.mp4', 'full'):
        with pytest.raises(ValueError, match=r'is there already: .*--overwrite'):
            run(tmp_path / 'in.mp4', tmp_path / name, runner)
    with pytest.raises(ValueError, match='is the input itself'):
        run(tmp_path / 'in.mp4', tmp_path / 'in.mp4', runner, overwrite=True)
    assert (tmp_path / 'out.mp4').read_text() == 'mine'
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', stopping(runner, signal.SIGTERM, 1), overwrite=True) == 143
    assert (tmp_path / 'out.mp4').read_text() == 'mine'  # what is partial has another name
    assert run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', runner, overwrite=True) == 0
    assert len(decoded(tmp_path / 'out.mp4')) == 3
    assert run(tmp_path / 'in.mp4', tmp_path / 'full', runner, overwrite=True) == 0
    assert left(tmp_path / 'full') == {'mine', '00000000.png', '00000001.png', '00000002.png'}


def encrypted(file: Path) -> None:
    key = '00112233445566778899aabbccddeeff'
    write_video(file, pictures(3, YUV420), container_options={
        'encryption_scheme': 'cenc-aes-ctr', 'encryption_key': key, 'encryption_kid': key})


def audio_only(file: Path) -> None:
    with av.open(str(file), 'w') as container:
        audio: Any = container.add_stream('aac', rate=16000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), 'fltp', 'mono')
        frame.sample_rate = 16000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def without_its_index(file: Path) -> None:
    write_video(file, pictures(9, YUV420))
    cut_off(file, 0.5)


def huge_image(file: Path) -> None:
    Image.new('L', (1, 1)).save(file)
    data = bytearray(file.read_bytes())
    data[16:24] = struct.pack('>II', 60000, 60000)  # in its header
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    file.write_bytes(data)


@pytest.mark.parametrize('name, make, message', [
    ('in.mp4', lambda file: None, 'there is no .*in.mp4'),
    ('in.mp4', lambda file: file.write_bytes(b''), 'is empty'),
    ('in.mp4', lambda file: file.write_bytes(bytes(range(256)) * 9), 'no video that FFmpeg can read'),
    ('in.mp4', without_its_index, 'no video that FFmpeg can read, or it is damaged'),
    ('in.m4a', audio_only, 'no moving pictures, only audio'),
    ('in.mp4', encrypted, 'is encrypted: decrypt it first'),
    ('in.png', lambda file: file.write_bytes(b'no image'), 'cannot read the image'),
    ('in.png', huge_image, 'is too large'),
    ('in.mp4', os.mkfifo, 'is a pipe'),
    ('in', lambda file: file.mkdir(), 'has no images'),
    ('in', lambda file: file.write_bytes(b'no video'), 'no video that FFmpeg can read'),
], ids=('missing', 'empty', 'junk', 'no-index', 'audio', 'encrypted', 'no-image', 'huge-image', 'pipe',
        'no-images', 'text'))
def test_inputs_that_cannot_be_read(name: str, make: Callable[[Path], object], message: str, runner: Runner,
                                    tmp_path: Path) -> None:
    make(tmp_path / name)
    before = left(tmp_path)
    with pytest.raises((OSError, ValueError), match=message):
        run(tmp_path / name, tmp_path / ('out.mp4' if 'png' not in name else 'out.png'), runner)
    assert left(tmp_path) == before


def test_videos_need_an_extra(runner: Runner, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, 'av', None)
    monkeypatch.delitem(sys.modules, 'basicsr_ssl.upscale.video')
    (tmp_path / 'in.mp4').write_bytes(b'a video')
    with pytest.raises(ValueError, match=r"PyAV, which is not installed: run pip install .*\[video\]"):
        run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', runner)


@pytest.mark.parametrize('out, options, message', [
    ('out.avi', {}, 'a video ends in one of'), ('out.png', {}, 'holds one image'),
    ('out.mp4', {'start': 9}, 'no picture from --start 9 on'),
    ('out.mp4', {'encoding': Encoding('h263x')}, 'no such encoder'),
    ('out.mp4', {'encoding': Encoding('aac')}, 'encodes audio'),
    ('out.webm', {'encoding': Encoding('libx264')}, 'cannot be libx264 .*does not support'),
    ('out.mp4', {'encoding': Encoding('libsvtav1', lossless=True)}, 'not known to be lossless'),
    ('out.mp4', {'encoding': Encoding(crf=20, lossless=True)}, '--crf'),
    ('out.mp4', {'encoding': Encoding(pix_fmt='yuv411p')}, '--pix-fmt yuv411p: libx264 has yuv420p'),
    ('out.mkv', {'encoding': Encoding('ffv1', crf=20)}, 'has no option crf'),
])
def test_outputs_that_cannot_be_written(out: str, options: dict[str, Any], message: str, runner: Runner,
                                        tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mp4', pictures(3, YUV420))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / 'in.mp4', tmp_path / out, runner, **options)
    assert left(tmp_path) == {'in.mp4'}


def test_odd_sizes(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    triple = Runner(3, lambda frames: (frame.repeat_interleave(3, 1).repeat_interleave(3, 2) for frame in frames),
                    runner.device)
    coding = KINDS['yuv444p']
    write_video(tmp_path / 'in.mkv', pictures(2, coding, height=19, width=21), 'yuv444p')
    with pytest.raises(ValueError, match='63 x 57 pixels do not fit yuv420p: add --pix-fmt yuv444p'):
        run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', triple, encoding=Encoding(pix_fmt='yuv420p'))
    run(tmp_path / 'in.mkv', tmp_path / 'out.mkv', triple, encoding=LOSSLESS)
    assert_same(decoded(tmp_path / 'out.mkv'), [[np.kron(plane, np.ones((3, 3), int)) for plane in frame]
                                                for frame in decoded(tmp_path / 'in.mkv')])


def test_more_pixels_than_memory(runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mp4', pictures(3, YUV420))
    greedy = Runner(2, runner.run, runner.device, bytes_per_pixel=1 << 40)
    with pytest.raises(ValueError, match=r'picture 0 has 32 x 24 pixels, for which this network needs .* GB'):
        run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', greedy)
    assert left(tmp_path) == {'in.mp4'}


def test_an_output_that_is_not_finite(runner: Runner, tmp_path: Path) -> None:
    write_video(tmp_path / 'in.mp4', pictures(3, YUV420))
    broken = Runner(2, lambda frames: (frame / 0 for frame in runner.run(frames)), runner.device)
    with pytest.raises(FloatingPointError, match='picture 0'):
        run(tmp_path / 'in.mp4', tmp_path / 'out.mp4', broken)
    assert left(tmp_path) == {'in.mp4'}


# --- memory ---------------------------------------------------------------------------------------------------------


class Alive:
    """Counts tensors that are alive."""

    def __init__(self) -> None:
        self.now, self.most, self._lock = 0, 0, threading.Lock()

    def note(self, tensor: Tensor) -> Tensor:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._gone)
        return tensor

    def _gone(self) -> None:
        self.now -= 1


@pytest.mark.parametrize('kind', ['unidirectional', 'bidirectional', 'image'])
def test_what_is_in_memory_does_not_grow_with_the_length(kind: str, saved: Callable[..., str], tmp_path: Path,
                                                         monkeypatch: Any) -> None:
    net = PrunableEDSR(4, 1, scale=2) if kind == 'image' else tiny_net(scale=2, bidirectional=kind == 'bidirectional')
    bounded: dict[str, Any] = {'segment': 6, 'overlap': 2} if kind == 'bidirectional' else {}
    runner = open_network(saved(net), **bounded)
    # a segment, the frames that make the next one, and a scene's first frame
    held = {'unidirectional': 3, 'bidirectional': 2 * 6 + 2, 'image': 2}[kind]
    planes, frames, results = Alive(), Alive(), Alive()
    decode, convert = VideoSource.pictures, command.to_rgb

    def counted(source: VideoSource) -> Iterator[Picture]:
        for picture in decode(source):
            planes.note(picture.planes[0])
            yield picture
            del picture

    monkeypatch.setattr(VideoSource, 'pictures', counted)
    monkeypatch.setattr(command, 'to_rgb', lambda *args: frames.note(convert(*args)))
    for count in (20, 60):
        write_video(tmp_path / 'in.mkv', pictures(count, YUV420))
        run(tmp_path / 'in.mkv', tmp_path / 'out', Runner(2, lambda lr: map(results.note, runner.run(lr)),
                                                          runner.device), overwrite=True)
        assert planes.most <= command.READ_AHEAD + 4
        assert frames.most <= held
        assert results.most <= 2
        assert (planes.now, frames.now, results.now) == (0, 0, 0)


# --- folders and images ---------------------------------------------------------------------------------------------


def pixels_of(rgb: Tensor) -> np.ndarray:
    return rgb.permute(1, 2, 0).numpy()


def image_of(pixels: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(pixels.copy()).permute(2, 0, 1)]


def test_a_folder_keeps_its_names(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    lr = {name: pixels_of(rgb[0]) for name, rgb in zip(
        ('im2.png', 'im10.png', 'im11.bmp'), pictures(3, Coding()))}
    (tmp_path / 'in').mkdir()
    for name, pixels in lr.items():
        Image.fromarray(pixels).save(tmp_path / 'in' / name)
    (tmp_path / 'in' / 'notes.txt').write_text('no image')
    assert run(tmp_path / 'in', tmp_path / 'deep' / 'out', runner) == 0
    wanted = expected(net, map(image_of, lr.values()), Coding())
    assert left(tmp_path / 'deep' / 'out') == set(lr)
    for name, (pixels,) in zip(lr, wanted):
        assert np.array_equal(np.array(Image.open(tmp_path / 'deep' / 'out' / name)), pixels.transpose(1, 2, 0))
    assert os.stat(tmp_path / 'deep' / 'out').st_mode == os.stat(tmp_path / 'deep').st_mode
    run(tmp_path / 'in', tmp_path / 'part', runner, start=1, frames=1)
    assert left(tmp_path / 'part') == {'im10.png'}


def test_an_image_keeps_what_its_file_says(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    rgb = pixels_of(pictures(1, Coding())[0][0])
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, 'Somebody'  # turned to the right; artist
    Image.fromarray(rgb).save(tmp_path / 'in.png', exif=exif, icc_profile=b'a profile')
    for name in ('out.png', 'out.jpg', 'out.webp'):
        assert run(tmp_path / 'in.png', tmp_path / name, runner) == 0
    (wanted,), = expected(net, [image_of(np.rot90(rgb, -1))], Coding())
    with Image.open(tmp_path / 'out.png') as image:
        assert np.array_equal(np.array(image), wanted.transpose(1, 2, 0))
        assert image.info['icc_profile'] == b'a profile'
        assert dict(image.getexif()) == {0x013B: 'Somebody'}
    smooth = bicubic_resize(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 4.0).clamp(0, 1)
    Image.fromarray(pixels_of(smooth[0].mul(255).byte())).save(tmp_path / 'smooth.png')
    double = Runner(2, lambda frames: (bicubic_resize(frame, 2.0) for frame in frames), runner.device)
    for name in ('smooth-2.png', 'smooth-2.jpg'):
        run(tmp_path / 'smooth.png', tmp_path / name, double)
    one, other = (np.array(Image.open(tmp_path / name)).astype(int) for name in ('smooth-2.png', 'smooth-2.jpg'))
    assert 0 < np.abs(one - other).mean() < 2


def test_lossless_images(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    Image.fromarray(pixels_of(pictures(1, Coding())[0][0])).save(tmp_path / 'in' / 'a.jpg')
    run(tmp_path / 'in', tmp_path / 'out', runner, encoding=LOSSLESS)
    wanted = expected(net, [image_of(np.array(Image.open(tmp_path / 'in' / 'a.jpg')))], Coding())
    assert np.array_equal(np.array(Image.open(tmp_path / 'out' / 'a.png')), wanted[0][0].transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r'b.jpg cannot be lossless'):
        run(tmp_path / 'in' / 'a.jpg', tmp_path / 'b.jpg', runner, encoding=LOSSLESS)


def test_images_become_a_video_and_a_video_images(net: nn.Module, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    lr = pictures(4, Coding())
    for i, (rgb,) in enumerate(lr):
        Image.fromarray(pixels_of(rgb)).save(tmp_path / 'in' / f'{i}.png')
    run(tmp_path / 'in', tmp_path / 'film.mp4', runner, start=1, encoding=Encoding(lossless=True, rate=Fraction(30)))
    assert times_of(tmp_path / 'film.mp4') == [Fraction(i, 30) for i in range(3)]
    assert_same(decoded(tmp_path / 'film.mp4', 'yuv420p'), expected(net, lr[1:], Coding(), YUV420))
    run(tmp_path / 'film.mp4', tmp_path / 'frames', runner, start=1, frames=2)
    found = [[np.array(Image.open(file)).transpose(2, 0, 1)] for file in sorted((tmp_path / 'frames').iterdir())]
    assert_same(found, expected(net, decoded(tmp_path / 'film.mp4')[1:], YUV420, Coding()))
    assert left(tmp_path / 'frames') == {'00000001.png', '00000002.png'}


def test_images_of_different_sizes(runner: Runner, net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    lr = [pixels_of(pictures(1, Coding(), height=size)[0][0]) for size in (16, 20, 20)]
    for i, pixels in enumerate(lr):
        Image.fromarray(pixels).save(tmp_path / 'in' / f'{i}.png')
    run(tmp_path / 'in', tmp_path / 'out', runner)
    found = [[np.array(Image.open(tmp_path / 'out' / f'{i}.png')).transpose(2, 0, 1)] for i in range(3)]
    assert_same(found, [*expected(net, [image_of(lr[0])], Coding()), *expected(net, map(image_of, lr[1:]), Coding())])
    assert run(tmp_path / 'in', tmp_path / 'out.mp4', runner) == 1  # which has one size
    assert len(decoded(tmp_path / 'out.partial.mp4')) == 1


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_preview_shows_bicubic_interpolation_beside_the_network(net: nn.Module, runner: Runner, tmp_path: Path
                                                                  ) -> None:
    write_video(tmp_path / 'in.mp4', pictures(40, YUV420))
    command.preview(tmp_path / 'in.mp4', tmp_path / 'out.png', runner, 25, detect_scenes=False)
    found = np.array(Image.open(tmp_path / 'out.png')).transpose(2, 0, 1)[:, -2 * HEIGHT:]
    frame = to_rgb(tuple(torch.from_numpy(plane) for plane in decoded(tmp_path / 'in.mp4')[25]), YUV420)
    (bicubic,) = from_rgb(bicubic_resize(frame, 2), Coding())
    seen = decoded(tmp_path / 'in.mp4')[25 - command.CONTEXT:26 + command.CONTEXT]
    (network,) = expected(net, seen, YUV420, Coding())[command.CONTEXT]
    assert np.array_equal(found, np.concatenate((bicubic.numpy(), network), 2))
    for arguments, message in (((tmp_path / 'out.mp4', runner, 3), 'an image'), ((tmp_path / 'b.png', runner, 40),
                                                                                  'no picture 40')):
        with pytest.raises(ValueError, match=message):
            command.preview(tmp_path / 'in.mp4', *arguments)
    assert left(tmp_path) == {'in.mp4', 'out.png'}


def test_lines_of_progress_where_there_is_no_terminal(capsys: Any) -> None:
    with command.Progress(3, interval=0) as progress:
        for _ in range(3):
            progress.step()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(' frames,')[0] for line in lines] == ['1 of 3', '2 of 3', '3 of 3']
    assert all('frames/s, 0:00:0' in line and line.endswith('left') for line in lines)
    with command.Progress(None, interval=0) as progress:
        progress.step()
    assert capsys.readouterr().err.startswith('1 frames, ')


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """With all its switches, and the network that comes along."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / 'in.mp4', pictures(9, YUV420))
    switches = '--start 2 --frames 5 --scenes off --segment 4 --overlap 2 --keep-states host --device cpu --lossless'
    assert cli.main(['upscale', 'in.mp4', 'out.mp4', *switches.split()]) == 0
    assert 'out.mp4: 5 pictures in 0:00:' in capsys.readouterr().out
    net = basicsr_ssl.load_network(zoo.resolve('zoo://basicvsr_small_x4'), dtype=torch.float32)
    lr = [to_rgb(tuple(map(torch.from_numpy, planes)), YUV420) for planes in decoded(tmp_path / 'in.mp4')[2:7]]
    wanted = [[plane.numpy() for plane in from_rgb(hr, YUV420)]
              for hr in super_resolve(net, stack(lr), segment=4, overlap=2)]
    assert_same(decoded(tmp_path / 'out.mp4'), wanted)
    assert cli.main(['upscale', 'in.mp4', 'out.mp4']) == 1
    assert capsys.readouterr().err.startswith('basicsr-ssl: out.mp4 is there already')
    assert cli.main(['upscale', 'in.mp4', 'out.png', '--preview', '3']) == 0
    assert Image.open('out.png').width == 8 * WIDTH
    with pytest.raises(SystemExit):
        cli.main(['upscale', 'in.mp4', 'b.mp4', '--frames', '0'])


# --- the network that comes along -----------------------------------------------------------------------------------


def folder_frames(folder: Path, count: int | None = None) -> list[Tensor]:
    return [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
            for file in sorted(folder.iterdir())[:count]]


def psnr_of(runner: Runner, clips: Path, name: str, count: int | None = None) -> float:
    """Mean of the frames' PSNR on Y, BasicSR's own, without a border."""
    lr = map(as_frame, folder_frames(clips / 'BIx4' / name, count))
    return float(np.mean([calculate_psnr(as_image(hr), as_image(gt), 0, test_y_channel=True)
                          for hr, gt in zip(runner.run(lr), folder_frames(clips / 'GT' / name, count))]))


@pytest.mark.parametrize('clip, more', [('vid4/city', 0.4), ('vid4/walk', 1.2), ('reds/seq_3', 0.8)])
def test_the_network_that_comes_along_is_better_than_bicubic(clip: str, more: float, test_data: Path) -> None:
    """By so many dB, on clips that it never saw."""
    benchmark, name = clip.split('/')
    carried: Any = basicsr_ssl.load_network(zoo.resolve(DEFAULT))
    assert 'Vid4, REDS4' in carried.provenance['never_seen']
    network, bicubic = (psnr_of(open_network(reference), test_data / benchmark, name, 3) for reference in
                        (None, 'bicubic'))
    assert network > bicubic + more


@pytest.mark.slow  # a minute of a core
@pytest.mark.timeout(1200)
def test_the_network_that_comes_along_reaches_what_its_file_says(test_data: Path) -> None:
    net: Any = basicsr_ssl.load_network(zoo.resolve(DEFAULT), dtype=torch.float32)
    said = net.provenance['metrics']['Vid4']['psnr']
    whole = Runner(4, lambda frames: super_resolve(net, frames), torch.device('cpu'))
    found = [psnr_of(whole, test_data / 'vid4', name) for name in ('calendar', 'city', 'foliage', 'walk')]
    assert sum(found) / 4 == pytest.approx(said, abs=1e-3)


# --- other runtimes -------------------------------------------------------------------------------------------------


def test_other_backends_make_the_same_frames(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """From the network's file and from exported ones: to 1e-5, which moves less than 1 % of samples of 8 bits by 1."""
    for module in ('onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    net = tiny_net(bidirectional=False, scale=2).eval()
    basicsr_ssl.save_network(net, 'net.safetensors')
    step = ['--form', 'step', '--size', f'{HEIGHT}', f'{WIDTH}']
    assert cli.main(['export', 'net.safetensors', 'net.onnx', *step]) == 0
    assert cli.main(['export', 'net.safetensors', 'net.xml', '--format', 'openvino', *step]) == 0
    write_video(Path('in.mp4'), pictures(4, YUV420))
    common = ['--lossless', '--scenes', 'off']
    assert cli.main(['upscale', 'in.mp4', 'torch.mkv', *common, '--net', 'net.safetensors']) == 0
    wanted = decoded(Path('torch.mkv'))
    ways = {'a': '--net net.safetensors --backend openvino', 'b': '--net net.onnx', 'c': '--net net.xml',
            'd': '--net net.onnx --backend openvino'}
    for name, way in ways.items():
        assert cli.main(['upscale', 'in.mp4', f'{name}.mkv', *common, *way.split()]) == 0
        found = decoded(Path(f'{name}.mkv'))
        assert len(found) == len(wanted) == 4
        for one, other in zip(found, wanted):
            for plane, expected_plane in zip(one, other):
                difference = np.abs(plane.astype(int) - expected_plane)
                assert difference.max() <= 1 and difference.mean() < 0.01
    lr = stack(to_rgb(tuple(map(torch.from_numpy, planes)), YUV420) for planes in decoded(Path('in.mp4')))
    for reference, backend in (('net.onnx', 'onnxruntime'), ('net.xml', None)):
        runner = open_network(reference, backend)  # type: ignore[arg-type]
        assert runner.scale == 2
        for _ in range(2):  # two scenes
            torch.testing.assert_close(stack(runner.run(iter(lr))), stack(super_resolve(net, lr)), rtol=0, atol=1e-5)

    write_video(Path('wide.mp4'), pictures(2, YUV420, width=WIDTH + 16))
    before = left(tmp_path)
    for way, message in (('wide.mp4 out.mp4 --net net.onnx', f'exported for frames of {HEIGHT}x{WIDTH}, not of 24x48'),
                         ('in.mp4 out.mp4 --net net.xml --backend torch', 'is run by openvino, not by torch')):
        capsys.readouterr()
        assert cli.main(['upscale', *way.split()]) == 1
        assert message in capsys.readouterr().err
    assert left(tmp_path) == before
