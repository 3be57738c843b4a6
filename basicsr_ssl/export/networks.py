"""Networks that run in another runtime than torch, in the place of those that run in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl.evaluation.inference import task_of
from basicsr_ssl.export import formats
from basicsr_ssl.export.forms import make_form
from basicsr_ssl.export.runtimes import Exported

#: The format in which a network is handed to a runtime.
FORMAT_OF = {'onnxruntime': 'onnx', 'openvino': 'openvino'}


class ConvertedNetwork:
    """A network for ``super_resolve``, run by another runtime: the same frames, but for rounding.

    It is converted when frames show their size, and anew for every other size and number of frames.

    Args:
        net: a network of this package that makes frames.
        runtime: one of ``FORMAT_OF``.

    Attributes:
        scale, task, bidirectional: the network's.
    """

    def __init__(self, net: Any, runtime: str) -> None:
        self._net, self._runtime = net, runtime
        self._made: dict[tuple[str, tuple[int, ...]], Exported] = {}
        self.scale: int = net.scale
        self.task = task_of(net)
        self.bidirectional = getattr(net, 'bidirectional', True)
        if not self.bidirectional:
            self.stream = self._stream

    def __call__(self, x: Tensor) -> Tensor:
        """A clip (1, n, 3, h, w), or of a network for images an image (1, 3, h, w), as the network takes it."""
        return self._converted('window' if self.task == 'image' else 'clip', x.shape).call({'input': x})['output']

    def _stream(self, frames: Iterable[Tensor], keep: str = 'device') -> Iterator[Tensor]:
        """As the network's own."""
        state: dict[str, Tensor] = {}
        for frame in frames:
            made = self._converted('step', frame.shape)
            state = state or made.start(frame)
            output, state = made.step(frame, state)
            yield output
            del output  # before the next one is made

    def _converted(self, form: str, shape: torch.Size) -> Exported:
        key = (form, tuple(shape))
        if key not in self._made:
            self._made.clear()  # of the frames before, of another size
            frames = {'step': None, 'window': 1, 'clip': shape[1]}[form]
            made = make_form(self._net, form, (shape[-2], shape[-1]), frames)
            to = FORMAT_OF[self._runtime]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f'network{formats.FORMATS[to].suffix}'
                formats.write(formats.convert(made, to), to, path, formats.described(made, to, 'fp32', False))
                self._made[key] = Exported(path, self._runtime)
        return self._made[key]
