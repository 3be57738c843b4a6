"""The networks that can upscale, all behind one interface, wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from basicsr_ssl import zoo
from basicsr_ssl.checkpoints.store import load_network
from basicsr_ssl.evaluation.inference import super_resolve, task_of
from basicsr_ssl.export.metadata import is_exported

Backend = Literal['torch', 'onnxruntime', 'openvino']
BACKENDS: tuple[Backend, ...] = ('torch', 'onnxruntime', 'openvino')

#: What upscales if nothing else is named.
DEFAULT = f'{zoo.PREFIX}basicvsr_small_x4'
# Of a bidirectional network, which would else hold the states of the whole clip.
SEGMENT = 24
OVERLAP = 8


@dataclass(frozen=True)
class Runner:
    """A network, ready to run.

    Attributes:
        scale: HR size over LR size.
        run: makes of the LR frames of one scene, (3, h, w) in [0, 1] on ``device``, as many HR frames
            (3, scale*h, scale*w), not clamped, in order. It takes frames as it needs them, and in memory are no more of
            them than the network needs at a time.
        device: where frames are taken and given.
        bytes_per_pixel: memory that a frame takes at least, per LR pixel; 0 if not known.
    """

    scale: int
    run: Callable[[Iterable[Tensor]], Iterator[Tensor]]
    device: torch.device
    bytes_per_pixel: int = 0


def open_network(reference: str | None, backend: Backend | None = None, *, device: str | None = None,
                 segment: int | None = None, overlap: int | None = None,
                 keep_states: Literal['device', 'host'] = 'device') -> Runner:
    """Make a network ready.

    Args:
        reference: a network file of any known form, one that ``basicsr-ssl export`` wrote, ``zoo://NAME``, or
            ``bicubic``; None is ``DEFAULT``.
        backend: what runs it; a network file is converted for it. None is torch, or what an exported file was made for.
        device: of torch; None is a GPU, if there is one, else the CPU.
        segment: frames that the network sees at once, see ``super_resolve``. None leaves it open for a network that
            takes frames as they come, and is ``SEGMENT`` for any other. An exported file says it itself.
        overlap: frames that neighbouring segments share; None is ``OVERLAP``, or less than a third of shorter segments.
        keep_states: where hidden states wait, on the device or in host memory.

    Raises:
        OSError: the file cannot be read or downloaded.
        ValueError: it is no network for frames, there is no such device, segment and overlap do not fit, or the
            backend is not installed or cannot run it.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f'there is no backend {backend!r}; choose one of {", ".join(BACKENDS)}')
    if segment is not None and segment < 1:
        raise ValueError(f'--segment {segment}: a segment has at least one frame')
    if overlap is not None and not 0 <= overlap < (SEGMENT if segment is None else segment):
        raise ValueError(f'--overlap {overlap}: neighbouring segments of {segment or SEGMENT} frames share at least '
                         'none, and less than all')
    reference = reference or DEFAULT
    exported = is_exported(reference)
    if device is not None and (exported or backend not in (None, 'torch')):
        raise ValueError(f'--device {device} is for networks that torch runs: leave it out, or --backend')
    if exported and (segment, overlap) != (None, None):
        raise ValueError(f'{reference} says itself how many frames it takes: leave --segment and --overlap out')
    if exported:
        return _open_exported(reference, backend)
    return _open_network(reference, backend or 'torch', device, segment, overlap, keep_states)


def _open_exported(reference: str, backend: Backend | None) -> Runner:
    from basicsr_ssl.export.runtimes import Exported
    exported = Exported(reference, backend)
    _check_task(reference, exported.metadata['task'])
    return Runner(exported.scale, exported.stream, torch.device('cpu'))


def _open_network(reference: str, backend: Backend, device: str | None, segment: int | None, overlap: int | None,
                  keep_states: Literal['device', 'host']) -> Runner:
    place = _device(device) if backend == 'torch' else torch.device('cpu')
    net: Any = load_network(zoo.resolve(reference), device=place, dtype=torch.float32)
    _check_task(reference, task_of(net))
    bytes_per_pixel = _bytes_per_pixel(net)
    if backend != 'torch':
        from basicsr_ssl.export.networks import ConvertedNetwork
        net = ConvertedNetwork(net, backend)
    if segment is None and not _takes_frames_as_they_come(net):
        segment = SEGMENT
    if segment is not None and overlap is None:
        overlap = min(OVERLAP, segment // 3)
    run = partial(super_resolve, net, segment=segment, overlap=overlap or 0, keep_states=keep_states)
    return Runner(net.scale, run, place, bytes_per_pixel)


def _check_task(reference: str, task: str) -> None:
    if task == 'flow':
        raise ValueError(f'{reference} holds a network that estimates flow: name one that makes frames larger')


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name} cannot be used: {reason}. Choose cpu, or leave it out') from error


def _takes_frames_as_they_come(net: Any) -> bool:
    return task_of(net) == 'image' or (hasattr(net, 'stream') and not getattr(net, 'bidirectional', False))


def _bytes_per_pixel(net: Any) -> int:
    """Input and output of the layer with the largest ones, in float32."""
    return max((4 * layer.area * (layer.cin + layer.cout) for layer in net.cost_table
                if hasattr(layer, 'cin') and not layer.flow), default=0)
