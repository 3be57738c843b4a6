"""How fast an iteration of training is: BasicSR's own model class and network, and ours in several settings.

    python benchmarks/training.py                                # BasicVSR of 10 blocks, 5 frames of 64x64
    python benchmarks/training.py --blocks 30 --frames 15 --batch 8 --device cuda
    OMP_WAIT_POLICY=PASSIVE taskset -c 0 python benchmarks/training.py --threads 1 --settings plain channels_last

One iteration is what ``optimize_parameters`` does with a batch: forward, loss, backward, step, moving average. All rows
start from the same weights and see the same batch; "loss" is that of the last iteration. The rows take turns, and the
least time counts. "times BasicSR" is how many times faster a row is than BasicSR's.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basicsr_ssl import prune_network, save_network
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.config import load_options
from basicsr_ssl.latency import num_threads, time_in_turn, work_clock
from basicsr_ssl.models import ReconstructionModel
from basicsr_ssl.report.tables import format_table
from basicsr_ssl.runtime import Processes, Run

RECIPE = Path(__file__).parents[1] / 'options/train/BasicVSR/train_BasicVSR_REDS_dense_BIx4.yml'
SETTINGS: dict[str, list[str]] = {  # of section train
    'plain': ['channels_last=false'], 'channels_last': ['channels_last=true'],
    'bf16': ['amp=bf16', 'channels_last=false'],
    'bf16, channels_last': ['amp=bf16', 'channels_last=true'],
    'compile': ['compile=true'], 'compile, bf16, channels_last': ['compile=true', 'amp=bf16', 'channels_last=true']}
RATIO = 0.7276  # SSL's: 337.8 G to 92 G multiply-accumulates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, metavar='SETTING',
                        default=[name for name in SETTINGS if 'compile' not in name],
                        help=f'of {", ".join(SETTINGS)}; without those that compile, which take minutes to')
    parser.add_argument('--blocks', type=int, default=10, help='of each trunk')
    parser.add_argument('--frames', type=int, default=5)
    parser.add_argument('--patch', type=int, default=64, help='side of an LR patch')
    parser.add_argument('--batch', type=int, default=1, help='clips')
    parser.add_argument('--repeats', type=int, default=5, help='of which the least counts')
    parser.add_argument('--threads', type=int, help='of the CPU')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cpu', 'cuda'))
    args = parser.parse_args()
    with num_threads(args.threads), tempfile.TemporaryDirectory() as folder:
        print(f'{args.batch} x {args.frames} frames of {args.patch}x{args.patch}, {args.blocks} blocks, '
              f'{torch.get_num_threads()} thread(s), {args.device}\n')
        print(compare(args, folder))


def compare(args: argparse.Namespace, folder: str) -> str:
    torch.manual_seed(0)
    batch = {'lq': torch.rand(args.batch, args.frames, 3, args.patch, args.patch),
             'gt': torch.rand(args.batch, args.frames, 3, 4 * args.patch, 4 * args.patch)}
    dense: Any = PrunableBasicVSR(num_block=args.blocks)
    cut = partial(prune_network, dense, RATIO, budget='macs', score='l1')
    nets = {'dense': dense, 'compact': cut(), 'compact, runs of 8': cut(layout='runs', round_to=8)}
    models: dict[str, Any] = {"BasicSR's": basicsr_model(dense, args)}
    for name, net in nets.items():
        save_network(net, file := f'{folder}/net.safetensors')
        models |= {f'{name}, {setting}': our_model(file, SETTINGS[setting], args) for setting in args.settings}
    runs: dict[str, Callable[[], object]] = {
        name: partial(our_step if isinstance(model, ReconstructionModel) else basicsr_step, model, batch)
        for name, model in models.items()}
    gc.disable()  # it would strike one row or another
    device = torch.device(args.device)
    ms = {name: 1000 * min(seconds)
          for name, seconds in time_in_turn(runs, args.repeats, 2, device, work_clock(device)).items()}
    rows = [{'name': name, 'ms': ms[name], 'faster': ms["BasicSR's"] / ms[name], 'loss': last_loss(model)}
            for name, model in models.items()]
    return format_table(rows, [('name', 'network and settings', 's'), ('ms', 'ms', '.0f'),
                               ('faster', 'times BasicSR', '.2f'), ('loss', 'loss', '.6f')])


def basicsr_model(net: Any, args: argparse.Namespace) -> Any:
    """BasicSR's ``VideoRecurrentModel`` with its ``BasicVSR`` and the weights of ``net``."""
    from basicsr.models.video_recurrent_model import VideoRecurrentModel
    train = load_options(RECIPE)['train']
    with tempfile.TemporaryDirectory() as folder:
        torch.save({'params': net.state_dict()}, f'{folder}/net.pth')
        return VideoRecurrentModel({
            'num_gpu': int(args.device == 'cuda'), 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1,
            'network_g': {'type': 'BasicVSR', 'num_feat': net.num_feat, 'num_block': args.blocks},
            'path': {'pretrain_network_g': f'{folder}/net.pth', 'strict_load_g': True},
            'train': {'ema_decay': train['ema_decay'], 'optim_g': dict(train['optim_g']), 'total_iter': 300000,
                      'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [300000], 'eta_min': 1e-7},
                      'flow_lr_mul': train['flow_lr_mul'], 'pixel_opt': dict(train['pixel_opt'])}})


def basicsr_step(model: Any, batch: dict[str, Tensor]) -> None:
    model.feed_data(batch)
    model.optimize_parameters(1)


def our_model(file: str, settings: list[str], args: argparse.Namespace) -> Any:
    opt = load_options(RECIPE, ['network_g:spynet_path=null', f'network_g:num_block={args.blocks}',
                                f'path:pretrain_network_g={file}', 'train:fix_flow=null',
                                *(f'train:{setting}' for setting in settings)])
    return ReconstructionModel(opt, Run(Processes(0, 1, torch.device(args.device), False), 'benchmark', ''))


def our_step(model: Any, batch: dict[str, Tensor]) -> None:
    model.optimize_parameters(batch, 1)


def last_loss(model: Any) -> float:
    return (model.current_log() if hasattr(model, 'current_log') else model.log_dict)['l_pix']


if __name__ == '__main__':
    main()
