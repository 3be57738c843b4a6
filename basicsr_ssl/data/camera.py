"""A camera that moves smoothly over a photograph: clips with known sub-pixel motion."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

#: Draws a number between two bounds, like ``random.uniform``.
Uniform = Callable[[float, float], float]

_TAPS = 2  # pixels that bicubic interpolation reads beyond a point, at most
_ROOM = 16  # pixels that a photograph must have beyond the window, so that the camera has somewhere to go
_FASTEST = 0.3  # radians per frame: the quickest oscillation is 21 frames long


def size_needed(window: tuple[int, int], zoom: float) -> tuple[int, int]:
    """(h, w) of the smallest photograph for a ``window`` (h, w) in GT pixels, each ``zoom`` pixels wide."""
    return math.ceil(window[0] * zoom) + _ROOM, math.ceil(window[1] * zoom) + _ROOM


def camera_path(num_frame: int, window: tuple[int, int], photo_size: tuple[int, int], max_speed: float,
                max_rotation: float, zoom: tuple[float, float], uniform: Uniform) -> np.ndarray:
    """A random smooth path that keeps the whole window inside the photograph.

    Speed, heading, roll and zoom each follow a slow sinusoid within their bounds. Where the photograph is too small for
    the path, the whole path is shrunk, never clipped, so that it stays smooth.

    Args:
        num_frame: length of the path t.
        window: (h, w) of a frame in GT pixels.
        photo_size: (h, w) of the photograph, at least ``size_needed(window, zoom[0])``.
        max_speed: bound of the speed of the window's centre, in GT pixels per frame.
        max_rotation: bound of the roll, in degrees.
        zoom: bounds of the width of a GT pixel in pixels of the photograph.
        uniform: source of randomness.

    Returns:
        (t, 2, 3): per frame the affine map from a GT pixel (x, y, 1) to the point (x, y) of the photograph.
    """
    time = np.arange(num_frame)

    def wave(low: float, high: float) -> np.ndarray:
        amplitude = uniform(0, (high - low) / 2)
        middle = uniform(low + amplitude, high - amplitude)
        return middle + amplitude * np.sin(uniform(0, _FASTEST) * time + uniform(0, 2 * math.pi))

    speed, heading = wave(0, max_speed), uniform(0, 2 * math.pi) + wave(0, math.pi)
    roll, width = np.radians(wave(-max_rotation, max_rotation)), wave(*zoom)
    steps = (speed * width)[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    centre = np.cumsum(steps, axis=0) - steps[0]
    space = np.array(photo_size[::-1]) - 1 - 2 * _TAPS
    for extent in (1, 1 / 2, 1 / 4, 1 / 8, 0):
        maps = _affine_maps(extent * centre, extent * roll, zoom[0] + extent * (width - zoom[0]), window)
        low, high = _bounds(maps, window)
        slack = space - (high - low)
        if (slack >= 0).all():
            break
    maps[:, :, 2] += _TAPS - low + [uniform(0, slack[0]), uniform(0, slack[1])]
    return maps


def render(photo: np.ndarray, maps: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """What the camera sees along a path, interpolated bicubically and rounded to 8 bit like real frames.

    In float64, so that the rounded result is the same on every machine.

    Args:
        photo: (H, W, 3) uint8.
        maps: (t, 2, 3) of :func:`camera_path`.
        window: (h, w) of a frame.

    Returns:
        (t, h, w, 3) uint8.
    """
    low, high = _bounds(maps, window)
    (left, top), (right, bottom) = np.floor(low).astype(int) - 1, np.floor(high).astype(int) + 3
    region = torch.from_numpy(photo[top:bottom, left:right]).permute(2, 0, 1).double()
    y, x = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing='ij')
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).double()  # (h, w, 3)
    points = torch.einsum('tij,hwj->thwi', torch.from_numpy(maps), pixels) - torch.tensor([left, top])
    extent = torch.tensor([right - left - 1, bottom - top - 1])
    frames = F.grid_sample(region.expand(len(maps), -1, -1, -1), 2 * points / extent - 1, mode='bicubic',
                           padding_mode='border', align_corners=True)
    return frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _affine_maps(centre: np.ndarray, roll: np.ndarray, width: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """(t, 2, 3) maps that put the window's middle at ``centre`` (t, 2), turned by ``roll``, enlarged by ``width``."""
    cos, sin = width * np.cos(roll), width * np.sin(roll)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    middle = np.array([window[1] - 1, window[0] - 1]) / 2
    return np.concatenate([linear, (centre - linear @ middle)[:, :, None]], axis=2)


def _bounds(maps: np.ndarray, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest (x, y) of the photograph that any frame touches."""
    right, bottom = window[1] - 1, window[0] - 1
    corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]])
    points = np.einsum('tij,kj->tki', maps, corners)
    return points.min(axis=(0, 1)), points.max(axis=(0, 1))
