"""What testing a long clip costs in memory, and how fast it is beside BasicSR's own test loop.

    python benchmarks/testing.py memory                     # 100 frames of 180x320, in several ways
    python benchmarks/testing.py memory --frames 50 --num-block 30 --tail-feat 64 --flow spynet --device cuda
    python benchmarks/testing.py speed                      # ours and BasicSR's VideoRecurrentModel on one clip
    python benchmarks/testing.py speed --bicubic

Each memory figure is the peak of a process of its own: of its resident memory, and on a GPU also of what PyTorch
allocated there. From a short and a long clip follows what a further frame costs, which stands beside what it must cost
by the sizes of the tensors that are alive. The number of blocks and the width of the tail are small by default, to end
in minutes on one core: what grows with the clip does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr_ssl.archs import BicubicUpsampler, PrunableBasicVSR
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.data.degradations import degrade
from basicsr_ssl.data.frames import LazyFrames
from basicsr_ssl.evaluation.clips import measure_clips
from basicsr_ssl.evaluation.inference import as_frame, super_resolve
from basicsr_ssl.evaluation.result import Figures
from basicsr_ssl.runtime import Processes, Run

T = TypeVar('T')

SCALE = 4
SHORT = 5  # frames; as many as flows are estimated at once, and one more
SEGMENT, OVERLAP = 15, 4
FLOAT = 4  # bytes
# whole, as a network is called; streamed with its states on the device, or in host memory; in segments; and the whole
# test loop, streamed, with reading GT and measuring PSNR and SSIM
MEMORY_MODES = ('forward', 'device', 'host', 'segments', 'test')
METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False},
           'ssim': {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': False},
           'ssim_y': {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': True}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('what', choices=('memory', 'speed'))
    parser.add_argument('--frames', type=int, help='of the clip (default: 100 for memory, 10 for speed)')
    parser.add_argument('--lr-size', nargs=2, type=int, default=[180, 320], metavar=('H', 'W'))
    parser.add_argument('--num-block', type=int, default=1)
    parser.add_argument('--tail-feat', type=int, default=16)
    parser.add_argument('--flow', choices=('spynet', 'none'), default='none')
    parser.add_argument('--unidirectional', action='store_true')
    parser.add_argument('--bicubic', action='store_true', help='speed: of bicubic upsampling instead of a network')
    parser.add_argument('--repeats', type=int, default=3, help='speed: timed runs of each, in turn')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--modes', nargs='+', choices=MEMORY_MODES, default=MEMORY_MODES,
                        help='memory: ways to run the clip; the first is the reference')
    parser.add_argument('--measure', choices=MEMORY_MODES, help=argparse.SUPPRESS)  # in the process that is measured
    args = parser.parse_args()
    args.frames = args.frames or (100 if args.what == 'memory' else 10)
    if args.measure:
        print(json.dumps(run_once(args)))
    elif args.what == 'memory':
        compare_memory(args)
    else:
        compare_speed(args)


# ---- memory

def compare_memory(args: argparse.Namespace) -> None:
    first: dict[str, int] = {}
    print('mode       peak MB   ratio   MB per further frame: measured   by the formula')
    for mode in args.modes:
        short, long = (measured_apart(args, mode, frames) for frames in (SHORT, args.frames))
        for where, peak in long.items():
            per_frame = (peak - short[where]) / (args.frames - SHORT)
            note = f' and the states of {SEGMENT} frames at most' if mode == 'segments' else ''
            print(f'{mode:8} {peak / 1e6:9.0f} {peak / first.setdefault(where, peak):7.3f} {per_frame / 1e6:32.2f} '
                  f'{growth(args, mode, where) / 1e6:16.2f}{note} ({where})', flush=True)


def growth(args: argparse.Namespace, mode: str, where: str) -> float:
    """Bytes by which a further frame of (h, w) raises the peak, in float32.

    Of the clip: the LR frame, 3 h w, and its flows, 2 h w for each direction. Whole (``forward``): the hidden states
    of all directions, num_feat h w each, and the HR frame, 3 (4h) (4w), twice while the frames are stacked. Streamed,
    also in the test loop: the backward state, on the device or in host memory; in a unidirectional network, nothing.
    In segments: nothing. GT is read frame by frame, and costs nothing for a further one.
    """
    pixels, feat = args.lr_size[0] * args.lr_size[1], 64
    directions = 1 if args.unidirectional else 2
    flows = 2 * directions if args.flow == 'spynet' else 0
    if mode == 'forward':
        numbers = 3 + flows + feat * directions + 2 * 3 * SCALE**2
    elif mode == 'segments' or args.unidirectional:
        numbers = 0
    else:
        elsewhere = args.device == 'cuda' and (where == 'host memory') != (mode == 'host')
        numbers = 3 + flows + (0 if elsewhere else feat)
    return numbers * pixels * FLOAT


def measured_apart(args: argparse.Namespace, mode: str, frames: int) -> dict[str, int]:
    command = [sys.executable, __file__, 'memory', '--measure', mode, '--frames', str(frames), '--lr-size',
               *map(str, args.lr_size), '--num-block', str(args.num_block), '--tail-feat', str(args.tail_feat),
               '--flow', args.flow, '--device', args.device, *(['--unidirectional'] if args.unidirectional else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def run_once(args: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of this process after it has super-resolved one clip."""
    torch.manual_seed(0)
    net, clip = network(args).to(args.device), NoiseClip(args.frames, args.lr_size)
    frames = (as_frame(pixels).to(args.device) for pixels in clip[0]['lq'])
    if args.measure == 'test':
        metrics = {name: METRICS[name] for name in ('psnr', 'ssim')}
        measure_clips(net, clip, 'noise', *test_options(metrics, args.device))
    elif args.measure == 'forward':
        net(torch.stack(list(frames))[None])
    elif args.measure == 'segments':
        exhaust(super_resolve(net, frames, segment=SEGMENT, overlap=OVERLAP))
    else:
        exhaust(super_resolve(net, frames, keep_states=args.measure))
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss, in bytes
    peaks = {'host memory': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if args.device == 'cuda':
        peaks['GPU memory'] = torch.cuda.max_memory_allocated()
    return peaks


class NoiseClip:
    """A test set of one clip of noise, whose frames are made when they are asked for, as those of files are read."""

    def __init__(self, frames: int, lr_size: list[int]) -> None:
        self.frames, self.lr_size = frames, lr_size

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        def noise(scale: int) -> LazyFrames:
            size = 3, self.lr_size[0] * scale, self.lr_size[1] * scale
            return LazyFrames(self.frames, lambda i: torch.randint(0, 256, size, dtype=torch.uint8))

        return {'lq': noise(1), 'gt': noise(SCALE), 'folder': 'noise', 'names': [str(i) for i in range(self.frames)]}


def test_options(metrics: dict[str, Any], device: str) -> tuple[dict[str, Any], Run]:
    """Section ``val``, and a run that saves nothing."""
    return ({'flip_seq': False, 'center_frame_only': False, 'pbar': False, 'save_img': False, 'metrics': metrics},
            Run(Processes(0, 1, torch.device(device), False), 'run', ''))


def exhaust(frames: Any) -> None:
    for _ in frames:
        pass


def network(args: argparse.Namespace) -> PrunableBasicVSR:
    return PrunableBasicVSR(num_block=args.num_block, tail_feat=args.tail_feat, flow=args.flow,
                            bidirectional=not args.unidirectional).eval()


# ---- speed

class TorchOnDevice:
    """``torch`` for BasicSR's test loop, which makes its table of results on ``cuda`` whatever the model's device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *size: int, device: str, **options: Any) -> Tensor:
        del device
        return torch.zeros(*size, device=self.device, **options)


def compare_speed(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    net = BicubicUpsampler(SCALE) if args.bicubic else network(args)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder), args.frames, args.lr_size[0] * SCALE, args.lr_size[1] * SCALE)
        seconds: dict[str, list[float]] = {'BasicSR': [], 'ours': []}
        for repeat in range(args.repeats + 1):
            theirs = timed(lambda: test_as_basicsr(net, folder, args.device), seconds['BasicSR'])
            result = timed(lambda: test_as_we_do(net, folder, args.device), seconds['ours'])
            for name in METRICS:  # BasicSR adds its figures up in float32
                own = result.metrics[name]
                assert math.isclose(theirs[name], own, rel_tol=1e-6), (name, theirs[name], own)
            if repeat == 0:  # warming up
                seconds = {label: [] for label in seconds}
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    for label, value in medians.items():
        print(f'{label:8} {value:7.2f} s, {value / medians["BasicSR"]:.3f} of BasicSR')
    print(f'{args.frames} frames of {args.lr_size[0]}x{args.lr_size[1]}, read, super-resolved on '
          f'{args.device} with {torch.get_num_threads()} threads '
          f'({1000 * result.seconds_per_frame:.0f} ms a frame in our loop) and measured; equal figures: '
          + ', '.join(f'{name} {result.metrics[name]:.4f}' for name in METRICS))


def timed(run: Callable[[], T], seconds: list[float]) -> T:
    start = time.perf_counter()
    result = run()
    seconds.append(time.perf_counter() - start)
    return result


def test_as_we_do(net: Any, folder: str, device: str) -> Figures:
    dataset = ClipFoldersTestDataset({'name': 'Vid4', 'type': 'ClipFoldersTestDataset', 'phase': 'test',
                                      'dataroot_gt': f'{folder}/gt', 'dataroot_lq': f'{folder}/lq'})
    return measure_clips(net.to(device), dataset, 'Vid4', *test_options(METRICS, device))


def test_as_basicsr(net: Any, folder: str, device: str) -> dict[str, Any]:
    """The figures of ``VideoRecurrentModel.dist_validation``, as it stands in BasicSR but for the device."""
    from basicsr.data.video_test_dataset import VideoRecurrentTestDataset
    from basicsr.models import video_recurrent_model
    video_recurrent_model.torch = TorchOnDevice(device)  # type: ignore[assignment]

    class Model(video_recurrent_model.VideoRecurrentModel):
        def feed_data(self, data: dict[str, Tensor]) -> None:
            # copies, as a move to a GPU makes: the loop then changes the shapes of its own tensors in place
            self.lq, self.gt = (data[name].to(self.device, copy=True) for name in ('lq', 'gt'))

    model: Any = object.__new__(Model)  # its test alone, without BasicSR's option files
    model.opt = {'val': {'metrics': METRICS}, 'dist': False, 'is_train': False}
    model.device, model.net_g, model.is_train = torch.device(device), net.to(device), False
    dataset = VideoRecurrentTestDataset({
        'name': 'Vid4', 'dataroot_gt': f'{folder}/gt', 'dataroot_lq': f'{folder}/lq', 'cache_data': True,
        'num_frame': -1, 'padding': 'reflection', 'io_backend': {'type': 'disk'}})
    model.nondist_validation(SimpleNamespace(dataset=dataset), 0, None, False)
    net.eval()
    means = model.metric_results['clip'].double().mean(dim=0).tolist()
    return dict(zip(METRICS, means))


def write_clip(folder: Path, frames: int, height: int, width: int) -> None:
    """Smooth random texture that moves a pixel a frame, as PNG, and LR frames of it."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.random((height + frames, width + frames, 3)), (0, 0), 1.5)
    texture = np.rint((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)
    for kind in ('gt', 'lq'):
        (folder / kind / 'clip').mkdir(parents=True)
    for i in range(frames):
        frame = np.ascontiguousarray(texture[i:i + height, i:i + width])
        small = degrade(torch.from_numpy(frame).permute(2, 0, 1), 'BI', SCALE).permute(1, 2, 0).contiguous().numpy()
        cv2.imwrite(str(folder / 'gt' / 'clip' / f'{i:08d}.png'), frame)
        cv2.imwrite(str(folder / 'lq' / 'clip' / f'{i:08d}.png'), small)


if __name__ == '__main__':
    main()
