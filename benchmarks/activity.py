"""What the filters are worth that a score keeps: how often they fire, and what could be made of them.

    python benchmarks/activity.py EDSR.safetensors datasets/samples/photos

Of every group of filters within the blocks of a network for images, with 60 % of them removed one-shot: in how many
places those that are left are above zero, their share of the features' energy against that of as many average ones, and
the error of what the next convolution makes of them alone, as a share of the variance of what it makes of all: with the
weights that it has, and with the best ones that there are (least squares). The means over all blocks come last.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl import load_network
from basicsr_ssl.api import choose_units
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.report.tables import format_table

FIGURES = {'active': 'active', 'energy': 'energy', 'error': 'error', 'refitted': 'error, refitted'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('file', help='a network for images')
    parser.add_argument('photos', type=Path, help='folder of photographs; a crop of each of the first 24 counts')
    parser.add_argument('--ratio', type=float, default=0.6, help='share of the filters of every group to remove')
    parser.add_argument('--scores', nargs='+', default=['l1', 'l2', 'random'])
    parser.add_argument('--seeds', type=int, default=3, help='of the score random')
    args = parser.parse_args()
    net: Any = load_network(args.file, dtype=torch.float32).eval()
    inputs, outputs = features(net, crops(args.photos))
    rows = []
    for score in args.scores:
        choices = [choose_units(net, PruningOptions.of(ratio=args.ratio, score=score, scope='local', seed=seed))
                   for seed in range(args.seeds if score == 'random' else 1)]
        found = []
        for group in net.groups:
            if not group.name.endswith('.mid'):
                continue
            follower = next(s.param for s in group.slices if s.dim == 1).removesuffix('.weight')
            weight = net.get_submodule(follower).weight
            figures = np.mean([worth(inputs[follower], outputs[follower], weight, kept[group.name])
                               for kept in choices], axis=0)
            found.append(figures)
            rows.append({'group': group.name, 'score': score, **dict(zip(FIGURES, figures))})
        rows.append({'group': 'mean', 'score': score, **dict(zip(FIGURES, np.mean(found, axis=0)))})
    rows.sort(key=lambda row: row['group'])
    print(format_table(rows, [('group', 'filters of', 's'), ('score', 'kept by', 's'),
                              *((key, title, '.2f') for key, title in FIGURES.items())]))


def crops(folder: Path, count: int = 24, size: int = 48) -> Tensor:
    """(n, 3, size, size), RGB in [0, 1]: what lies in the upper left corner of each photograph, halved."""
    found = []
    for file in sorted(folder.rglob('*')):
        image = cv2.imread(str(file))
        if image is not None and min(image.shape[:2]) >= 2 * size and len(found) < count:
            found.append(cv2.resize(image[:2 * size, :2 * size, ::-1], (size, size), interpolation=cv2.INTER_AREA))
    if not found:
        raise SystemExit(f'{folder} holds no photographs of at least {2 * size} pixels')
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def features(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every convolution reads and makes, by name."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            def remember(module: nn.Module, given: tuple[Tensor, ...], made: Tensor, name: str = name) -> None:
                inputs[name], outputs[name] = given[0].clone(), made.clone()
            module.register_forward_hook(remember)
    net(x)
    return inputs, outputs


@torch.no_grad()
def worth(x: Tensor, y: Tensor, weight: Tensor, kept: list[int]) -> tuple[float, float, float, float]:
    """The figures of ``FIGURES``, of features x (n, c, h, w), of which a convolution makes y (n, d, h, w)."""
    left = x[:, kept]
    lost = F.conv2d(x, weight, padding='same') - F.conv2d(left, weight[:, kept], padding='same')
    variance = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    return (float((left > 0).float().mean()), float(left.square().mean() / x.square().mean()),
            float(lost.square().sum() / variance), refitted(left, y, weight.shape[-1]))


def refitted(x: Tensor, y: Tensor, kernel: int, samples: int = 20000) -> float:
    """Share of the variance of y that no convolution of x, with a bias, can make."""
    patches = F.unfold(x, kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
    some = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:samples]
    a = F.pad(patches[some], (0, 1), value=1.0).double()
    b = y.permute(0, 2, 3, 1).flatten(0, 2)[some].double()
    best = torch.linalg.solve(a.T @ a + 1e-6 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return float((a @ best - b).square().sum() / (b - b.mean(0)).square().sum())


if __name__ == '__main__':
    main()
