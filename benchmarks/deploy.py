"""Exported networks in their runtimes beside torch: dense and compact, in one run.

    taskset -c 1 python benchmarks/deploy.py                           # a unidirectional BasicVSR, random weights
    taskset -c 1 python benchmarks/deploy.py dense.safetensors compact.safetensors
    taskset -c 1 python benchmarks/deploy.py --rsc                     # how blocks gather and scatter, in each runtime

Networks run in turn, and the least time of each counts, since whatever else slows the machine only adds to it; of one
thread it is the time of the processor, which what else runs there does not add to. Ratios of one run compare; absolute
times depend on the machine. Unidirectional networks run in the step form, others in the clip form.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_ssl import load_network, optimize_network, prune_network
from basicsr_ssl.api import count_macs
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.export import formats, proof
from basicsr_ssl.export.forms import Form, GatheringChannels, make_form
from basicsr_ssl.export.metadata import openvino_core
from basicsr_ssl.export.runtimes import Exported
from basicsr_ssl.latency import run_clip
from basicsr_ssl.nn.blocks import Channels, ResidualBlock
from basicsr_ssl.report.tables import format_table

RATIO = 0.7276  # SSL's: 337.8 G to 92 G multiply-accumulates
RUNS = (('torch, eager', '', ''), ('torch, optimize_network', '', ''), ('onnxruntime', 'onnx', 'fp32'),
        *((f'OpenVINO {precision}', 'openvino', precision) for precision in ('fp32', 'bf16', 'int8')))
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('files', nargs='*', help='networks to compare; the first is the reference')
    parser.add_argument('--lr-size', nargs=2, type=int, default=[90, 160], metavar=('H', 'W'))
    parser.add_argument('--frames', type=int, default=3, help='of a clip')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--blocks', type=int, default=30, help='of the network with random weights')
    parser.add_argument('--rsc', action='store_true', help='compare lowerings of the blocks of one trunk instead')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = (args.lr_size[0], args.lr_size[1])

    if args.files:
        nets: dict[str, Any] = {Path(file).stem: load_network(file, dtype=torch.float32) for file in args.files}
    else:
        torch.manual_seed(0)
        dense = PrunableBasicVSR(num_block=args.blocks, flow='none', bidirectional=False).eval()
        nets = {'dense': dense}
        for round_to in (1, 8, 16):
            nets[f'round_to {round_to}'] = prune_network(dense, RATIO, budget='macs', score='l1', round_to=round_to)
    with tempfile.TemporaryDirectory() as folder:
        if args.rsc:
            rows = compare_lowerings(nets, size, args.repeats, Path(folder))
        else:
            rows = compare_runtimes(nets, size, args.frames, args.repeats, Path(folder))
    first = [key for key in rows[0] if key in ('runtime', 'network', 'lowering')]
    print(format_table(rows, [*((key, key, 's') for key in first), *(
        (key, key, '.1f' if key.startswith('ms') else '.2f') for key in rows[0] if key not in first)]))


def least(runs: dict[Any, Run], repeats: int) -> dict[Any, float]:
    """Milliseconds of each run, taken in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = dict.fromkeys(runs, float('inf'))
    for repeat in range(-1, repeats):
        for key, run in runs.items():
            start = clock()
            run()
            if repeat >= 0:
                times[key] = min(times[key], 1000 * (clock() - start))
    return times


def compare_runtimes(nets: dict[str, Any], size: tuple[int, int], frames: int, repeats: int, folder: Path
                     ) -> list[dict[str, Any]]:
    runs: dict[Any, Run] = {}
    for label, net in nets.items():
        step = not getattr(net, 'bidirectional', True)
        form = make_form(net, 'step', size) if step else make_form(net, 'clip', size, frames)
        clip = proof.real_clip(None, size, frames)
        for runtime, to, precision in RUNS:
            if to:
                runs[runtime, label] = exported(form, to, precision, clip, folder / f'{len(runs)}')
            else:
                inside = optimize_network(net, size) if 'optimize' in runtime else net
                runs[runtime, label] = partial(run_clip, inside, clip[None])
    times, base = least(runs, repeats), next(iter(nets))
    macs = {label: count_macs(net, size) for label, net in nets.items()}
    return [{'runtime': runtime, 'network': label, 'fewer MACs': macs[base] / macs[label],
             'ms per frame': times[runtime, label] / frames,
             f'faster than {base} here': times[runtime, base] / times[runtime, label],
             f'than {base} in torch': times['torch, eager', base] / times[runtime, label]}
            for runtime, _, _ in RUNS for label in nets]


def exported(form: Form, to: str, precision: str, clip: Tensor, folder: Path) -> Run:
    """A run over a clip."""
    folder.mkdir()
    path = folder / f'net{formats.FORMATS[to].suffix}'
    calls = proof.calibration_calls(form, [clip]) if precision == 'int8' else []
    formats.write(formats.convert(form, to, precision, calibration=calls), to, path,
                  formats.described(form, to, precision, False))
    opened = Exported(path)
    return lambda: deque(opened.stream(clip), maxlen=0)


# ---------------------------------------------------------------- how blocks gather and scatter


class BySelection(Channels):
    """Reads and adds by 1x1 convolutions whose weights are 0 and 1."""

    def __init__(self, units: list[int], width: int) -> None:
        super().__init__(units)
        self.weight = nn.Parameter(F.one_hot(torch.tensor(units), width).float()[..., None, None])

    def read(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + F.conv2d(change, self.weight.transpose(0, 1))


def embedded(block: ResidualBlock, width: int) -> None:
    """The block reads and writes all channels, with weights that are zero where it did not."""
    for layer, channels, dim in ((block.conv1, block.inputs, 1), (block.conv2, block.outputs, 0)):
        if channels.index is None:
            continue
        weight = layer.weight.data
        shape = [width if axis == dim else side for axis, side in enumerate(weight.shape)]
        layer.weight = nn.Parameter(weight.new_zeros(shape).index_copy(dim, channels.index, weight))
        if dim == 0 and layer.bias is not None:
            layer.bias = nn.Parameter(weight.new_zeros(width).index_copy(0, channels.index, layer.bias.data))
    block.inputs, block.outputs = Channels(None), Channels(None)


LOWERINGS = {'gather, scatter': None, 'gather both': GatheringChannels, '1x1 selection': BySelection, 'zeros': embedded}


def lowered_trunk(trunk: nn.Module, lowering: Any, width: int) -> nn.Module:
    trunk = copy.deepcopy(trunk)
    for block in trunk.modules():
        if not isinstance(block, ResidualBlock) or lowering is None:
            continue
        if lowering is embedded:
            embedded(block, width)
            continue
        for name in ('inputs', 'outputs'):
            index = getattr(block, name).index
            if index is not None:
                arguments = [index.tolist(), width] if lowering is BySelection else [index.tolist()]
                setattr(block, name, lowering(*arguments))
    return trunk


def compare_lowerings(nets: dict[str, Any], size: tuple[int, int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """One trunk of every network, with blocks that reach their channels in different ways."""
    runs: dict[Any, Run] = {}
    for label, net in nets.items():
        for lowering, how in LOWERINGS.items():
            if net.spec.form == 'dense' and how is not None:
                continue
            trunk = lowered_trunk(net.forward_trunk, how, net.num_feat)
            x = torch.rand(1, 3 + net.num_feat, *size)
            path = folder / f'{len(runs)}.onnx'
            with torch.no_grad():
                program = torch.onnx.export(trunk.eval(), (x,), dynamo=True, opset_version=formats.OPSET, verbose=False,
                                            input_names=['x'])
            assert program is not None
            program.save(path)
            for runtime, call in (('onnxruntime', onnxruntime_call(path)), ('OpenVINO', openvino_call(path))):
                runs[runtime, label, lowering] = lambda call=call, x=x: call(x.numpy())
    times = least(runs, repeats)
    base = next(iter(nets))
    return [{'runtime': runtime, 'network': label, 'lowering': lowering, 'ms': value,
             f'faster than {base}': times[runtime, base, 'gather, scatter'] / value}
            for (runtime, label, lowering), value in sorted(times.items())]


def onnxruntime_call(path: Path) -> Callable[[Any], object]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'x': x})


def openvino_call(path: Path) -> Callable[[Any], object]:
    request = openvino_core().compile_model(path, 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}).create_infer_request()
    return lambda x: request.infer([x])


if __name__ == '__main__':
    main()
