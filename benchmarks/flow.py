"""End-point error of flow networks beside no motion and OpenCV's DIS, on motion that is known exactly.

    python benchmarks/flow.py                                  # the yardsticks alone
    python benchmarks/flow.py experiments/spynet_small/models/net_g_latest.safetensors

Two sets that no training here sees: layers moving over photographs that scikit-image ships, as the training sets make
them from others; and its stereo pair `motorcycle`, halved, whose disparity was measured (Middlebury 2014; all motion is
along x, and larger than between the frames of most videos).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import torch
from torch import Tensor

from basicsr_ssl import load_network
from basicsr_ssl.data.flow_dataset import SyntheticFlowTestDataset
from basicsr_ssl.data.frames import read_image

Estimate = Callable[[Tensor, Tensor], Tensor]  # ref, supp (3, h, w) RGB in [0, 1] to flow (2, h, w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('files', nargs='*', help='flow networks')
    parser.add_argument('--max-motion', type=float, default=24, help='of the moving layers, in pixels')
    args = parser.parse_args()

    estimates: dict[str, Estimate] = {'no motion': lambda ref, supp: torch.zeros_like(ref[:2]), 'DIS': dis}
    estimates |= {file: from_network(file) for file in args.files}
    layers = SyntheticFlowTestDataset(dict(
        name='layers', type='SyntheticFlowTestDataset', photos=['astronaut', 'chelsea', 'coffee', 'rocket'],
        frame_size=[256, 320], max_motion=args.max_motion, pairs_per_photo=8))
    sets: dict[str, Iterable[dict[str, Any]]] = {'moving layers': [layers[i] for i in range(len(layers))],
                                                 'motorcycle': [motorcycle()]}
    print(f'| end-point error, pixels | {" | ".join(sets)} |\n|---|{"---:|" * len(sets)}')
    for name, estimate in estimates.items():
        errors = (np.mean([end_point_error(estimate(pair['ref'], pair['supp']), pair['flow']) for pair in pairs])
                  for pairs in sets.values())
        print(f'| {name} | {" | ".join(f"{error:.3f}" for error in errors)} |')


def end_point_error(flow: Tensor, truth: Tensor) -> float:
    """Mean distance, in pixels, where the true flow is known (elsewhere it is NaN)."""
    return (flow - truth).square().sum(0).sqrt().nanmean().item()


def dis(ref: Tensor, supp: Tensor) -> Tensor:
    """Dense Inverse Search (Kroeger et al., ECCV 2016), OpenCV's medium preset."""
    grey = [cv2.cvtColor((x * 255).round().byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for x in (ref, supp)]
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)  # type: ignore[arg-type]
    return torch.from_numpy(flow).permute(2, 0, 1)


def from_network(file: str) -> Estimate:
    net = load_network(file, dtype=torch.float32).eval()

    @torch.no_grad()
    def estimate(ref: Tensor, supp: Tensor) -> Tensor:
        return net(ref[None], supp[None])[0]
    return estimate


def motorcycle() -> dict[str, Tensor]:
    """The pair with the flow of its left image, which is minus the disparity; unknown where that was not measured."""
    folder = Path(skimage.__file__).parent / 'data'
    left, right = (halved(torch.from_numpy(read_image(folder / f'motorcycle_{side}.png')).permute(2, 0, 1) / 255)
                   for side in ('left', 'right'))
    disparity = torch.from_numpy(np.load(folder / 'motorcycle_disp.npz')['arr_0']).float()
    # of every second pixel: a mean over an edge would be the motion of neither side
    across = -disparity[:2 * left.shape[1]:2, :2 * left.shape[2]:2] / 2
    across = across.where(across.isfinite(), torch.nan)
    return {'ref': left, 'supp': right, 'flow': torch.stack((across, torch.zeros_like(across) * across))}


def halved(image: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(image, 2)


if __name__ == '__main__':
    main()
