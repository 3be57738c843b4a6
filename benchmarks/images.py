"""Pruning methods on one trained EDSR and real photographs: every method, share and seed, and a table of them.

    python benchmarks/images.py                                       # all: about two hours on two cores
    python benchmarks/images.py --methods l1 assl --seeds 0 --shares 0.875
    python benchmarks/images.py --force train:optim_g:lr=5e-4 --tag lr5e-4      # a sweep is one more run
    python benchmarks/images.py --table                               # of what is finished

What a method is stands in options/train/photos/, what all share in options/_base_/experiments/photos_x2.yml, with the
data that it expects. A run is a recipe of its own, experiments/photos_<method>_<share>_<seed>[_<tag>]; what is finished
is skipped, and what was interrupted goes on. The table gives mean and standard deviation over the seeds, of PSNR in dB
and SSIM on Y: of the finished network, and in the column "pruned" PSNR on Set5 before its finetuning.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from basicsr_ssl import load_network
from basicsr_ssl.api import network_cost

OPTIONS = Path(__file__).parents[1] / 'options/train/photos'
METHODS = ('random', 'l1', 'srp', 'assl', 'l1_rsc', 'ssl', 'from_scratch')
SHARES = (0.6667, 0.875)  # of MACs
LR_SIZE = (360, 640)  # of a frame of 1280x720


def run_name(method: str, share: float, seed: int, tag: str) -> str:
    return f'photos_{method}_{share:g}_{seed}' + (f'_{tag}' if tag else '')


def train(args: argparse.Namespace, method: str, share: float, seed: int) -> int:
    name = run_name(method, share, seed, args.tag)
    command = [sys.executable, '-m', 'basicsr_ssl', 'train', '-opt', str(OPTIONS / f'EDSR_x2_{method}.yml'),
               '--force_yml', f'name={name}', f'path:root={args.root}', f'manual_seed={seed}', f'pruning:seed={seed}',
               f'pruning:ratio={share}', *args.force]
    log = Path(args.root, f'{name}.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a') as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT,
                              env={**os.environ, 'OMP_NUM_THREADS': str(args.threads)}).returncode
    print(name, 'finished' if code == 0 else f'ended with {code}, see {log}', flush=True)
    return code


def network(root: str, name: str, stage: str) -> Any:
    path = Path(root, 'experiments', name, stage, 'models/net_g_latest.safetensors')
    return load_network(path) if path.is_file() else None


def table(args: argparse.Namespace) -> str:
    """Markdown; a row for each method and share of which a run is finished."""
    lines = ['| method | MACs removed | params | MACs | seeds | pruned | Set5 | Set14 |',
             '|---|---:|---:|---:|---:|---:|---:|---:|']
    for share, method in product(args.shares, args.methods):
        names = [run_name(method, share, seed, args.tag) for seed in args.seeds]
        pairs = [[network(args.root, name, stage) for stage in ('pruning', 'finetune')] for name in names]
        pairs = [(pruned.provenance['metrics'], last) for pruned, last in pairs if last is not None]
        if not pairs:
            continue
        cost = network_cost(pairs[0][1], LR_SIZE)
        cells = [spread([metrics['Set5']['psnr'] for metrics, _ in pairs])] + [
            ' / '.join((spread([last.provenance['metrics'][name]['psnr'] for _, last in pairs]),
                        spread([last.provenance['metrics'][name]['ssim'] for _, last in pairs], 4)))
            for name in ('Set5', 'Set14')]
        lines.append(f'| {method} | {share:.1%} | {cost["params"]:,} | {cost["macs"] / 1e9:.1f} G | {len(pairs)} | '
                     + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def spread(values: list[float], digits: int = 2) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument('--shares', nargs='+', type=float, default=SHARES, help='of MACs that are removed')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time')
    parser.add_argument('--threads', type=int, default=1, help='of each run')
    parser.add_argument('--root', default='.', help='folder of experiments/')
    parser.add_argument('--force', nargs='+', default=[], metavar='KEY=VALUE',
                        help='as --force_yml of basicsr-ssl train')
    parser.add_argument('--tag', default='', help='end of the names of these runs, if --force makes them others')
    parser.add_argument('--table', action='store_true', help='only the table of what is finished')
    args = parser.parse_args()
    failed = 0
    if not args.table:
        with ThreadPoolExecutor(args.jobs) as pool:  # seed by seed, so that an early end leaves whole rows
            runs = [pool.submit(train, args, method, share, seed)
                    for seed, share, method in product(args.seeds, args.shares, args.methods)]
            failed = sum(run.result() != 0 for run in runs)
    print(table(args))
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
