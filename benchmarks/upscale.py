"""What `basicsr-ssl upscale` needs in memory for a short and for a long video.

    python benchmarks/upscale.py VIDEO                  # 50 and 290 frames of 160x90 pixels, cut out of the middle
    python benchmarks/upscale.py VIDEO --frames 20 100 --lr-size 180 320 -- --net net.safetensors --segment 12

What stands after -- goes to the command. Each figure is the peak of resident memory of a process of its own, with the
decoder, the network and the encoder in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import av

KILOBYTE = 1024  # Linux counts resident memory so


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('video', type=Path)
    parser.add_argument('--frames', nargs='+', type=int, default=[50, 290])
    parser.add_argument('--lr-size', nargs=2, type=int, default=[90, 160], metavar=('H', 'W'))
    parser.add_argument('switches', nargs='*', help='of the command, after --')
    args = parser.parse_args()
    print('frames   peak MB   seconds   frames/s')
    for count in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            cut(args.video, Path(folder) / 'in.mkv', count, args.lr_size)
            began = time.monotonic()
            process = subprocess.Popen([sys.executable, '-m', 'basicsr_ssl', 'upscale', f'{folder}/in.mkv',
                                        f'{folder}/out.mkv', *args.switches], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
            if status:
                sys.exit('the command failed')
        print(f'{count:6} {usage.ru_maxrss * KILOBYTE / 1e6:9.0f} {seconds:9.1f} {count / seconds:10.2f}', flush=True)


def cut(source: Path, target: Path, count: int, size: list[int]) -> None:
    """The middle of the first frames, losslessly."""
    height, width = size
    with av.open(str(source)) as read, av.open(str(target), 'w') as container:
        video: Any = container.add_stream('libx264', rate=read.streams.video[0].average_rate, width=width,
                                          height=height, pix_fmt='yuv420p', options={'qp': '0'})
        found = 0
        for frame in islice(read.decode(video=0), count):
            pixels = frame.to_ndarray(format='rgb24')
            top, left = (frame.height - height) // 2, (frame.width - width) // 2
            part = av.VideoFrame.from_ndarray(pixels[top:top + height, left:left + width].copy(), 'rgb24')
            part.pts, found = found, found + 1
            container.mux(video.encode(part))
        container.mux(video.encode(None))
    if found < count:
        sys.exit(f'{source} has only {found} frames')


if __name__ == '__main__':
    main()
