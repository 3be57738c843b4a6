"""What an exported file computes: a network as a pure function of named tensors of fixed layout."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl.api import without_gates
from basicsr_ssl.evaluation.inference import task_of
from basicsr_ssl.nn.blocks import Channels
from basicsr_ssl.nn.spynet import AnySizeSpyNet
from basicsr_ssl.nn.warp import flow_warp

FORMS = ('window', 'step', 'clip')
FRAMES = {'clip': 7, 'image': 1, 'flow': 2}  # of a window or clip, by the network's task, unless told
MULTIPLE = 32  # with a flow network, which halves frames five times, free sizes are multiples of this
DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16}  # of the others weights and arithmetic stay float32

Values = dict[str, Tensor]


class TensorInfo(NamedTuple):
    """A float32 tensor that a file takes or gives.

    Attributes:
        leading: its shape, but for the last two axes.
        size: those two, (h, w) of the LR frame times ``scale``.
        layout: what the axes are.
        frames: whether it holds frames, RGB in [0, 1].
    """
    leading: tuple[int, ...]
    size: tuple[int, int]
    layout: str
    scale: int
    frames: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.leading, *self.size)


class Form(nn.Module):
    """A network as other programs see it. Inputs and outputs are float32, whatever it computes in.

    Attributes:
        name: one of ``FORMS``.
        inputs, outputs: name to ``TensorInfo``.
        frames: LR frames that ``input`` holds.
        state: inputs that take what the call before gave, each with that output's name; all zero for the first frame.
        scale: HR size over LR size.
        task: the network's.
        multiple: what sides must be multiples of where they are free.
    """

    name = ''

    def __init__(self, net: Any, size: tuple[int, int], frames: int = 1) -> None:
        super().__init__()
        self.net, self.size, self.frames = net, size, frames
        self.dtype = torch.float32  # that the network computes in
        self.task, self.scale = task_of(net), getattr(net, 'scale', 1)
        self.multiple = MULTIPLE if self.task == 'flow' else 1 if net.flow_network is None else \
            MULTIPLE * net.flow_scale
        self.inputs: dict[str, TensorInfo] = {}
        self.outputs: dict[str, TensorInfo] = {}
        self.state: dict[str, str] = {}

    def info(self, layout: str, *leading: int, scale: int = 1, frames: bool = True) -> TensorInfo:
        """Of a tensor whose last two axes are the LR frame's, ``scale`` times as large."""
        return TensorInfo((1, *leading), (scale * self.size[0], scale * self.size[1]), layout, scale, frames)


class WholeForm(Form, ABC):
    """A form that makes HR frames, or flow, of a clip by itself, so that it can be held against the network."""

    @abstractmethod
    def feed(self, clip: Tensor) -> Tensor:
        """``input`` of one call, from its frames (frames, 3, h, w)."""

    @abstractmethod
    def expected(self, clip: Tensor) -> Tensor:
        """What the network itself makes of frames (n, 3, h, w), as the outputs of all calls, one after another."""

    def calls(self, clip: Tensor) -> Iterable[Tensor]:
        """``input`` of every call that a clip (n, 3, h, w) allows, without padding at its ends."""
        return (self.feed(clip[i:i + self.frames]) for i in range(len(clip) - self.frames + 1))


class WindowForm(WholeForm):
    """The frames of a window stacked in the channels of one image, as programs for single images load it.

    Args:
        net: a network without gates; one for clips, for images, or for flow, of which ``input`` is ``ref`` and ``supp``
            and ``output`` the flow.
        size: LR frame, (h, w).
        frames: T, of the window.
        every: give all frames of the window instead of the one in the middle.

    Raises:
        ValueError: no middle, or a flow network and other than two frames.
    """

    name = 'window'

    def __init__(self, net: Any, size: tuple[int, int], frames: int, every: bool = False) -> None:
        super().__init__(net, size, frames)
        if self.task == 'flow' and frames != 2:
            raise ValueError('flow is estimated between two frames: leave --frames out')
        if self.task != 'flow' and not every and frames % 2 == 0:
            raise ValueError(f'a window of {frames} frames has none in the middle: choose an odd number of frames, or '
                             '--all-frames')
        self.every = every
        stacked = 'N (T C) H W, frame after frame'
        self.inputs = {'input': self.info(stacked, 3 * frames)}
        if self.task == 'flow':
            output = self.info('N C H W, displacement in pixels, x then y', 2, frames=False)
        else:
            output = self.info(stacked if every else 'N C H W', 3 * frames if every else 3, scale=self.scale)
        self.outputs = {'output': output}

    def feed(self, clip: Tensor) -> Tensor:
        return clip.flatten(0, 1)[None]

    def forward(self, input: Tensor) -> tuple[Tensor]:
        clip = input.to(self.dtype).unflatten(1, (self.frames, 3))
        if self.every and self.task != 'flow':
            return (_run(self.net, clip).flatten(1, 2).float(),)
        return (self._middle(clip).float(),)

    def _middle(self, clip: Tensor) -> Tensor:
        """Only what the frame in the middle depends on; what else these calls compute, the exporters leave out."""
        middle, net = self.frames // 2, self.net
        if self.task == 'flow':
            return net(clip[:, 0], clip[:, 1])
        if self.task == 'image':
            return net(clip[:, middle])
        if not hasattr(net, 'propagate_clip'):
            return net(clip)[:, middle]
        forward = net.propagate_clip(clip[:, :middle + 1])[1][-1]
        backward = net.propagate_clip(clip[:, middle:])[0][0] if net.bidirectional else None
        return net.upsample(clip[:, middle], backward, forward)

    def expected(self, clip: Tensor) -> Tensor:
        if self.task == 'flow':
            return torch.cat([self.net(one[None], other[None]) for one, other in pairwise(clip)])
        found = [_run(self.net, clip[None, i:i + self.frames]) for i in range(len(clip) - self.frames + 1)]
        return torch.cat([one.flatten(1, 2) if self.every else one[:, self.frames // 2] for one in found])


class ClipForm(WholeForm):
    """A clip of so many frames at once, as the network itself takes it.

    Args:
        net: a network without gates, for clips or images.
        size: LR frame, (h, w).
        frames: n, of the clip.

    Raises:
        ValueError: a flow network.
    """

    name = 'clip'

    def __init__(self, net: Any, size: tuple[int, int], frames: int) -> None:
        super().__init__(net, size, frames)
        if self.task == 'flow':
            raise ValueError('flow is estimated between two frames: export it as --form window')
        self.inputs = {'input': self.info('N T C H W', frames, 3)}
        self.outputs = {'output': self.info('N T C H W', frames, 3, scale=self.scale)}

    def feed(self, clip: Tensor) -> Tensor:
        return clip[None]

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (_run(self.net, input.to(self.dtype)).float(),)

    def expected(self, clip: Tensor) -> Tensor:
        return torch.cat([_run(self.net, one) for one in self.calls(clip)])


class StepForm(WholeForm):
    """One frame after another, with a state that the caller carries along: what ``net.step`` does.

    The state is one pair of tensors per part, ``hidden_in`` and ``hidden_out``, with a flow network also
    ``previous_in`` and ``previous_out``, the LR frame before. Zeros start a clip: a hidden state of zeros is the same
    however it is aligned.

    Args:
        net: a unidirectional network without gates.
        size: LR frame, (h, w).

    Raises:
        ValueError: it is not unidirectional.
    """

    name = 'step'

    def __init__(self, net: Any, size: tuple[int, int]) -> None:
        super().__init__(net, size)
        if getattr(net, 'bidirectional', True):
            kind = 'bidirectional, its frames depend on those to come' if self.task == 'clip' else 'not recurrent'
            raise ValueError(f'the step form is for unidirectional networks; this one is {kind}: export it as --form '
                             'window or --form clip')
        layout, parts = 'N C H W', state_parts(self)
        self.state = {f'{part}_in': f'{part}_out' for part in parts}
        self.inputs = {'input': self.info(layout, 3), **{f'{part}_in': info for part, info in parts.items()}}
        self.outputs = {'output': self.info(layout, 3, scale=self.scale),
                        **{f'{part}_out': info for part, info in parts.items()}}

    def feed(self, clip: Tensor) -> Tensor:
        return clip

    def forward(self, input: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        net: Any = self.net
        hidden = propagated(self, net.forward_trunk, input, *state)
        output = net.upsample(input.to(self.dtype), None, hidden)
        return (output.float(), *([] if net.flow_network is None else [input]), hidden.float())

    def expected(self, clip: Tensor) -> Tensor:
        return torch.cat(list(self.net.stream(clip[None])))


def propagated(form: Form, trunk: nn.Module, frame: Tensor, *state: Tensor) -> Tensor:
    """The hidden state (1, num_feat, h, w) of a frame, from that of its neighbour, and with flow its neighbour."""
    net: Any = form.net
    hidden = state[-1].to(form.dtype)
    if net.flow_network is not None:
        hidden = flow_warp(hidden, net.compute_flows(torch.stack((state[0], frame), dim=1))[0][:, 0])
    return trunk(torch.cat((frame.to(form.dtype), hidden), dim=1))


def state_parts(form: Form) -> dict[str, TensorInfo]:
    """What a hidden state is made of, and with flow the frame that it belongs to."""
    net: Any = form.net
    hidden = form.info('N C H W', net.num_feat, frames=False)
    return {'hidden': hidden} if net.flow_network is None else {'previous': form.info('N C H W', 3), 'hidden': hidden}


def make_form(net: nn.Module, form: str, size: tuple[int, int], frames: int | None = None,
              every: bool = False) -> WholeForm:
    """The form of a network, which is copied; its gates are folded.

    Args:
        net: a network of this package.
        form: one of ``FORMS``.
        size: LR frame, (h, w).
        frames: of a window or clip; None takes ``FRAMES``.
        every: of a window give all frames.

    Raises:
        ValueError: a network or a setting that the form does not fit.
    """
    if min(size) < 1 or (frames or 1) < 1:
        raise ValueError(f'sizes and numbers of frames are positive, got {size} and {frames}')
    if form != 'window' and every:
        raise ValueError('--all-frames is for --form window; the others give all frames anyway')
    net = without_gates(net).eval().requires_grad_(False)
    if form == 'step':
        if frames is not None:
            raise ValueError('the step form takes one frame at a time: leave --frames out')
        return StepForm(net, size).eval()
    count = FRAMES[task_of(net)] if frames is None else frames
    return (WindowForm(net, size, count, every) if form == 'window' else ClipForm(net, size, count)).eval()


def lowered(form: Form, precision: str = 'fp32', gathers: bool = False, dynamic: bool = False) -> Form:
    """A form as it is written, of the same function: with other layers and weights in a copy of the network.

    Args:
        form: see ``make_form``.
        precision: ``DTYPES`` has those in which weights and arithmetic are not float32. Flow is estimated, and
            features are aligned, in float32 always: flows are in pixels, and 16 bits lose what is below a pixel.
        gathers: residual blocks add onto some channels by gathering, see ``GatheringChannels``.
        dynamic: sizes are free; then frames are not resized for the flow network.
    """
    form = copy.deepcopy(form)
    net: Any = form.net
    if precision in DTYPES:
        form.dtype = DTYPES[precision]
        net.to(form.dtype)
        if net.flow_network is not None:
            net.flow_network.float()
    for part in list(form.modules()):
        if dynamic and isinstance(part, AnySizeSpyNet):
            part.forward = part.process
        for name, channels in list(part.named_children()):
            if gathers and isinstance(channels, Channels) and channels.index is not None:
                setattr(part, name, GatheringChannels(channels.index.tolist()))
    return form


class GatheringChannels(Channels):
    """``Channels`` that add without scattering: ``x + (change and one channel of zeros)[source]``.

    Scattering that adds is ``ScatterND`` with ``reduction`` in ONNX, which TensorRT scatters without adding
    (onnx-tensorrt, issue 957), and no faster in onnxruntime. In OpenVINO it is faster, and there ``Channels`` stays;
    what was measured stands in ``docs/deploy.md``.
    """

    def __init__(self, units: Sequence[int]) -> None:
        super().__init__(units)
        self.units = units

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        source = [change.shape[1]] * x.shape[1]
        for position, channel in enumerate(self.units):
            source[channel] = position
        return x + F.pad(change, (0, 0, 0, 0, 0, 1)).index_select(1, torch.tensor(source))


def _run(net: Any, clip: Tensor) -> Tensor:
    """(b, n, 3, h, w) to (b, n, 3, s*h, s*w)."""
    if task_of(net) == 'image':
        return torch.stack([net(frame) for frame in clip.unbind(1)], dim=1)
    return net(clip)

