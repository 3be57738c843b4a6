"""Testing clips: the figures are BasicSR's on frames computed the plain way; memory, threads and errors are bounded."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import get_root_logger
from basicsr.utils.matlab_functions import imresize
from hypothesis import given
from hypothesis import strategies as st
from nets import clip, tiny_net
from pydantic import ValidationError
from tiny_runs import write_clips
from torch import Tensor, nn

from basicsr_ssl.archs import BicubicUpsampler, StandaloneSpyNet
from basicsr_ssl.config.sections import Val
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.data.frames import DatasetError, LazyFrames
from basicsr_ssl.evaluation import clips as measuring
from basicsr_ssl.evaluation.clips import FRAMES_PER_THREAD, Part, combine, measure_clips
from basicsr_ssl.evaluation.evaluate import TestSet, evaluate, measure
from basicsr_ssl.evaluation.inference import as_frame, as_image, segments, super_resolve
from basicsr_ssl.report.benchmarks import benchmark_table
from basicsr_ssl.runtime import Processes, Run

CPU = torch.device('cpu')
RGB = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'higher'},
       'ssim': {'type': 'calculate_ssim', 'crop_border': 0}}


def settings(folder: Path | str = '.', metrics: dict[str, Any] | None = None, rank: int = 0, world_size: int = 1,
             **val: Any) -> tuple[dict[str, Any], Run]:
    """Section ``val``, and the run of a test whose pictures lie in ``folder``/visualization."""
    return ({'flip_seq': False, 'center_frame_only': False, 'pbar': False, 'save_img': False, 'metrics': metrics or RGB,
             **val}, Run(Processes(rank, world_size, CPU, world_size > 1), 'run', str(folder)))


def held_clips(folder: Path, **options: Any) -> ClipFoldersTestDataset:
    return ClipFoldersTestDataset({'name': 'held', 'type': 'ClipFoldersTestDataset', 'phase': 'test',
                                   'dataroot_gt': str(folder), **options})


def read_clip(folder: Path) -> tuple[list[np.ndarray], Tensor]:
    """GT as BasicSR reads it, (h, w, 3) BGR, and the LR clip that BasicSR's imresize makes, (n, 3, h, w) in [0, 1]."""
    gt = [np.asarray(cv2.imread(str(file))) for file in sorted(folder.iterdir())]
    lq = [np.floor(imresize(image.astype(np.float64), 0.25).clip(0, 255) + 0.5) for image in gt]
    return gt, torch.from_numpy(np.stack(lq)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def eight_bit(out: Tensor) -> list[np.ndarray]:
    """Frames (n, 3, h, w) as (h, w, 3) uint8 BGR."""
    return [np.rint(frame.transpose(1, 2, 0)[..., ::-1] * np.float32(255)).astype(np.uint8)
            for frame in out.clamp(0, 1).numpy()]


class Clips:
    """A test set of ready-made clips (n, 3, h, w) uint8 by name, four times enlarged as GT."""

    def __init__(self, clips: dict[str, Tensor]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, lq = list(self.clips.items())[index]
        gt = lq.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return {'lq': lq, 'gt': gt, 'folder': name, 'names': [f'{i:08d}' for i in range(len(lq))]}


def bicubic(frame: Tensor) -> Tensor:
    return BicubicUpsampler(4)(frame[:, None])[:, 0]


def noise(frames: int, height: int = 6, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_clips(tmp_path_factory.mktemp('clips'), clips=3, frames=5, size=(32, 48))
    (folder / 'clip_1' / '00000004.png').unlink()  # clips of unequal length: the mean of clip means is another one
    return folder


# ---- figures

@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('kind', ['bi', 'uni', 'spynet', 'bicubic'])
def test_figures_are_basicsrs_on_the_output_of_the_whole_clip(clips: Path, kind: str, processes: int,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = BicubicUpsampler(4) if kind == 'bicubic' else tiny_net(
        bidirectional=kind != 'uni', flow='spynet' if kind == 'spynet' else 'none').eval()
    metrics = {**RGB, 'ssim_y': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}}
    if processes == 1:
        result = measure_clips(net, held_clips(clips), 'held', *settings(metrics=metrics))
    else:  # one after the other, each with what it would gather
        parts: list[Any] = []

        def gather(part: Any) -> list[Any]:
            parts.append(part)
            return parts

        for rank in range(processes):
            monkeypatch.setattr(measuring, '_gather', gather)
            with contextlib.nullcontext() if rank else pytest.raises(ValueError, match='of 3 clips only 2 have names'):
                result = measure_clips(net, held_clips(clips), 'held', *settings(
                    metrics=metrics, rank=rank, world_size=processes))
        assert [sorted(part[0]) for part in parts] == [['clip_0', 'clip_2'], ['clip_1']]
    expected = {}
    for folder in sorted(clips.iterdir()):
        gt, lq = read_clip(folder)
        with torch.no_grad():
            images = eight_bit(net(lq[None])[0])
        expected[folder.name] = {
            'frames': len(gt), 'psnr': sum(calculate_psnr(a, b, 0) for a, b in zip(images, gt)) / len(gt),
            'ssim': sum(calculate_ssim(a, b, 0) for a, b in zip(images, gt)) / len(gt),
            'ssim_y': sum(calculate_ssim(a, b, 2, test_y_channel=True) for a, b in zip(images, gt)) / len(gt)}
    assert [values['frames'] for values in expected.values()] == [5, 4, 5]
    assert result.clips == expected
    for name in metrics:
        assert result.metrics[name] == pytest.approx(sum(values[name] for values in expected.values()) / 3, rel=1e-14)
    assert set(result.metrics) == set(metrics) and result.segment is None


def test_centre_frame_of_the_clip_and_its_mirror_image(clips: Path) -> None:
    """The protocol of Vimeo90K-T, with BasicSR's own expression for the average."""
    net = tiny_net(bidirectional=False).eval()
    result = measure_clips(net, held_clips(clips), 'held', *settings(flip_seq=True, center_frame_only=True))
    for folder in clips.iterdir():
        gt, lq = read_clip(folder)
        n = len(gt)
        with torch.no_grad():
            output = net(torch.cat([lq, lq.flip(0)], dim=0)[None])
            output = 0.5 * (output[:, :n] + output[:, n:].flip(1))
        image = eight_bit(output[0, n // 2][None])[0]
        assert result.clips[folder.name] == {
            'frames': 1, 'psnr': calculate_psnr(image, gt[n // 2], 0), 'ssim': calculate_ssim(image, gt[n // 2], 0)}


def test_saved_frames_are_the_measured_ones(clips: Path, tmp_path: Path) -> None:
    net = tiny_net().eval()
    measure_clips(net, held_clips(clips, clips=['clip_1']), 'set', *settings(tmp_path, save_img=True))
    _, lq = read_clip(clips / 'clip_1')
    with torch.no_grad():
        images = eight_bit(net(lq[None])[0])
    files = sorted((tmp_path / 'visualization' / 'set' / 'clip_1').iterdir())
    assert [file.name for file in files] == [f'{i:08d}_run.png' for i in range(4)]
    for file, image in zip(files, images, strict=True):
        assert np.array_equal(cv2.imread(str(file)), image)  # type: ignore[arg-type]


def test_sample_frame_of_tensorboard(clips: Path) -> None:
    shown = {}
    writer = SimpleNamespace(add_image=lambda tag, image, step, dataformats: shown.update({tag: (image, step)}))
    measure_clips(BicubicUpsampler(4), held_clips(clips), 'held', *settings(), writer, 7)
    gt, lq = read_clip(clips / 'clip_0')
    assert shown.keys() == {'held/clip_0/result', 'held/clip_0/gt'}
    assert np.array_equal(shown['held/clip_0/gt'][0], gt[2][..., ::-1]) and shown['held/clip_0/gt'][1] == 7
    assert np.array_equal(shown['held/clip_0/result'][0], eight_bit(BicubicUpsampler(4)(lq[2:3]))[0][..., ::-1])


def test_eight_bit_images_are_basicsrs() -> None:
    from basicsr.utils import tensor2img
    levels = torch.arange(-6, 1030, dtype=torch.float32) / 4 / 255  # beyond both ends, and every half level
    frame = levels[torch.randperm(1036, generator=torch.Generator().manual_seed(0))][:1032].view(3, 8, 43)
    assert np.array_equal(as_image(frame), np.asarray(tensor2img([frame.clone()])))
    pixels = noise(1)[0]
    assert np.array_equal(as_image(pixels), pixels.numpy().transpose(1, 2, 0)[..., ::-1])
    assert np.array_equal(as_image(as_frame(pixels)), as_image(pixels))


def test_seconds_are_those_of_inference_for_each_lr_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network needs 2 s for a frame of clip a and 5 s for one of b; reading an item takes 1000 s."""
    clock = SimpleNamespace(time=0.0)
    monkeypatch.setattr(measuring, '_now', lambda device: clock.time)

    class Slow(nn.Module):
        def stream(self, frames: Iterable[Tensor], keep: str) -> Any:
            for frame in frames:
                clock.time += 2 if frame.shape[-1] == 8 else 5
                yield bicubic(frame)

    class SlowClips(Clips):
        def __getitem__(self, index: int) -> dict[str, Any]:
            clock.time += 1000
            return super().__getitem__(index)

    test_set = SlowClips({'a': noise(3), 'b': noise(6, width=9)})
    for centre in (False, True):
        result = measure_clips(Slow(), test_set, 'set', *settings(metrics={'psnr': RGB['psnr']},
                                                                     center_frame_only=centre))
        assert result.seconds_per_frame == (3 * 2 + 6 * 5) / 9
        assert [values['frames'] for values in result.clips.values()] == ([1, 1] if centre else [3, 6])


def test_many_clips_with_names_of_two_parts(caplog: pytest.LogCaptureFixture) -> None:
    names = [f'{i // 10:05d}/{i % 10:04d}' for i in range(200)]
    options = settings(metrics={'psnr': RGB['psnr']})
    test_set = Clips({name: noise(1, 4, 4, i) for i, name in enumerate(names)})
    logger, tags = get_root_logger(), []
    writer = SimpleNamespace(add_scalar=lambda *entry: tags.append(entry), add_image=lambda *entry, **more: None)
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            result = measure(BicubicUpsampler(4), test_set, 'Vimeo90K-T', *options, writer, 3)
    finally:
        logger.removeHandler(caplog.handler)
    assert list(result.clips) == names
    assert caplog.messages[-1].splitlines() == [
        'Validation Vimeo90K-T', f'\t # psnr: {result.metrics["psnr"]:.4f}\tmean of 200 clips']
    assert tags == [('metrics/Vimeo90K-T/psnr', result.metrics['psnr'], 3)]


def test_no_metric_can_take_the_name_of_another_figure() -> None:
    metric = {'type': 'calculate_psnr', 'crop_border': 0}
    clips = measure_clips(BicubicUpsampler(4), Clips({'a': noise(1)}), 'set', *settings()).clips
    cell = {'network': 'net', 'params': 0, 'psnr': 30.0}
    for name in ({*clips['a']} - {*RGB}) | (cell.keys() - {*RGB}):
        with pytest.raises(ValidationError, match=f'should not be named {name}'):
            Val.model_validate({'metrics': {name: metric}})


# ---- segments

class Segment(NamedTuple):
    """Frames ``start`` to ``stop`` of a clip; those from ``first`` to ``last`` are its result."""
    start: int
    stop: int
    first: int
    last: int


def cut(frames: int, length: int, overlap: int) -> list[Segment]:
    """The segments of a clip that is an iterator, whose frames are numbers."""
    found = []
    for seen, first, last in segments(iter(range(frames)), length, overlap):
        assert seen == list(range(seen[0], seen[-1] + 1))
        found.append(Segment(seen[0], seen[-1] + 1, seen[0] + first, seen[0] + last))
    return found


@pytest.mark.parametrize(('frames', 'length', 'overlap', 'expected'), [
    (5, 5, 4, [(0, 5, 0, 5)]),
    (5, 8, 2, [(0, 5, 0, 5)]),
    (8, 4, 0, [(0, 4, 0, 4), (4, 8, 4, 8)]),
    (10, 4, 2, [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]),
    (9, 4, 1, [(0, 4, 0, 3), (3, 7, 3, 6), (5, 9, 6, 9)]),
    (3, 1, 0, [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),
])
def test_segments_by_hand(frames: int, length: int, overlap: int, expected: list[tuple[int, ...]]) -> None:
    assert cut(frames, length, overlap) == [Segment(*numbers) for numbers in expected]


@given(st.data())
def test_every_frame_comes_from_the_segment_with_most_frames_around_it(data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, 40))
    length = data.draw(st.integers(1, 40))
    overlap = data.draw(st.integers(0, length - 1))
    found = cut(frames, length, overlap)

    def around(segment: Segment, frame: int) -> int:
        """Frames between this one and the nearest cut; the ends of the clip are no cuts."""
        left = frame - segment.start if segment.start else frames
        right = segment.stop - 1 - frame if segment.stop < frames else frames
        return min(left, right)

    assert [i for segment in found for i in range(segment.first, segment.last)] == list(range(frames))
    assert {segment.stop - segment.start for segment in found} == {min(length, frames)}
    assert all(one.stop - other.start >= overlap for one, other in pairwise(found))
    for segment in found:
        for i in range(segment.first, segment.last):
            assert segment.start <= i < segment.stop
            assert around(segment, i) == max(around(other, i) for other in found if other.start <= i < other.stop)


@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_segments_hold_no_more_than_twice_their_length(frames: int, length: int, data: st.DataObject) -> None:
    taken: list[int] = []
    numbers = (taken.append(i) or i for i in range(frames))
    for seen, _, _ in segments(numbers, length, data.draw(st.integers(0, length - 1))):
        assert len(taken) - seen[0] <= 2 * length


@pytest.mark.parametrize('flip_seq', [False, True])
def test_segments_of_a_clip_are_run_as_clips(flip_seq: bool) -> None:
    net, lq = tiny_net().double().eval(), clip(9, dtype=torch.float64)[0]
    result = torch.stack(list(super_resolve(net, lq, flip_seq, 4, 1)))
    for (start, stop), used in (((0, 4), (0, 1, 2)), ((3, 7), (3, 4, 5)), ((5, 9), (6, 7, 8))):
        piece = lq[start:stop]
        with torch.no_grad():
            if flip_seq:
                both = net(torch.cat((piece, piece.flip(0)))[None])[0]
                out = 0.5 * (both[:4] + both[4:].flip(0))
            else:
                out = net(piece[None])[0]
        for i in used:
            assert torch.equal(result[i], out[i - start])
    with torch.no_grad():
        assert float((result - net(lq[None])[0]).abs().max()) > 1e-6 or flip_seq  # the cuts do change the result


def test_only_results_of_segments_are_marked() -> None:
    test_set = Clips({'short': noise(3), 'long': noise(7)})
    options = settings(metrics={'psnr': RGB['psnr']}, segment=7, overlap=2)
    whole = measure_clips(tiny_net().eval(), test_set, 'set', *options)
    assert whole.segment is None
    cut = measure_clips(tiny_net().eval(), test_set, 'set', *settings(metrics={'psnr': RGB['psnr']}, segment=4,
                                                                          overlap=2))
    assert cut.segment == {'frames': 4, 'overlap': 2}
    assert cut.clips['short'] == whole.clips['short'] and cut.clips['long'] != whole.clips['long']


@pytest.mark.parametrize(('val', 'message'), [
    ({'overlap': 2}, 'is of segments; give segment, their length, too'),
    ({'segment': 4, 'overlap': 4}, '4 is not below segment, 4; segments would not advance'),
    ({'segment': 0}, 'greater than or equal to 1'),
    ({'keep_states': 'disk'}, "'device' or 'host'"),
    ({'metrics': {'frames': RGB['psnr']}}, 'should not be named frames: results hold other figures under these names')])
def test_options_that_cannot_be(val: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Val.model_validate(val)


def test_options_of_segments() -> None:
    assert Val.model_validate({'segment': 5, 'overlap': 4, 'keep_states': 'host'}).overlap == 4
    assert Val.model_validate({}).segment is None


# ---- memory

class Alive:
    """How many of the tensors or arrays that were shown to it still live, and how many did at most."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Any]] = []
        self.most = 0

    def note(self, thing: Any) -> None:
        self.references.append(weakref.ref(thing))
        self.most = max(self.most, self.count())

    def see(self, thing: Any) -> Any:
        self.note(thing)
        return thing

    def count(self) -> int:
        return sum(reference() is not None for reference in self.references)


@pytest.mark.parametrize('keep', ['device', 'host'])
@pytest.mark.parametrize('bidirectional', [True, False], ids=['bi', 'uni'])
def test_streaming_holds_the_backward_states_to_come_and_little_else(bidirectional: bool, keep: Any) -> None:
    net = tiny_net(bidirectional=bidirectional)
    forward, backward, frames = Alive(), Alive(), Alive()

    def watch(trunk: Any, alive: Alive) -> None:
        run = trunk.infer
        trunk.infer = lambda features: alive.see(run(features))

    watch(net.forward_trunk, forward)
    if bidirectional:
        watch(net.backward_trunk, backward)
    n = 9
    frames_given: Any = clip(n).unbind(1)
    stream: Any = net.stream(frames_given, keep)
    for i in range(n):
        frames.see(next(stream))
        assert frames.count() <= 1  # PyTorch's no_grad around a generator remembers what came last
        assert backward.count() == (n - 1 - i if bidirectional else 0)
    assert len(frames.references) == n and frames.most <= 2
    assert forward.most <= 2  # one, and the next while it is being made
    stream.close()
    assert forward.count() == 0


def test_frames_wait_for_their_measurement_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.os, 'sched_getaffinity', lambda process: {0, 1}, raising=False)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    outputs, images = Alive(), Alive()

    def enlarge(frame: Tensor) -> Tensor:
        return outputs.see(frame.repeat_interleave(4, 2).repeat_interleave(4, 3))

    class Net(nn.Module):
        def stream(self, frames: Iterable[Tensor], keep: str) -> Any:
            return map(enlarge, frames)

    def slowly(*args: Any) -> float:
        time.sleep(0.003)  # so that inference would run ahead
        return 1.0

    monkeypatch.setattr(measuring, 'calculate_metric', slowly)
    monkeypatch.setattr(measuring, 'as_image', lambda frame: images.see(as_image(frame)))
    result = measure_clips(Net(), Clips({'a': noise(40), 'b': noise(40)}), 'set',
                            *settings(metrics={'psnr': RGB['psnr']}))
    assert result.metrics['psnr'] == 1 and len(outputs.references) == 80
    assert outputs.most <= 2  # one, and the next while it is being made
    # two threads: their frames, those that wait, and the one that is made meanwhile; and as many GT frames as threads
    assert images.most <= measuring.FRAMES_PER_THREAD * 2 + 1 + 2
    assert images.most > 2


@pytest.mark.parametrize('segment', [None, 3])
def test_lr_frames_are_read_ahead_in_bounded_number(segment: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a clip is; and those of the next one before it ends."""
    monkeypatch.setattr(measuring.os, 'sched_getaffinity', lambda process: {0, 1}, raising=False)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    read, given = Alive(), Alive()
    ahead: list[int] = []

    class Net(nn.Module):
        """One that takes each frame only when it is its turn."""
        def stream(self, frames: Iterable[Tensor], keep: str) -> Any:
            for frame in frames:
                end = time.monotonic() + 30
                while len(read.references) <= len(given.references) < 75 and time.monotonic() < end:
                    time.sleep(0.001)  # some frames are left, and threads to read them
                ahead.append(len(read.references) - len(given.references))
                yield bicubic(frame)

    class Long(Clips):
        def __getitem__(self, index: int) -> dict[str, Any]:
            item = super().__getitem__(index)
            return {**item, 'lq': LazyFrames(len(item['lq']), lambda i: read.see(noise(1, seed=i)[0]))}

    monkeypatch.setattr(measuring, 'as_frame', lambda pixels: given.see(as_frame(pixels)))
    result = measure_clips(Net(), Long({'a': noise(40), 'b': noise(40)}), 'set', *settings(
        metrics={'psnr': RGB['psnr']}, segment=segment))
    assert len(read.references) == 80 and result.clips['a']['frames'] == result.clips['b']['frames'] == 40
    # two threads: their frames, and that which is made float32
    assert read.most <= 2 * FRAMES_PER_THREAD + 1
    assert given.most <= (2 if segment is None else 2 * segment + 1)  # one, and the next while it is being made
    assert ahead[69] > 0


def test_frames_of_clips_come_in_order() -> None:
    clips = {name: noise(frames, seed=ord(name)) for name, frames in (('a', 3), ('b', 0), ('c', 1), ('d', 9))}
    with measuring._Threads() as threads:
        found = [(index, item['folder'], list(frames)) for index, item, frames in measuring._clips_ahead(
            Clips(clips), [3, 0, 1, 2], threads)]
    assert [(index, name) for index, name, _ in found] == [(3, 'd'), (0, 'a'), (1, 'b'), (2, 'c')]
    for _, name, frames in found:
        assert len(frames) == len(clips[name]) and all(map(torch.equal, frames, clips[name]))


# ---- errors

def fails(error: type[Exception], message: str, *args: Any, **more: Any) -> None:
    """measure_clips must raise ``error`` with one line that matches, and leave no thread behind."""
    before = threading.active_count()
    with pytest.raises(error, match=message) as caught:
        measure_clips(*args, **more)
    assert '\n' not in str(caught.value)
    assert threading.active_count() == before


def test_gt_frame_that_cannot_be_read_while_it_is_measured(clips: Path, tmp_path: Path) -> None:
    for folder in sorted(clips.iterdir()):
        for file in sorted(folder.iterdir()):
            for name in ('gt', 'lq'):
                (tmp_path / name / folder.name).mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            damaged = (folder.name, file.name) == ('clip_2', '00000003.png')
            (tmp_path / 'gt' / folder.name / file.name).write_bytes(content[:len(content) // 2] if damaged else content)
            small = imresize(np.asarray(cv2.imread(str(file))).astype(np.float64), 0.25).clip(0, 255)
            cv2.imwrite(str(tmp_path / 'lq' / folder.name / file.name), np.rint(small).astype(np.uint8))
    test_set = held_clips(tmp_path / 'gt', dataroot_lq=str(tmp_path / 'lq'))
    fails(DatasetError, rf'cannot read the image {tmp_path}/gt/clip_2/00000003\.png: .*truncated', tiny_net().eval(),
          test_set, 'held', *settings())


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # NumPy's, of the mean of nothing
@pytest.mark.parametrize(('metric', 'message'), [
    ({'type': 'calculate_psnr', 'crop_border': 12}, 'set: frame 00000000 of a: val: metrics: figure: crop_border 12 '
     'leaves nothing of 24 x 32 pixels; lower it'),
    ({'type': 'calculate_ssim', 'crop_border': 40}, 'figure: crop_border 40 leaves nothing of 24 x 32 pixels'),
    ({'type': 'calculate_ssim', 'crop_border': 7}, 'figure is not defined for 24 x 32 pixels with crop_border 7; SSIM '
     'needs at least 11 x 11')])
def test_metrics_that_are_not_defined(metric: dict[str, Any], message: str) -> None:
    fails(ValueError, message, BicubicUpsampler(4), Clips({'a': noise(2)}), 'set', *settings(
        metrics={'figure': metric}))


def test_other_errors_name_the_frame_and_the_remedy(tmp_path: Path) -> None:
    clips = Clips({'a': noise(2), 'b': noise(3)})
    fails(ValueError, 'set: frame 00000000 of a: the network makes frames of 12 x 16, but GT has 24 x 32. Check scale',
          BicubicUpsampler(2), clips, 'set', *settings())
    (tmp_path / 'visualization').write_text('a file where a folder must be made')
    fails(OSError, rf'cannot save {tmp_path}/visualization/set/a/00000000_run\.png: .*save_img: false',
          BicubicUpsampler(4), clips, 'set', *settings(tmp_path, save_img=True))
    broken: Any = tiny_net().eval()
    broken.conv_last.bias.data.fill_(float('nan'))
    fails(FloatingPointError, 'set: frame 00000000 of a: the output of the network is not finite', broken, clips,
          'set', *settings())

    class SameNames(Clips):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), 'folder': 'same'}

    fails(ValueError, 'set: two clips are named same; rename one, or leave it out', BicubicUpsampler(4),
          SameNames(clips.clips), 'set', *settings())


def test_an_interruption_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.os, 'sched_getaffinity', lambda process: {0}, raising=False)
    begun, release, ran = threading.Event(), threading.Event(), []

    def blocks() -> None:
        begun.set()
        release.wait(30)

    with pytest.raises(KeyboardInterrupt), measuring._Threads() as threads:
        assert threads.count == 1
        threads.submit(blocks)
        waiting = [threads.submit(ran.append, i) for i in range(5)]
        assert begun.wait(30)
        threading.Timer(0.1, release.set).start()
        raise KeyboardInterrupt
    assert not ran and all(future.cancelled() for future in waiting)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.os, 'sched_getaffinity', lambda process: set(range(10)), raising=False)
    for processes, expected in ((1, 10), (4, 2), (16, 1)):
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
        with measuring._Threads() as threads:
            assert threads.count == expected


def test_infinite_psnr_of_a_clip_does_not_make_the_mean_infinite() -> None:
    def mean(*clips: list[float]) -> float:
        measured = {str(i): [{'psnr': value} for value in values] for i, values in enumerate(clips)}
        part = Part(measured, {clip: len(values) for clip, values in measured.items()}, 1.0)
        return combine(part, ['psnr'], len(clips), 'set').metrics['psnr']

    assert mean([30.0, 20.0], [math.inf], [21.0, math.inf], [35.0]) == 30
    assert mean([math.inf], [math.inf]) == math.inf


# ---- other tasks than clips

class Enlarge(nn.Module):
    """An image network that cannot see two frames at once, and counts how often it runs."""
    task = 'image'
    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, _ = x.shape
        assert b == 1
        self.runs += 1
        return bicubic(x) * 0.9


def test_image_network_runs_clips_frame_by_frame(clips: Path) -> None:
    kinds: tuple[dict[str, Any], ...] = ({}, {'flip_seq': True}, {'segment': 2, 'overlap': 1})
    for val in kinds:  # none of which an image knows anything about
        net = Enlarge()
        result = measure(net, held_clips(clips), 'held', *settings(**val))
        assert net.runs == 14 and result.segment is None
        for folder in clips.iterdir():
            gt, lq = read_clip(folder)
            images = eight_bit(bicubic(lq) * 0.9)
            assert result.clips[folder.name] == {
                'frames': len(gt), 'psnr': sum(calculate_psnr(a, b, 0) for a, b in zip(images, gt)) / len(gt),
                'ssim': sum(calculate_ssim(a, b, 0) for a, b in zip(images, gt)) / len(gt)}


def test_images_are_clips_of_one_frame() -> None:
    images = Clips({'a': noise(1), 'b': noise(1, 7, 9)})
    for net in (Enlarge(), tiny_net().eval()):
        result = measure(net, images, 'Set5', *settings(metrics={'psnr': RGB['psnr']}))
        for i, name in enumerate('ab'):
            lq = images[i]['lq'].float() / 255
            with torch.no_grad():
                output = bicubic(lq) * 0.9 if isinstance(net, Enlarge) else net(lq[None])[0]
            expected = calculate_psnr(eight_bit(output)[0], as_image(images[i]['gt'][0]), 0)
            assert result.clips[name] == {'frames': 1, 'psnr': expected}
        assert result.metrics['psnr'] == sum(clip['psnr'] for clip in result.clips.values()) / 2


class Flow(StandaloneSpyNet):
    """Says of every pair that it moves by the mean of ``ref`` in x and that of ``supp`` in y."""
    task = 'flow'

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        return torch.stack([image.mean((1, 2, 3)) for image in (ref, supp)], 1)[..., None, None].expand(-1, -1, 2, 2)


def pair(name: str, x: float, y: float, flow: list[list[list[float]]], known: Any = None) -> dict[str, Any]:
    truth = torch.tensor(flow, dtype=torch.float32)
    if known is not None:
        truth = torch.where(torch.tensor(known) > 0, truth, math.nan)
    return {'name': name, 'ref': torch.full((3, 2, 2), float(x)), 'supp': torch.full((3, 2, 2), float(y)),
            'flow': truth}


def test_end_point_error_by_hand() -> None:
    pairs = [pair('a', 1, 0, [[[1, 1], [4, -2]], [[0, 4], [4, 4]]]),  # off by 0, 4, 5 and 5 pixels
             pair('b', 0, 1, [[[3, 100], [0, 0]], [[1, 0], [0, 0]]], [[1, 0], [1, 0]])]  # by 3 and, of zero flow, 1
    test_set = TestSet('moves', {'name': 'moves', 'scale': 1}, pairs)
    [result] = evaluate(Flow().eval(), [test_set], *settings(), 'spynet')
    zero = [(1 + 17**0.5 + 32**0.5 + 20**0.5) / 4, 10**0.5 / 2]
    assert result.clips == {
        'a': {'frames': 1, 'epe': 3.5, 'epe_of_zero_flow': pytest.approx(zero[0], rel=1e-15)},
        'b': {'frames': 1, 'epe': 2.0, 'epe_of_zero_flow': pytest.approx(zero[1], rel=1e-15)}}
    assert result.metrics == {'epe': 2.75, 'epe_of_zero_flow': pytest.approx(sum(zero) / 2, rel=1e-15)}
    assert '- epe: mean end-point error in pixels, epe_of_zero_flow: that of no motion' in benchmark_table(result)


@pytest.mark.parametrize(('item', 'error', 'message'), [
    (pair('a', 0, 0, [[[0]], [[0]]]), ValueError, r'set: a: the network makes a flow of \(2, 2, 2\), but the true one'),
    (pair('a', 0, 0, [[[0, 0]] * 2] * 2, [[0, 0]] * 2), ValueError, 'set: a: of no pixel the true flow is known'),
    (pair('b', 0, 0, [[[0, 0]] * 2] * 2), ValueError, 'set: two pairs are named b; rename one'),
    (pair('a', math.inf, 0, [[[0, 0]] * 2] * 2), FloatingPointError, 'set: a: the output of the network is not finite'),
])
def test_flow_that_cannot_be_measured(item: dict[str, Any], error: type[Exception], message: str) -> None:
    fine = pair('b', 0, 0, [[[0.0, 0.0]] * 2] * 2)
    with pytest.raises(error, match=message):
        measure(Flow().eval(), [fine, item], 'set', *settings())
