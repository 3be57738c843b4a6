"""What the benchmarks of single images consist of, as data, and whether the files on disk are just that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr_ssl.data.catalog import BENCHMARKS, Benchmark, check_distinct, check_frame
from basicsr_ssl.data.frames import image_size, shortened

Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ImageBenchmark:
    """Images that networks are tested on, each for itself, and the published protocol: PSNR and SSIM on Y, without a
    border of as many pixels as the scale; LR made from GT by MATLAB's bicubic.

    Attributes:
        name: as in papers and results.
        gt: folder of the GT images, below the data root.
        images: (h, w) of each image in pixels by name, None where it is not fixed. None where names differ from one
            distribution to the other.
        count: number of images.
    """
    name: str
    gt: str
    images: Mapping[str, tuple[int, int] | None] | None
    count: int

    channel = 'Y'
    scales = (2, 3, 4)
    crop_is_scale = True
    lr = {'BI': ''}
    lr_published = False
    centre_frame_only = False
    flip_seq = False


_SET5: Sizes = {'baby': (512, 512), 'bird': (288, 288), 'butterfly': (256, 256), 'head': (280, 280),
                'woman': (344, 228)}
_SET14: Sizes = {
    'baboon': (480, 500), 'barbara': (576, 720), 'bridge': (512, 512), 'coastguard': (288, 352), 'comic': (361, 250),
    'face': (276, 276), 'flowers': (362, 500), 'foreman': (288, 352), 'lenna': (512, 512), 'man': (512, 512),
    'monarch': (512, 768), 'pepper': (512, 512), 'ppt3': (656, 529), 'zebra': (391, 586)}
# the test images of the Berkeley Segmentation Dataset BSDS300
_B100 = (
    3096, 8023, 12084, 14037, 16077, 19021, 21077, 24077, 33039, 37073, 38082, 38092, 41033, 41069, 42012, 42049,
    43074, 45096, 54082, 55073, 58060, 62096, 65033, 66053, 69015, 69020, 69040, 76053, 78004, 85048, 86000, 86016,
    86068, 87046, 89072, 97033, 101085, 101087, 102061, 103070, 105025, 106024, 108005, 108070, 108082, 109053,
    119082, 123074, 126007, 130026, 134035, 143090, 145086, 147091, 148026, 148089, 156065, 157055, 159008, 160068,
    163085, 167062, 167083, 170057, 175032, 175043, 182053, 189080, 196073, 197017, 208001, 210088, 216081, 219090,
    220075, 223061, 227092, 229036, 236037, 241004, 241048, 253027, 253055, 260058, 271035, 285079, 291000, 295087,
    296007, 296059, 299086, 300091, 302008, 304034, 304074, 306005, 351093, 361010, 376043, 385039)

IMAGE_BENCHMARKS: dict[str, ImageBenchmark] = {benchmark.name: benchmark for benchmark in (
    ImageBenchmark(name='Set5', gt='Set5/HR', images=_SET5, count=5),
    ImageBenchmark(name='Set14', gt='Set14/HR', images=_SET14, count=14),
    ImageBenchmark(name='B100', gt='B100/HR', images=dict.fromkeys(map(str, _B100)), count=100),
    ImageBenchmark(name='Urban100', gt='Urban100/HR', count=100,
                   images={f'img_{number:03d}': None for number in range(1, 101)}),
    ImageBenchmark(name='Manga109', gt='Manga109/HR', images=None, count=109),
)}

ALL_BENCHMARKS: dict[str, Benchmark | ImageBenchmark] = {**BENCHMARKS, **IMAGE_BENCHMARKS}


def usual_name(stem: str) -> str:
    """The name of an image in the catalogue, from that of its file: ``img_001`` of ``img001x2`` or
    ``img_001_SRF_2_HR``."""
    stem = re.sub(r'(_SRF_\d)?_(HR|LR|GT)$|x\d$', '', stem)
    return re.sub(r'^img_?(\d{3})$', r'img_\1', stem)


def check_images(benchmark: ImageBenchmark, files: Sequence[Path], scale: int, are_lr: bool = False,
                 thorough: bool = False) -> list[str]:
    """What makes these files something else than the whole ``benchmark``.

    GT may have been cropped: distributions of one set differ in whether its images were cropped to multiples of some
    scale. It must be the same image after cropping to multiples of ``scale``.

    Args:
        files: the images found.
        scale: GT size over LR size.
        are_lr: the files are LR images.
        thorough: read the files whole, see ``catalog.check_frame``.

    Returns:
        One sentence per problem, naming the image or file; [] if there is none.
    """
    problems, names = [], [usual_name(path.stem) for path in files]
    if len(files) != benchmark.count:
        problems.append(f'{benchmark.name} has {benchmark.count} images, but there are {len(files)}')
    if benchmark.images is not None:
        if missing := [name for name in benchmark.images if name not in names]:
            problems.append(f'{benchmark.name}: there is no {shortened(missing)}')
        if surplus := [path.name for path, name in zip(files, names) if name not in benchmark.images]:
            problems.append(f'{benchmark.name} has no image of the name {shortened(surplus)}')
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f'{benchmark.name}: there are several images {shortened(twice)}')
    sound = []
    for path, name in zip(files, names):
        if problem := check_frame(path, None, thorough, ('RGB', 'grey', 'palette')):
            problems.append(f'{path} {problem}')
            continue
        sound.append(path)
        if size := (benchmark.images or {}).get(name):
            found = image_size(path)
            smaller = found if are_lr else (found[0] // scale, found[1] // scale)
            if smaller != (size[0] // scale, size[1] // scale):
                full = f'{size[0]} x {size[1]}'
                expected = f'{size[0] // scale} x {size[1] // scale}, for GT of {full}' if are_lr else full
                problems.append(f'{path} has {found[0]} x {found[1]} pixels, at scale {scale} it should have '
                                f'{expected} (height x width)')
    return problems + check_distinct(sound)
