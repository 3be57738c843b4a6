"""From the integer planes of pictures and videos to RGB and back, in the coding that a file says it has.

Not left to swscale: what it makes of 8 bits is up to a whole level too dark, and of 10 bits up to four.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

#: (K_r, K_b) by the number that ITU-T H.273 gives a colour matrix (table 4).
MATRICES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
            9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT709, BT601_625, BT601_525 = 1, 5, 6
_NOT_SAID = (0, 2, 3)  # 0 is RGB, and means nothing where there is chroma

Planes = tuple[Tensor, ...]


class Coding(NamedTuple):
    """How planes hold a picture.

    Attributes:
        kind: ``'rgb'``, one plane (3, h, w); ``'grey'``, one plane (h, w); ``'yuv'``, Y (h, w) and U, V of
            (ceil(h / rows), ceil(w / columns)).
        bits: of a sample, 8 to 16; the planes are uint8 for 8 bits, else int32.
        full: all values are used, 0 to 2^bits - 1; else Y has 219 and U and V 224 steps of 2^(bits - 8).
        matrix: its number, one of ``MATRICES``.
        rows, columns: of luma for one sample of chroma. As in MPEG-2 and H.264, it lies on the first of the columns and
            in the middle of the rows.
    """
    kind: Literal['rgb', 'grey', 'yuv'] = 'rgb'
    bits: int = 8
    full: bool = True
    matrix: int = BT709
    rows: int = 1
    columns: int = 1


def matrix_of(number: int, height: int, width: int) -> int:
    """The number of the colour matrix of a video; where it does not say, what players take for its size.

    Raises:
        ValueError: a matrix of another kind.
    """
    if number in MATRICES:
        return number
    if number not in _NOT_SAID:
        raise ValueError(f'its colours are coded by matrix {number} of ITU-T H.273, which is not known here: convert '
                         'it to BT.709 or BT.2020 first')
    return BT709 if height > 576 or width >= 1280 else BT601_625 if height == 576 else BT601_525


def to_rgb(planes: Planes, coding: Coding) -> Tensor:
    """A picture as (3, h, w) float32 RGB in [0, 1], on the device of the planes."""
    luma = planes[0].float()
    if coding.kind == 'rgb':
        return luma.div_(2 ** coding.bits - 1)
    offset, luma_steps, chroma_steps = _steps(coding)
    y = luma.sub_(offset).div_(luma_steps)
    if coding.kind == 'grey':
        return y.clamp_(0, 1).expand(3, *y.shape).contiguous()
    u, v = (_widened(plane.float().sub_(2 ** (coding.bits - 1)).div_(chroma_steps), coding, y.shape)
            for plane in planes[1:])
    k_r, k_b = MATRICES[coding.matrix]
    red, blue = y + 2 * (1 - k_r) * v, y + 2 * (1 - k_b) * u
    green = (y - k_r * red - k_b * blue).div_(1 - k_r - k_b)
    return torch.stack((red, green, blue)).clamp_(0, 1)


def from_rgb(rgb: Tensor, coding: Coding) -> Planes:
    """Inverse of ``to_rgb``, rounded to the nearest (halves to even); what lies outside [0, 1] is clamped first."""
    rgb = rgb.float().clamp(0, 1)
    if coding.kind == 'rgb':
        return (_rounded(rgb.mul_(2 ** coding.bits - 1), coding),)
    red, green, blue = rgb
    offset, luma_steps, chroma_steps = _steps(coding)
    k_r, k_b = MATRICES[coding.matrix]
    y = k_r * red + (1 - k_r - k_b) * green + k_b * blue
    luma = _rounded(y * luma_steps + offset, coding)
    if coding.kind == 'grey':
        return (luma,)
    chroma = (_narrowed((part - y).div_(2 * (1 - k)), coding) for part, k in ((blue, k_b), (red, k_r)))
    return luma, *(_rounded(part * chroma_steps + 2 ** (coding.bits - 1), coding) for part in chroma)


def _steps(coding: Coding) -> tuple[int, int, int]:
    """Luma's value of black, and steps from black to white and over the range of chroma."""
    if coding.full:
        return 0, 2 ** coding.bits - 1, 2 ** coding.bits - 1
    unit = 2 ** (coding.bits - 8)
    return 16 * unit, 219 * unit, 224 * unit


def _rounded(values: Tensor, coding: Coding) -> Tensor:
    return values.round().clamp_(0, 2 ** coding.bits - 1).to(torch.uint8 if coding.bits == 8 else torch.int32)


def _widened(plane: Tensor, coding: Coding, size: tuple[int, ...]) -> Tensor:
    """Chroma at every sample of luma, interpolated linearly."""
    if coding.rows == 2:  # samples lie a quarter of their distance from luma's rows
        above, below = torch.cat((plane[:1], plane[:-1])), torch.cat((plane[1:], plane[-1:]))
        plane = torch.stack((0.75 * plane + 0.25 * above, 0.75 * plane + 0.25 * below), 1).flatten(0, 1)
    if coding.columns == 2:
        right = torch.cat((plane[:, 1:], plane[:, -1:]), 1)
        plane = torch.stack((plane, 0.5 * (plane + right)), 2).flatten(1, 2)
    return plane[:size[0], :size[1]]


def _narrowed(plane: Tensor, coding: Coding) -> Tensor:
    """Chroma where it is coded, each sample a mean over the area that it stands for; odd sizes repeat their border."""
    if coding.rows == 2:
        plane = torch.cat((plane, plane[-1:])) if len(plane) % 2 else plane
        plane = 0.5 * (plane[::2] + plane[1::2])
    if coding.columns == 2:
        plane = torch.cat((plane[:, :1], plane, plane[:, -1:]), 1)  # as far as its own halves: weights 1, 2, 1
        left, middle, right = plane[:, :-2:2], plane[:, 1:-1:2], plane[:, 2::2]
        plane = 0.25 * left + 0.5 * middle + 0.25 * right
    return plane
