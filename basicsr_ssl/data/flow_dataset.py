"""Datasets of pairs of frames whose motion is known exactly, see ``motion``: for training flow networks, for testing.

Items are ``{'ref', 'supp': (3, h, w) float32 RGB in [0, 1], 'flow': (2, h, w) in pixels, x before y}`` with the flow
that aligns ``supp`` to ``ref``. It is NaN where a pixel of ``ref`` is not seen in ``supp``, hidden or outside: no
network can find it there, and alignment has no use for it.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_ssl.data.motion import moving_layers
from basicsr_ssl.data.options import SyntheticFlowOptions, SyntheticFlowTestOptions
from basicsr_ssl.data.photographs import Photographs


class _FlowDataset(Dataset):
    """What both have in common: photographs, and pairs made of them.

    Args:
        opt: keys of ``Options``.

    Raises:
        DatasetError: no such photograph or folder.
    """

    Options: ClassVar[type[SyntheticFlowOptions]]
    task = 'flow'

    def __init__(self, opt: dict[str, Any]) -> None:
        self.options = self.Options(**opt)
        self.library = Photographs(self.options.name, self.options.photos, self.options.dataroot_gt)

    def pair(self, background: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Objects cut from any photographs, moving before the one with the number ``background``."""
        photos, options = self.library.photos, self.options
        objects = rng.integers(0, len(photos), rng.integers(0, options.max_objects + 1))
        pixels = [self.library.pixels(photos[int(i)]) for i in (background, *objects)]
        pair = moving_layers(pixels, (options.frame_size[0], options.frame_size[1]), options.max_motion, rng)
        flow = np.where(pair.valid[..., None], pair.flow, np.float32('nan'))
        return {key: torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
                for key, array in (('ref', pair.ref), ('supp', pair.supp), ('flow', flow))}


@DATASET_REGISTRY.register()  # type: ignore[misc]
class SyntheticFlowDataset(_FlowDataset):
    """Training pairs: one item per photograph, which is the background, with other objects and motion each time.

    All randomness follows from Python's ``random``, so that a seed before the call fixes the item.
    """

    Options = SyntheticFlowOptions

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'there are {len(self)} items, got index {index}')
        rng = np.random.default_rng(random.getrandbits(64))
        return {**self.pair(index, rng), 'key': self.library.photos[index].name}

    def __len__(self) -> int:
        return len(self.library.photos)


@DATASET_REGISTRY.register()  # type: ignore[misc]
class SyntheticFlowTestDataset(_FlowDataset):
    """Pairs that are the same in every run, ``pairs_per_photo`` of each photograph, with ``'name'``."""

    Options = SyntheticFlowTestOptions
    options: SyntheticFlowTestOptions

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'there are {len(self)} items, got index {index}')
        rng = np.random.default_rng((self.options.seed, index))
        again, photo = divmod(index, len(self.library.photos))
        return {**self.pair(photo, rng), 'name': f'{self.library.photos[photo].name}_{again}'}

    def __len__(self) -> int:
        return len(self.library.photos) * self.options.pairs_per_photo
