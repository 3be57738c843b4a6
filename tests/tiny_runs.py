"""Training runs small enough for tests: generated clips on disk, and option files for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

NETWORK = {'type': 'PrunableBasicVSR', 'num_feat': 8, 'num_block': 1, 'tail_feat': 8, 'flow': 'none'}


def write_clips(folder: Path, clips: int = 3, frames: int = 4, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Clips of smooth random texture that moves a pixel a frame, as PNG: ``folder/clip_k/0000000j.png``."""
    rng = np.random.default_rng(seed)
    for k in range(clips):
        texture = cv2.GaussianBlur(rng.random((size[0] + frames, size[1] + frames, 3)), (0, 0), 1.5)
        texture = (texture - texture.min()) / np.ptp(texture)
        (folder / f'clip_{k}').mkdir(parents=True)
        for j in range(frames):
            frame = texture[j:j + size[0], j:j + size[1]]
            cv2.imwrite(str(folder / f'clip_{k}' / f'{j:08d}.png'), np.rint(frame * 255).astype(np.uint8))
    return folder


def options(data: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of 8 iterations; ``changes`` replace or (mappings) update entries of the top level."""
    opt: dict[str, Any] = {
        'name': 'run', 'model_type': 'ReconstructionModel', 'scale': 4, 'num_gpu': 0, 'manual_seed': 3,
        'network_g': dict(NETWORK),
        'datasets': {
            'train': {'name': 'clips', 'type': 'ClipFoldersDataset', 'dataroot_gt': str(data), 'degradation': 'BI',
                      'num_frame': 2, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'random_reverse': True,
                      'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0},
            'val': {'name': 'held', 'type': 'ClipFoldersTestDataset', 'dataroot_gt': str(data), 'degradation': 'BI'}},
        'train': {'total_iter': 8, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
                  'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [8], 'eta_min': 1e-5},
                  'pixel_opt': {'type': 'CharbonnierLoss'}, 'ema_decay': 0.9},
        'val': {'val_freq': 100, 'pbar': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0},
                            'ssim': {'type': 'calculate_ssim', 'crop_border': 0}}},
        'logger': {'print_freq': 2, 'save_checkpoint_freq': 4, 'use_tb_logger': False, 'keep_states': 10},
    }
    return _updated(opt, changes)


def write_options(path: Path, opt: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(opt), sort_keys=False))
    return path


def _updated(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            tree[key] = _updated(dict(tree[key]), value)
        else:
            tree[key] = value
    return tree
