"""Pairs of frames with exactly known optical flow, made from photographs.

Real video has no ground truth, and SpyNet's public weights come from rendered films. Here a background and a few
foreground objects with soft edges, each a photograph of its own, move by smooth random flows. The second frame
samples layer k at ``W_k(q)``, an affine map into its photograph, and the first one at ``W_k(p + f_k(p))``: whatever
the flow f_k, the point seen at p in the first frame lies at ``p + f_k(p)`` in the second one, without any inversion or
approximation, and both frames are interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

_NEAREST_OPAQUE = 0.5  # opacity from which on a layer is what is seen at a pixel


class Pair(NamedTuple):
    """Two frames and the flow that aligns the second one to the first: ``ref(p) = supp(p + flow(p))``.

    Attributes:
        ref, supp: (h, w, 3), float32 in [0, 1].
        flow: (h, w, 2), float32, in pixels, x then y.
        valid: (h, w), bool: what is seen at p in ``ref`` is also seen in ``supp``, neither hidden nor outside.
    """
    ref: np.ndarray
    supp: np.ndarray
    flow: np.ndarray
    valid: np.ndarray


def moving_layers(photos: Sequence[np.ndarray], size: tuple[int, int], max_motion: float,
                  rng: np.random.Generator) -> Pair:
    """A pair of frames of a moving camera and moving objects.

    Args:
        photos: (H, W, 3) uint8; the first is the background, each of the others an object. Any size: they are
            mirrored at their borders.
        size: (h, w) of the frames.
        max_motion: bound of the length of every layer's translation, in pixels. Lengths are log-uniform between 0.1 and
            this, since most motion between frames is small; a tenth of the layers stands still.
        rng: source of randomness.
    """
    h, w = size
    grid = np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), axis=-1)
    camera = random_flow(size, max_motion, rng)
    ref = supp = np.zeros((h, w, 3), np.float32)
    flow = np.zeros((h, w, 2), np.float32)
    seen_ref = seen_supp = np.full((h, w), -1, np.int32)
    for k, photo in enumerate(photos):
        own = camera if k == 0 else (camera if rng.random() < 0.5 else 0) + random_flow(size, max_motion, rng)
        texture = _texture_map(photo.shape[:2], size, rng)
        mask = None if k == 0 else _blob(size, rng)
        alphas = []
        for points, frame in ((grid + own, 'ref'), (grid, 'supp')):
            colour = _sampled(photo, texture(points), cv2.INTER_CUBIC)
            alpha = np.ones((h, w), np.float32) if mask is None else _sampled(mask, points, cv2.INTER_LINEAR)
            alphas.append(alpha)
            if frame == 'ref':
                ref = ref + alpha[..., None] * (colour - ref)
            else:
                supp = supp + alpha[..., None] * (colour - supp)
        on_top = alphas[0] >= _NEAREST_OPAQUE
        flow = np.where(on_top[..., None], own, flow)
        seen_ref = np.where(on_top, k, seen_ref)
        seen_supp = np.where(alphas[1] >= _NEAREST_OPAQUE, k, seen_supp)
    ref, supp = _photographed(ref, supp, rng)
    return Pair(ref, supp, flow.astype(np.float32), _still_seen(grid + flow, seen_ref, seen_supp))


def random_flow(size: tuple[int, int], max_motion: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth flow (h, w, 2): translation, turn and zoom about a random point, and a bending field."""
    h, w = size
    if rng.random() < 0.1:
        return np.zeros((h, w, 2), np.float32)
    length, heading = math.exp(rng.uniform(math.log(0.1), math.log(max_motion))), rng.uniform(0, 2 * math.pi)
    # what turning and zooming add at the border is of the order of the translation
    turn, zoom = rng.normal(0, 0.5, 2) * length / max(h, w)
    centre = rng.uniform(0, 1, 2) * (w, h)
    x, y = np.meshgrid(np.arange(w) - centre[0], np.arange(h) - centre[1])
    flow = np.stack([length * math.cos(heading) + zoom * x - turn * y,
                     length * math.sin(heading) + zoom * y + turn * x], axis=-1)
    if rng.random() < 0.5:
        coarse = rng.normal(0, 0.3 * min(length, 4), (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 2))
        flow += cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    return flow.astype(np.float32)


def _texture_map(photo: tuple[int, int], size: tuple[int, int], rng: np.random.Generator):
    """A random map from frame coordinates to those of a photograph (h, w): turned, shifted, slightly enlarged.

    At most as sharp as the photograph, so that nothing is aliased."""
    scale, angle = rng.uniform(0.7, 1.0), rng.uniform(-math.pi, math.pi)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.array(size[::-1]) / 2
    target = rng.uniform(0.2, 0.8, 2) * np.array(photo[::-1])

    def texture(points: np.ndarray) -> np.ndarray:
        return ((points - middle) @ linear.T + target).astype(np.float32)
    return texture


def _sampled(image: np.ndarray, points: np.ndarray, interpolation: int) -> np.ndarray:
    """An image at points (h, w, 2), mirrored at its borders; uint8 as float32 in [0, 1]."""
    values = cv2.remap(image, points[..., 0].astype(np.float32), points[..., 1].astype(np.float32), interpolation,
                       borderMode=cv2.BORDER_REFLECT_101 if image.ndim == 3 else cv2.BORDER_CONSTANT)
    return values.astype(np.float32) / 255 if image.dtype == np.uint8 else values


def _blob(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Opacity (h, w) of an object of random outline, with an edge of a pixel or two."""
    h, w = size
    noise = cv2.resize(rng.normal(0, 1, (int(rng.integers(3, 9)),) * 2).astype(np.float32), (w, h),
                       interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(w) / w, np.arange(h) / h)
    centre, radius = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.35)
    body = 1 - np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(0.6, 1.6)) / radius + 0.3 * noise
    return cv2.GaussianBlur((body > 0).astype(np.float32), (0, 0), rng.uniform(0.4, 1.2))


def _photographed(ref: np.ndarray, supp: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both frames with their own exposure and noise, and at times a common blur; rounded to 8 bit like files."""
    sigma, noise = rng.uniform(0.3, 1.0), rng.uniform(0, 0.015) * (rng.random() < 0.5)
    blurred = rng.random() < 0.3
    frames = []
    for frame in (ref, supp):
        frame = cv2.GaussianBlur(frame, (0, 0), sigma) if blurred else frame
        frame = frame * (1 + rng.normal(0, 0.02)) + rng.normal(0, 0.01) + rng.normal(0, 1, frame.shape) * noise
        frames.append((np.rint(frame * 255).clip(0, 255) / 255).astype(np.float32))
    return frames[0], frames[1]


def _still_seen(points: np.ndarray, seen_ref: np.ndarray, seen_supp: np.ndarray) -> np.ndarray:
    h, w = seen_ref.shape
    x, y = np.rint(points[..., 0]).astype(int), np.rint(points[..., 1]).astype(int)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return inside & (seen_supp[y.clip(0, h - 1), x.clip(0, w - 1)] == seen_ref)
