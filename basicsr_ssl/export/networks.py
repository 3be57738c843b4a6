"""Networks that run in another runtime than torch, in the place of those that run in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from basicsr_ssl.api import without_gates
from basicsr_ssl.evaluation.inference import task_of
from basicsr_ssl.export import formats
from basicsr_ssl.export.forms import Form, Values, WindowForm, propagated, state_parts
from basicsr_ssl.export.runtimes import Exported

#: The format in which a network is handed to a runtime.
FORMAT_OF = {'onnxruntime': 'onnx', 'openvino': 'openvino'}


class ConvertedNetwork:
    """A network for ``super_resolve``, run by another runtime: the same frames, but for rounding.

    It is converted in its parts, so that neither the time which that takes nor the memory grow with the clip: when
    frames show their size, and anew for another size.

    Args:
        net: a network of this package that makes frames.
        runtime: one of ``FORMAT_OF``.

    Attributes:
        scale, task, bidirectional: the network's.

    Raises:
        ValueError: it runs in torch only, as bicubic interpolation does.
    """

    def __init__(self, net: Any, runtime: str) -> None:
        self.scale: int = net.scale
        self.task = task_of(net)
        self.bidirectional = getattr(net, 'bidirectional', False)
        if self.task != 'image' and not hasattr(net, 'propagate_clip'):
            raise ValueError(f'{type(net).__name__} runs in torch only')
        self._net: Any = without_gates(net).eval().requires_grad_(False)
        self._runtime = runtime
        self._made: dict[str, Exported] = {}
        self._size = 0, 0

    def stream(self, frames: Iterable[Tensor], keep: str = 'device') -> Iterator[Tensor]:
        """As the network's own, see ``PrunableBasicVSR.stream``; states wait in host memory."""
        if self.task == 'image':
            yield from (self._run('image', frame)['output'] for frame in frames)
        elif not self.bidirectional:
            for frame, hidden in self._walk('forward', frames):
                yield self._run('upsampling', frame, forward=hidden)['output']
        else:
            clip = list(frames)
            waiting = [hidden for _, hidden in self._walk('backward', reversed(clip))]
            for frame, hidden in self._walk('forward', clip):
                yield self._run('upsampling', frame, backward=waiting.pop(), forward=hidden)['output']

    def _walk(self, direction: str, frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every frame and its hidden state."""
        last: tuple[Tensor, Tensor] | None = None
        for frame in frames:
            previous, hidden = last or (frame, frame.new_zeros(1, self._net.num_feat, *frame.shape[-2:]))
            state = {} if self._net.flow_network is None else {'previous_in': previous}
            hidden = self._run(direction, frame, **state, hidden_in=hidden)['hidden_out']
            yield frame, hidden
            last = frame, hidden

    def _run(self, part: str, frame: Tensor, **others: Tensor) -> Values:
        if frame.shape[-2:] != self._size:
            self._made.clear()
            self._size = frame.shape[-2], frame.shape[-1]
        if part not in self._made:
            form = PARTS[part](self._net, self._size)
            to = FORMAT_OF[self._runtime]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f'network{formats.FORMATS[to].suffix}'
                formats.write(formats.convert(form.eval(), to), to, path, formats.described(form, to, 'fp32', False))
                self._made[part] = Exported(path, self._runtime)
        return self._made[part].call({'input': frame, **others})


class Propagation(Form):
    """The hidden state of a frame from that of its neighbour; ``backward`` or forward."""

    name = 'propagation'

    def __init__(self, net: Any, size: tuple[int, int], backward: bool) -> None:
        super().__init__(net, size)
        self.trunk = net.backward_trunk if backward else net.forward_trunk
        parts = state_parts(self)
        self.inputs = {'input': self.info('N C H W', 3), **{f'{part}_in': info for part, info in parts.items()}}
        self.outputs = {'hidden_out': parts['hidden']}

    def forward(self, input: Tensor, *state: Tensor) -> tuple[Tensor]:
        return (propagated(self, self.trunk, input, *state),)


class Upsampling(Form):
    """The HR frame of a frame and its hidden states."""

    name = 'upsampling'

    def __init__(self, net: Any, size: tuple[int, int]) -> None:
        super().__init__(net, size)
        hidden = self.info('N C H W', net.num_feat, frames=False)
        directions = ['backward', 'forward'] if net.bidirectional else ['forward']
        self.inputs = {'input': self.info('N C H W', 3), **dict.fromkeys(directions, hidden)}
        self.outputs = {'output': self.info('N C H W', 3, scale=self.scale)}

    def forward(self, input: Tensor, *hidden: Tensor) -> tuple[Tensor]:
        net: Any = self.net
        return (net.upsample(input, hidden[0] if net.bidirectional else None, hidden[-1]),)


PARTS: dict[str, Callable[[Any, tuple[int, int]], Form]] = {
    'image': lambda net, size: WindowForm(net, size, 1),
    'backward': lambda net, size: Propagation(net, size, True),
    'forward': lambda net, size: Propagation(net, size, False),
    'upsampling': Upsampling,
}
