"""How much of the MAC reduction shows on the clock: dense and pruned BasicVSR side by side in one run.

    python benchmarks/latency.py                          # BasicVSR of full size, random weights
    python benchmarks/latency.py dense.safetensors compact.safetensors
    python benchmarks/latency.py --lr-size 180 320 --device cuda

Prints a table with ratios against the first network. Absolute times depend on the machine; ratios of one run compare.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn

from basicsr_ssl import load_network, prune_network
from basicsr_ssl.api import network_cost
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.latency import measure_latency
from basicsr_ssl.report.summary import format_summary

RATIO = 0.7276  # SSL's: 337.8 G to 92 G multiply-accumulates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('files', nargs='*', help='networks to compare; the first is the reference')
    parser.add_argument('--lr-size', nargs=2, type=int, default=[90, 160], metavar=('H', 'W'))
    parser.add_argument('--frames', type=int, default=3)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--flow', action='store_true', help='with SPyNet, for the networks with random weights')
    args = parser.parse_args()

    if args.files:
        nets: dict[str, nn.Module] = {file: load_network(file, dtype=torch.float32) for file in args.files}
    else:
        torch.manual_seed(0)
        dense = PrunableBasicVSR(flow='spynet' if args.flow else 'none')
        nets = {'dense': dense}
        pruned = partial(prune_network, dense, RATIO, budget='macs', score='l1')
        for round_to in (1, 8, 16):
            nets[f'global, round_to {round_to}'] = pruned(round_to=round_to)
        nets['local, round_to 8'] = pruned(scope='local', round_to=8)
    lr_size = (args.lr_size[0], args.lr_size[1])
    latency = measure_latency(nets, lr_size, args.frames, args.device, args.repeats)
    rows = [{'network': name, **network_cost(net, lr_size), 'ms_per_frame': latency[name], 'lr_size': list(lr_size),
             'device': args.device} for name, net in nets.items()]
    print(format_summary(rows, reference=next(iter(nets))))


if __name__ == '__main__':
    main()
