"""Exported files, run by the runtimes that they were made for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl.evaluation.inference import segments
from basicsr_ssl.export.forms import Values
from basicsr_ssl.export.metadata import RUNTIMES, load_module, openvino_core, read_metadata
from basicsr_ssl.terminal import shortened

Call = Callable[[Values], Values]

OVERLAP = 2  # frames that neighbouring clips, or windows that give all frames, share at most at either end


class Exported:
    """An exported file, ready to run.

    Args:
        path: of a file that ``basicsr-ssl export`` wrote.
        runtime: ``'onnxruntime'``, ``'openvino'`` or ``'torch'``; None is the first of ``RUNTIMES``.

    Attributes:
        metadata: what the file says of itself.
        scale: HR size over LR size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or not for this runtime, or the runtime is not installed or refuses it.
    """

    def __init__(self, path: str | os.PathLike, runtime: str | None = None) -> None:
        self.metadata = read_metadata(path)
        fitting = RUNTIMES[Path(path).suffix]
        runtime = runtime or fitting[0]
        if runtime not in fitting:
            raise ValueError(f'{shortened(path)} is run by {" or ".join(fitting)}, not by {runtime}')
        self.scale: int = self.metadata['scale']
        self.call = _OPEN[runtime](os.fspath(path), self.metadata)

    def stream(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Super-resolve a clip frame by frame.

        The step form gives what ``stream`` of the network gives. A window that gives its middle frame slides over the
        clip, which is mirrored at its ends. A clip, or a window that gives all frames, is laid over the frames such
        that neighbours overlap; a shorter clip is mirrored.

        Args:
            frames: (3, h, w) in [0, 1], RGB.

        Yields:
            Frames (3, s*h, s*w), in order, not clamped.

        Raises:
            ValueError: the file is of a flow network, or made for frames of another size.
        """
        told = self.metadata
        if told['task'] == 'flow':
            raise ValueError('a flow network makes no frames')
        checked = map(self._checked, frames)
        if told['form'] == 'step':
            yield from self._steps(checked)
        elif told['form'] == 'window' and not told['every']:
            yield from self._windows(checked, told['frames'])
        else:
            yield from self._clips(checked, told['frames'])

    def start(self, frame: Tensor) -> Values:
        """The state before the first frame (1, 3, h, w) of a clip, for the step form: zeros."""
        return {name: frame.new_zeros(*self.metadata['inputs'][name]['shape'][:-2], *frame.shape[-2:])
                for name in self.metadata['state']}

    def step(self, frame: Tensor, state: Values) -> tuple[Tensor, Values]:
        """The HR frame of an LR frame (1, 3, h, w), and the state for the next one."""
        found = self.call({'input': frame, **state})
        return found['output'], {name: found[source] for name, source in self.metadata['state'].items()}

    def _steps(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        state: Values = {}
        for frame in frames:
            output, state = self.step(frame[None], state or self.start(frame[None]))
            yield output[0]

    def _windows(self, frames: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        window: deque[Tensor] = deque(maxlen=length)
        for frame in _extended(frames, length // 2):
            window.append(frame)
            if len(window) == length:
                yield self.call({'input': torch.cat(list(window))[None]})['output'][0]

    def _clips(self, frames: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        for seen, first, last in segments(frames, length, min(2 * OVERLAP, length - 1)):
            clip = torch.stack([seen[i] for i in mirrored(range(length), len(seen))])
            if self.metadata['form'] == 'window':
                yield from self.call({'input': clip.flatten(0, 1)[None]})['output'][0].unflatten(0, (-1, 3))[first:last]
            else:
                yield from self.call({'input': clip[None]})['output'][0][first:last]

    def _checked(self, frame: Tensor) -> Tensor:
        size, step = self.metadata['lr_size'], self.metadata['multiple']
        h, w = frame.shape[-2:]
        if size is not None and [h, w] != size:
            raise ValueError(f'this file was exported for frames of {size[0]}x{size[1]}, not of {h}x{w}: export the '
                             'network again, with --size')
        if size is None and any(side % step or side < 2 * step for side in (h, w)):
            raise ValueError(f'this file takes frames whose sides are multiples of {step}, from {2 * step} on, not '
                             f'{h}x{w}: export the network again, with --size')
        return frame.float()


def mirrored(positions: Iterable[int], count: int) -> list[int]:
    """Indices of ``count`` frames at these positions; outside, the clip is mirrored about its first and last frame."""
    period = max(2 * count - 2, 1)
    return [min(at % period, period - at % period) if count > 1 else 0 for at in positions]


def _extended(frames: Iterable[Tensor], margin: int) -> Iterator[Tensor]:
    """A clip, mirrored by so many frames at either end; few of them are held."""
    coming = iter(frames)
    first = list(islice(coming, margin + 1))
    yield from (first[i] for i in mirrored(range(-margin, 0), len(first)) if first)
    last: deque[Tensor] = deque(maxlen=margin + 1)
    for frame in chain(first, coming):
        last.append(frame)
        yield frame
    yield from (last[i] for i in mirrored(range(len(last), len(last) + margin), len(last)) if last)


def _onnxruntime(path: str, metadata: dict[str, Any]) -> Call:
    runtime = load_module('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ('CUDAExecutionProvider', 'CPUExecutionProvider')
    providers = [name for name in runtime.get_available_providers() if name in wanted]
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise ValueError(f'onnxruntime refuses {shortened(path)}: {shortened(error)}') from error
    names = [output.name for output in session.get_outputs()]

    def call(values: Values) -> Values:
        found = session.run(names, {name: value.contiguous().numpy() for name, value in values.items()})
        return dict(zip(names, map(torch.from_numpy, found)))
    return call


def _openvino(path: str, metadata: dict[str, Any]) -> Call:
    core = openvino_core()
    # said always: on CPUs that have it, OpenVINO computes in bfloat16 unless told otherwise
    precision = 'bf16' if metadata['precision'] == 'bf16' else 'f32'
    try:
        model = core.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': precision,
                                                 'INFERENCE_NUM_THREADS': torch.get_num_threads()})
    except Exception as error:
        raise ValueError(f'OpenVINO refuses {shortened(path)}: {shortened(error)}') from error
    request = model.create_infer_request()
    names = [output.any_name for output in model.outputs]

    def call(values: Values) -> Values:
        found = request.infer({name: value.contiguous().numpy() for name, value in values.items()})
        return {name: torch.from_numpy(found[i].copy()) for i, name in enumerate(names)}
    return call


def _torch(path: str, metadata: dict[str, Any]) -> Call:
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise ValueError(f'torch refuses {shortened(path)}: {shortened(error)}') from error

    def call(values: Values) -> Values:
        with torch.no_grad():
            found = module(*(values[name] for name in metadata['inputs']))
        return dict(zip(metadata['outputs'], found))
    return call


_OPEN: dict[str, Callable[[str, dict[str, Any]], Call]] = {
    'onnxruntime': _onnxruntime, 'openvino': _openvino, 'torch': _torch}
