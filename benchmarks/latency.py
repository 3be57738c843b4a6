"""How much of the MAC reduction shows on the clock: dense and pruned BasicVSR side by side in one run.

    python benchmarks/latency.py                          # BasicVSR of full size, random weights
    python benchmarks/latency.py dense.safetensors compact.safetensors
    python benchmarks/latency.py --lr-size 180 320 --device cuda
    python benchmarks/latency.py --threads 1 2 --lr-size 144 180 --flow
    taskset -c 0 python benchmarks/latency.py --threads 1 --blocks 5 --unidirectional --budgets 0.3 0.5 0.6 0.7

Three columns of milliseconds per frame: of the forward pass of training, which with RSC is the published one (channels
gathered, two convolutions, ``index_add`` out of place); of inference as it is; and as ``optimize_network`` plans it.
"cut" is how many times fewer MACs, "realised" how many times faster, against the first network as planned; where both
agree, the cut shows on the clock. "rival" is how many times faster, as planned, than the published way of running a
pruned network: uneven widths, the forward pass of training, with ``--flow`` beside a SpyNet of full size. With
``--budgets``, networks pruned to a budget of latency instead: how much of it was to be removed, and how much a
measurement afterwards finds removed. Absolute times depend on the machine; ratios of one run compare.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import nn

from basicsr_ssl import count_macs, load_network, optimize_network, prune_network
from basicsr_ssl.api import with_args
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.latency import num_threads, random_clip, run_clip, time_in_turn, work_clock
from basicsr_ssl.plans.budget import latency_figures
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.report.tables import Column, format_table, human

RATIO = 0.7276  # SSL's: 337.8 G to 92 G multiply-accumulates
RIVAL = 'free, round_to 1'  # as it is published
FORMS = {'training': 'published RSC forward', 'as it is': 'inference', 'planned': 'optimize_network'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('files', nargs='*', help='networks to compare; the first is the reference')
    parser.add_argument('--lr-size', nargs=2, type=int, default=[90, 160], metavar=('H', 'W'))
    parser.add_argument('--frames', type=int, default=3)
    parser.add_argument('--repeats', type=int, default=5, help='of which the least counts')
    parser.add_argument('--threads', type=int, nargs='+', default=[None], help='of the CPU; a table for each')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--blocks', type=int, default=30, help='of each trunk, of the networks with random weights')
    parser.add_argument('--round-to', type=int, nargs='+', default=[1, 8, 16], metavar='N',
                        help='widths of the pruned ones, and each takes minutes to plan (default: 1 8 16)')
    parser.add_argument('--unidirectional', action='store_true', help='these networks')
    parser.add_argument('--flow', action='store_true', help="these networks with SpyNet, beside BasicSR's own class")
    parser.add_argument('--budgets', nargs='+', type=float, metavar='RATIO',
                        help='shares of the milliseconds to be removed from the first network')
    args = parser.parse_args()
    lr_size = (args.lr_size[0], args.lr_size[1])
    for threads in args.threads:
        with num_threads(threads), torch.no_grad():
            print(f'{lr_size[0]}x{lr_size[1]} LR, {torch.get_num_threads()} thread(s), {args.device}\n')
            if args.budgets:
                print(budgets(next(iter(_read(args.files).values())) if args.files else _dense(args), args.budgets,
                              lr_size=[*lr_size], device=args.device, threads=threads))
            else:
                nets = _read(args.files) if args.files else _make(args, threads)
                print(compare({name: net.to(args.device).eval() for name, net in nets.items()}, lr_size, args.frames,
                              args.repeats))


def _read(files: list[str]) -> dict[str, nn.Module]:
    return {file: load_network(file, dtype=torch.float32) for file in files}


def _dense(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return PrunableBasicVSR(num_block=args.blocks, bidirectional=not args.unidirectional,
                            flow='spynet' if args.flow else 'none')


def _make(args: argparse.Namespace, threads: int | None) -> dict[str, nn.Module]:
    dense = _dense(args)
    pruned = partial(prune_network, dense, RATIO, score='l1')
    clock = {'budget': 'latency', 'lr_size': args.lr_size, 'device': args.device, 'threads': threads}
    nets = {'dense': dense, **{f'{layout}, round_to {round_to}': pruned(budget='macs', layout=layout, round_to=round_to)
                               for layout in ('free', 'runs') for round_to in args.round_to}}
    if not args.flow:
        nets['runs, widths by latency'] = pruned(layout='runs', **clock)
    else:
        both: Any = pruned(budget='macs', layout='runs', round_to=8, flow=True, flow_ratio=RATIO)
        nets |= {'runs, round_to 8, SpyNet too': both,
                 'the same, flow_scale 2': with_args(both, {**both.spec.args, 'flow_scale': 2}),
                 'runs, widths by latency, SpyNet too': pruned(layout='runs', flow=True, **clock)}
        if not args.unidirectional:
            nets["BasicSR's class"] = _of_basicsr(dense, args.blocks)
    return nets


def _of_basicsr(dense: nn.Module, blocks: int) -> nn.Module:
    from basicsr.archs.basicvsr_arch import BasicVSR
    net = BasicVSR(num_feat=64, num_block=blocks)
    net.load_state_dict(dense.state_dict())
    return net


def compare(nets: dict[str, nn.Module], lr_size: tuple[int, int], frames: int, repeats: int) -> str:
    device = next(next(iter(nets.values())).parameters()).device
    clip = random_clip(lr_size, frames, device)
    runs: dict[tuple[str, str], Any] = {}
    for name, net in nets.items():
        runs[name, 'training'] = partial(net, clip)
        if isinstance(net, PrunableBasicVSR):  # of BasicSR's there is one form
            planned = optimize_network(net, lr_size)
            runs |= {(name, 'as it is'): partial(run_clip, net, clip),
                     (name, 'planned'): partial(run_clip, planned, clip)}
    ms = {key: 1000 * min(seconds) / frames
          for key, seconds in time_in_turn(runs, repeats, 1, device, work_clock(device)).items()}
    first = next(iter(nets))
    rows = []
    for name, net in nets.items():
        row: dict[str, Any] = {'network': name, **{form: ms.get((name, form)) for form in FORMS}}
        if isinstance(net, PrunableBasicVSR):
            row['macs'] = count_macs(net, lr_size)
            row['cut'] = count_macs(nets[first], lr_size) / row['macs']
            row['realised'] = ms[first, 'planned'] / ms[name, 'planned']
            row['share'] = row['realised'] / row['cut']
            if RIVAL in nets:
                row['rival'] = ms[RIVAL, 'training'] / ms[name, 'planned']
        rows.append(row)
    columns: list[Column] = [('network', 'network', 's'), ('macs', 'MACs', human),
                             *((form, f'ms, {title}', '.0f') for form, title in FORMS.items()),
                             ('cut', 'cut', '.2f'), ('realised', 'realised', '.2f'), ('share', 'realised/cut', '.2f'),
                             *([('rival', 'rival', '.2f')] if RIVAL in nets else [])]
    return format_table(rows, columns)


def budgets(net: nn.Module, ratios: list[float], **where: Any) -> str:
    lr_size = (where['lr_size'][0], where['lr_size'][1])
    rows = []
    for ratio in ratios:
        settings = {'ratio': ratio, 'budget': 'latency', 'score': 'l1', 'layout': 'runs', **where}
        pruned = prune_network(net, **settings)
        ms = latency_figures(net, pruned, PruningOptions.of(**settings))
        rows.append({'ratio': ratio, **ms, 'removed': 1 - ms['after'] / ms['before'],
                     'macs': 1 - count_macs(pruned, lr_size) / count_macs(net, lr_size)})
    return format_table(rows, [('ratio', 'to be removed', '.1%'), ('removed', 'ms removed', '.1%'),
                               ('before', 'ms before', '.1f'), ('after', 'ms after', '.1f'),
                               ('predicted', 'ms predicted by parts', '.1f'), ('macs', 'MACs removed', '.1%')])


if __name__ == '__main__':
    main()
