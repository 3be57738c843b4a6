"""Whether an exported file computes what the network computes, in figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from basicsr_ssl.data.frames import existing_folder, list_images, read_frame
from basicsr_ssl.data.photographs import Photographs
from basicsr_ssl.evaluation.inference import as_frame
from basicsr_ssl.export.forms import MULTIPLE, Values, WholeForm
from basicsr_ssl.export.runtimes import Call, Exported, mirrored

#: Least PSNR, in dB, of a file's output against the network's in float32.
LEAST_PSNR = {'fp32': 100.0, 'fp16': 50.0, 'bf16': 40.0, 'int8': 35.0}
STEPS = 4  # of the step form: errors that grow with the state show
CALIBRATION = 64  # calls at most, spread over the given frames
PHOTO = 'astronaut'  # of scikit-image, where no real frames are given
PAN = (1, 2)  # pixels by which it moves from frame to frame, down and right


def real_clip(folder: str | None, size: tuple[int, int], count: int | None) -> Tensor:
    """Real frames of a size, (n, 3, h, w) in [0, 1].

    Args:
        folder: of the images of one clip; cut from their middle, or mirrored at their borders. None: a photograph that
            comes with scikit-image, over which the camera moves.
        size: (h, w).
        count: of frames; a shorter clip runs back and forth. None: all.

    Raises:
        DatasetError: no such folder, no images in it, or one that cannot be read.
        ValueError: there are frames of different sizes.
    """
    if folder is None:
        photos = Photographs('', [PHOTO], None)
        photo = torch.from_numpy(photos.pixels(photos.photos[0])).permute(2, 0, 1)
        count = count or 1
        moves = [(i * PAN[0], i * PAN[1]) for i in range(count)]
        whole = _fitted(photo, (size[0] + moves[-1][0], size[1] + moves[-1][1]))
        return as_frame(torch.stack([whole[:, y:y + size[0], x:x + size[1]] for y, x in moves]))
    root = existing_folder(folder, '--clips')
    names = list_images(root)
    if not names:
        raise ValueError(f'--clips: {root} holds no images. Name the folders of the frames of one clip each')
    order = range(len(names)) if count is None else mirrored(range(count), len(names))
    return torch.stack([as_frame(_fitted(read_frame(Path(root) / names[i]), size)) for i in order])


def _fitted(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut (3, h, w) to a size from its middle; mirrored at its borders first where it is too small."""
    missing = [max(0, want - have) for want, have in zip(size, frame.shape[-2:])]
    if any(missing):
        margins = [(0, 0), *((n // 2, n - n // 2) for n in missing)]
        frame = torch.from_numpy(np.pad(frame.numpy(), margins, mode='symmetric'))
    top, left = ((have - want) // 2 for want, have in zip(size, frame.shape[-2:]))
    return frame[:, top:top + size[0], left:left + size[1]]


def prove(form: WholeForm, exported: Exported, dynamic: bool, folder: str | None) -> dict[str, dict[str, float]]:
    """Figures of ``compare`` on random and on real frames, and if sizes are free on a second size.

    Args:
        form: as it was made, in float32.
        exported: the file.
        dynamic: whether sizes are free.
        folder: see ``real_clip``.
    """
    count = STEPS if form.state else form.frames
    noise = torch.Generator().manual_seed(0)
    clips = {'random': torch.rand(count, 3, *form.size, generator=noise), 'real': real_clip(folder, form.size, count)}
    if dynamic:
        h, w = (side + max(MULTIPLE, form.multiple) for side in form.size)
        clips[f'random {h}x{w}'] = torch.rand(count, 3, h, w, generator=noise)
    return {name: compare(form, exported.call, clip) for name, clip in clips.items()}


@torch.no_grad()
def compare(form: WholeForm, call: Call, clip: Tensor) -> dict[str, float]:
    """Run a file and the network that it was made from on the same frames.

    Args:
        form: as it was made, in float32.
        call: the file's, in its own runtime.
        clip: (n, 3, h, w) in [0, 1].

    Returns:
        ``max_difference`` of any value of ``output`` in any call, and ``psnr`` (dB) of all of them with a peak of 1, or
        of the largest value of the network where that is larger, as of flows in pixels.
    """
    expected = form.expected(clip)
    found = torch.cat([values['output'] for values in _answers(form, call, clip)]).reshape(expected.shape)
    difference = (found.double() - expected.double()).abs()
    if not difference.isfinite().all():
        return {'max_difference': math.inf, 'psnr': -math.inf}
    peak = max(1.0, float(expected.abs().max()))
    mse = float(difference.square().mean())
    return {'max_difference': float(difference.max()), 'psnr': 20 * math.log10(peak) - 10 * math.log10(max(mse, 1e-30))}


def _answers(form: WholeForm, call: Call, clip: Tensor) -> Iterator[Values]:
    state: Values = {name: torch.zeros(*form.inputs[name].leading, *clip.shape[-2:]) for name in form.state}
    for feed in form.calls(clip):
        found = call({'input': feed, **state})
        state = {name: found[source] for name, source in form.state.items()}
        yield found


@torch.no_grad()
def calibration_calls(form: WholeForm, clips: Iterable[Tensor]) -> list[list[Tensor]]:
    """Values of all inputs, for calls spread evenly over clips (n, 3, h, w), states included.

    Raises:
        ValueError: no clip has as many frames as one call takes.
    """
    calls: list[list[Tensor]] = []

    def recorded(values: Values) -> Values:
        calls.append([values[name] for name in form.inputs])
        # without a state the next call needs nothing of this one
        return dict(zip(form.outputs, form(*values.values()))) if form.state else {}

    for clip in clips:
        for _ in _answers(form, recorded, clip):
            pass
    if not calls:
        raise ValueError(f'int8 is calibrated on real frames: --clips names folders of LR frames, one clip each, of '
                         f'{form.frames} or more')
    return calls[::math.ceil(len(calls) / CALIBRATION)]


def judge(figures: Mapping[str, Mapping[str, float]], precision: str, least: float | None) -> None:
    """Refuse a file that is not close enough to its network.

    Args:
        figures: of ``compare``, by the name of the clip.
        precision: the file's. int8 is made for real frames, and not held to it on noise.
        least: PSNR in dB; None takes ``LEAST_PSNR``.

    Raises:
        ValueError: it is further from it than that.
    """
    least = LEAST_PSNR[precision] if least is None else least
    for name, one in figures.items():
        if one['psnr'] < least and not (precision == 'int8' and name.startswith('random')):
            raise ValueError(f'the exported file differs from the network: {one["psnr"]:.1f} dB on {name} frames, '
                             f'largest difference {one["max_difference"]:.2g}; {precision} must reach {least:g} dB. '
                             'Nothing was written. Choose another --precision, or --min-psnr')
