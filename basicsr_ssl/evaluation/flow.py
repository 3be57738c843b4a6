"""The end-point error of a flow network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_ssl.evaluation.clips import Part, Stopwatch, combine
from basicsr_ssl.evaluation.result import Figures
from basicsr_ssl.runtime import Run

# of zero flow: what a network gains nothing against if it finds nothing
MEASURED = {'epe': {'type': 'mean end-point error in pixels'},
            'epe_of_zero_flow': {'type': 'that of no motion, for reference'}}


@torch.no_grad()
def measure_flow(net: nn.Module, dataset: Any, dataset_name: str, val: Mapping[str, Any], run: Run,
                 tb_logger: Any = None, current_iter: int = 0) -> Figures:
    """The mean end-point error of a flow network, in pixels: ``|flow - truth|``, pixels to pairs, pairs to the set.

    Args:
        net: in eval mode, on the device of ``run``; ``net(ref, supp)`` gives the flow (b, 2, h, w) that aligns
            ``supp`` to ``ref``.
        dataset: items ``{'ref', 'supp': (3, h, w) in [0, 1], 'flow': (2, h, w) in pixels, x before y, 'name'}``; the
            flow is NaN where it is not known.

    Returns:
        Metrics ``epe`` and, of a flow that is zero everywhere, ``epe_of_zero_flow``; every pair is a clip of one frame.

    Raises:
        ValueError: two pairs of one name; flows of different sizes; a pair of which no flow is known.
        FloatingPointError: the network's output is not finite.
    """
    del val, tb_logger, current_iter  # of images
    rank, world_size, device = run.processes.rank, run.processes.world_size, run.processes.device
    measured: dict[str, list[dict[str, float]]] = {}
    watch = Stopwatch(device)
    for index in range(rank, len(dataset), world_size):
        item = dataset[index]
        name, truth = item['name'], item['flow'].to(device)
        where = f'{dataset_name}: {name}'
        ref, supp = (item[key].to(device)[None] for key in ('ref', 'supp'))
        [flow] = watch.running(net(ref, supp)[0] for _ in range(1))
        if flow.shape != truth.shape:
            raise ValueError(f'{where}: the network makes a flow of {tuple(flow.shape)}, but the true one is '
                             f'{tuple(truth.shape)}')
        if not flow.isfinite().all():
            raise FloatingPointError(f'{where}: the output of the network is not finite')
        known = truth.isfinite().all(dim=0)
        if not known.any():
            raise ValueError(f'{where}: of no pixel the true flow is known; leave it out')
        if name in measured:
            raise ValueError(f'{dataset_name}: two pairs are named {name}; rename one, or leave it out')
        measured[name] = [{'epe': _epe(flow - truth, known), 'epe_of_zero_flow': _epe(truth, known)}]
    return combine(Part(measured, dict.fromkeys(measured, 1), watch.seconds), list(MEASURED), len(dataset),
                   dataset_name)


def flow_protocol(options: Mapping[str, Any], val: Mapping[str, Any], figures: Figures, missing: Sequence[str] = (),
                  lr_difference: str | None = None) -> dict[str, Any]:
    """As ``describe_protocol``, of flow: no benchmark of it is known here."""
    del options, val, figures, lr_difference  # of images
    return {'published': False, 'partial': bool(missing), 'missing': list(missing), 'deviations': [], 'channel': '',
            'crop': 0, 'frames': 'all', 'flip_seq': False, 'segment': None, 'averaging': 'mean of the pairs',
            'lr': None, 'kernel': None, 'border': None, 'phase': None, 'scale': 1, 'measured': MEASURED}


def _epe(difference: Tensor, known: Tensor) -> float:
    return float(difference.double().square().sum(0).sqrt()[known].mean())
