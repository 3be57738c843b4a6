"""What networks make of test clips, as pictures: crops beside one another, and one column of pixels along time."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from basicsr.metrics import calculate_psnr
from PIL import Image
from torch import nn

from basicsr_ssl.checkpoints.store import BICUBIC
from basicsr_ssl.evaluation.inference import as_frame, as_image, super_resolve
from basicsr_ssl.files import write_atomically, write_text
from basicsr_ssl.report.plots import Panel, pick_crop

PICTURE_CLIPS = 3
# frames around the pictured one that the networks see: enough for the states to settle, and the picture of a long
# clip does not cost another test of it
PICTURE_FRAMES = 15
PROFILE_FRAMES = 40  # of the first clip, whose column of pixels is shown along time
FOLDER, LIST = 'pictures', 'pictures.json'


class Pictures(NamedTuple):
    """Rows of panels (label, image (h, w, 3) uint8 RGB, caption).

    Attributes:
        crops: a row for each clip: LR with the clip's name, networks with their PSNR on the whole frame, GT.
        profile: the middle column of pixels of the first clip, (h, frames, 3), by networks and of GT; no panels, if the
            clip has one frame.
    """
    crops: Sequence[Sequence[Panel]]
    profile: Sequence[Panel]


def make_pictures(nets: dict[str, nn.Module], dataset: Any, device: torch.device, crop: int) -> Pictures:
    """Crops of the middle frames of a few clips, of LR, every network and GT; and the first clip along time.

    Args:
        nets: by label, on ``device``.
        dataset: test items as in ``data.clips_dataset``.
        device: where they run.
        crop: side of the square, in LR pixels; it is where the first network gains most over bicubic.

    Raises:
        DatasetError: a frame cannot be read.
    """
    crops: list[list[Panel]] = []
    profile: list[Panel] = []
    for index in range(min(PICTURE_CLIPS, len(dataset))):
        item = dataset[index]
        n = len(item['lq'])
        count = PROFILE_FRAMES if index == 0 else PICTURE_FRAMES
        first = max(0, n // 2 - count // 2)
        lq = [item['lq'][i] for i in range(first, min(n, first + count))]
        middle, scale = n // 2 - first, item['gt'][0].shape[-2] // lq[0].shape[-2]
        gt = as_image(item['gt'][n // 2])
        frames: dict[str, np.ndarray] = {}
        lines: dict[str, list[np.ndarray]] = {}
        for label, net in nets.items():
            made = super_resolve(net, (as_frame(frame).to(device) for frame in lq))
            for i, frame in enumerate(made if index == 0 else islice(made, middle + 1)):
                image = as_image(frame)
                lines.setdefault(label, []).append(image[:, image.shape[1] // 2])
                if i == middle:
                    frames[label] = image
        reference = frames.get(BICUBIC, next(iter(frames.values())))
        best = next((frame for label, frame in frames.items() if label != BICUBIC), reference)
        size = min(crop * scale, *gt.shape[:2]) // scale * scale
        top, left = pick_crop(gt, best, reference, size, step=scale)
        small = as_image(lq[middle])[top // scale:(top + size) // scale, left // scale:(left + size) // scale]
        panels: list[Panel] = [('LR', _rgb(small), item['folder'])]
        for label, frame in frames.items():
            panels.append((label, _rgb(frame[top:top + size, left:left + size]),
                           f'{calculate_psnr(frame, gt, crop_border=0):.2f} dB'))
        crops.append([*panels, ('GT', _rgb(gt[top:top + size, left:left + size]), '')])
        if index == 0 and len(lq) > 1:
            lines['GT'] = [as_image(item['gt'][first + i])[:, gt.shape[1] // 2] for i in range(len(lq))]
            profile = [(label, _rgb(np.stack(columns, axis=1)), '') for label, columns in lines.items()]
    return Pictures(crops, profile)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def save_pictures(folder: str | os.PathLike, pictures: Pictures) -> None:
    """Write them as PNG into ``pictures/``, and what they are into ``pictures.json``.

    Raises:
        OSError: a file could not be written.
    """
    def saved(name: str, panels: Sequence[Panel]) -> list[dict[str, str]]:
        files = [f'{name}_{i}.png' for i in range(len(panels))]
        for file, (_, image, _) in zip(files, panels):
            write_atomically(Path(folder, FOLDER, file), lambda path, i=image: Image.fromarray(i).save(path, 'PNG'))
        return [{'file': file, 'label': label, 'caption': caption}
                for file, (label, _, caption) in zip(files, panels)]

    told = {'crops': [saved(f'crop_{i}', row) for i, row in enumerate(pictures.crops)],
            'profile': saved('profile', pictures.profile)}
    write_text(Path(folder, FOLDER, LIST), json.dumps(told, indent=2) + '\n')


def read_pictures(folder: str | os.PathLike) -> dict[str, Any] | None:
    """What ``save_pictures`` wrote, with whole paths of the files; None if there is nothing.

    Raises:
        OSError, ValueError: it cannot be read, or is something else; names the file.
    """
    path = Path(folder, FOLDER, LIST)
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding='utf-8'))
        return {'crops': [[_whole(panel, path) for panel in row] for row in told['crops']],
                'profile': [_whole(panel, path) for panel in told['profile']]}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path} is not what a report writes ({error!r}): remove it, or run the recipe again'
                         ) from error


def _whole(panel: dict[str, str], path: Path) -> dict[str, str]:
    return {'label': panel['label'], 'caption': panel['caption'], 'file': str(path.parent / panel['file'])}
