"""Published figures of super-resolution, as printed: what a new result is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# a benchmark's name in the catalogues, and a degradation, of images with the scale
Test = tuple[str, str]

#: The columns of the papers' tables, in their order: of video, and of single images.
TESTS: tuple[Test, ...] = (('REDS4', 'BI'), ('Vimeo90K-T', 'BI'), ('Vid4', 'BI'), ('UDM10', 'BD'), ('Vimeo90K-T', 'BD'),
                           ('Vid4', 'BD'))
IMAGE_TESTS: tuple[Test, ...] = tuple((benchmark, f'BIx{scale}') for scale in (2, 3, 4)
                                      for benchmark in ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109'))
#: What CDISM's chart shows: the mean of the PSNR on two of them.
CHART: Test = ('Mean of Set5 and Set14', 'BIx2')

#: Where the rows come from.
SOURCES = {'SSL': 'Structured Sparsity Learning for Efficient Video Super-Resolution, CVPR 2023, arXiv 2206.07687',
           'mmagic': 'model zoo of mmagic, BasicVSR',
           'ASSL': 'Aligned Structured Sparsity Learning for Efficient Image Super-Resolution, NeurIPS 2021; its '
                   'Mult-Adds for HR images of 1280x720 are given here for LR frames of 180x320',
           'SRP': 'Learning Efficient Image Super-Resolution Networks via Structure-Regularized Pruning, ICLR 2022; '
                  'its Mult-Adds as those of ASSL',
           'CDISM': 'Compressing Deep Image Super-resolution Models, arXiv 2401.00523; PSNR read off a chart, within '
                    '0.02 dB; its Mult-Adds as those of ASSL',
           'Singh': 'A. K. Singh, Pruning Video Super Resolution Models'}


#: BasicVSR on REDS4, PSNR in dB and SSIM on RGB, before anything is removed (Singh).
PRUNED_BASELINE = (31.41, .8909)
#: The same after a share of the single weights (unstructured) or whole filters (naive) of all convolutions was removed:
#: PSNR at once, PSNR and SSIM after 1,000 iterations of finetuning (Singh).
PRUNED: Mapping[str, Mapping[float, tuple[float, float, float | None]]] = {
    'unstructured': {.40: (28.16, 30.84, .8794), .45: (27.62, 30.72, .8766), .50: (22.35, 30.59, .8736)},
    'naive': {.05: (13.69, 29.77, None), .10: (6.53, 27.68, None), .15: (6.95, 22.74, None)}}


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        method: as the source names it.
        source: a key of ``SOURCES``.
        scores: PSNR in dB and SSIM by test: on RGB for REDS4, on Y for the others; of single images without a border of
            as many pixels as the scale.
        params, macs: without the flow network; MACs per LR frame of 180x320; None where the source does not say.
        params_with_flow: with it.
        doubts: what to know about single figures.
    """
    method: str
    source: str
    scores: Mapping[Test, tuple[float, float | None]]
    params: float | None = None
    macs: float | None = None
    params_with_flow: float | None = None
    doubts: Mapping[Test, str] = field(default_factory=dict)


def _ssl(method: str, params: float | None, *figures: float, **more: object) -> Published:
    """A row of the SSL paper: parameters in millions, then PSNR and SSIM of every test."""
    scores = dict(zip(TESTS, zip(figures[::2], figures[1::2], strict=True), strict=True))
    return Published(method, 'SSL', scores, params and params * 1e6, **more)  # type: ignore[arg-type]


def _images(method: str, source: str, scale: int, params: float | None, mult_adds: float | None, *figures: float
            ) -> Published:
    """A row of the tables of ASSL and SRP: parameters in millions, Mult-Adds in G for an HR image of 1280x720, then
    PSNR and SSIM on Set5, Set14, B100 and Urban100."""
    tests = [(benchmark, f'BIx{scale}') for benchmark in ('Set5', 'Set14', 'B100', 'Urban100')]
    scores = dict(zip(tests, zip(figures[::2], figures[1::2], strict=True), strict=True))
    # of an LR frame of 180x320, which is that of the HR image at x4
    macs = mult_adds and mult_adds * 1e9 * (scale / 4)**2
    return Published(f'{method} x{scale}', source, scores, params and params * 1e6, macs)


PUBLISHED: tuple[Published, ...] = (
    _ssl('Bicubic', None, 26.14, .7292, 31.32, .8684, 23.78, .6347, 28.47, .8253, 31.30, .8687, 21.80, .5246,
         doubts={('Vid4', 'BD'): "the published SSIM of Bicubic, .5246, looks like transposed digits: BasicSR's metric "
                                  'gives .5427'}),
    _ssl('BasicVSR', 4.9, 31.42, .8909, 37.18, .9450, 27.24, .8251, 39.96, .9694, 37.53, .9498, 27.96, .8553,
         macs=337.8e9, params_with_flow=6_291_311),
    _ssl('BasicVSR-lite', 1.3, 30.56, .8738, 36.57, .9397, 26.86, .8125, 38.98, .9645, 36.78, .9431, 27.27, .8327),
    _ssl('L1-norm-bi', 1.3, 30.66, .8766, 36.69, .9406, 26.87, .8121, 39.04, .9650, 36.84, .9437, 27.29, .8335),
    _ssl('ASSL-bi', 1.3, 30.74, .8770, 36.75, .9414, 27.01, .8176, 39.15, .9660, 36.93, .9450, 27.40, .8400),
    _ssl('SSL-bi', 1.0, 31.06, .8833, 36.82, .9419, 27.15, .8208, 39.35, .9665, 37.06, .9458, 27.56, .8431,
         macs=92e9, params_with_flow=2.4e6,
         doubts={('REDS4', 'BI'): 'some tables give SSL-bi an SSIM of .8933, most likely measured on Y'}),
    _ssl('BasicVSR-uni', 2.6, 30.54, .8694, 36.99, .9429, 27.03, .8163, 39.29, .9646, 37.27, .9473, 27.54, .8419,
         macs=207.7e9),
    _ssl('BasicVSR-uni-lite', .7, 29.95, .8561, 36.38, .9372, 26.68, .8012, 38.24, .9586, 36.38, .9388, 26.87, .8157),
    _ssl('L1-norm-uni', .7, 29.97, .8570, 36.45, .9381, 26.70, .8031, 38.43, .9601, 36.53, .9405, 26.89, .8187),
    _ssl('ASSL-uni', .7, 30.02, .8589, 36.49, .9385, 26.76, .8051, 38.48, .9603, 36.61, .9416, 27.02, .8236),
    _ssl('SSL-uni', .5, 30.24, .8633, 36.56, .9392, 27.01, .8148, 38.68, .9615, 36.77, .9429, 27.18, .8296),
    Published('BasicVSR trained on REDS', 'mmagic', {
        ('REDS4', 'BI'): (31.4170, .8909), ('Vimeo90K-T', 'BI'): (36.2848, .9395), ('Vid4', 'BI'): (27.2694, .8318)}),
    Published('BasicVSR trained on Vimeo90K BI', 'mmagic', {
        ('REDS4', 'BI'): (30.3128, .8660), ('Vimeo90K-T', 'BI'): (37.2026, .9451), ('Vid4', 'BI'): (27.2755, .8248)}),
    Published('BasicVSR trained on Vimeo90K BD', 'mmagic', {
        ('UDM10', 'BD'): (39.9953, .9695), ('Vimeo90K-T', 'BD'): (37.5501, .9499), ('Vid4', 'BD'): (27.9791, .8556)}),
)

PUBLISHED_IMAGES: tuple[Published, ...] = (
    _images('ASSLN', 'ASSL', 2, .721, 165.8, 38.12, .9608, 33.77, .9194, 32.27, .9007, 32.41, .9309),
    _images('SRPN-Lite', 'SRP', 2, .609, 139.9, 38.10, .9608, 33.70, .9189, 32.25, .9005, 32.26, .9294),
    _images('SRPN', 'SRP', 2, None, None, 38.34, .9619, 34.29, .9232, 32.47, .9032, 33.50, .9401),
    *(Published(f'{method} x2', 'CDISM', {CHART: (psnr, None)}, params, mult_adds and mult_adds * 1e9 / 4)
      for method, params, mult_adds, psnr in (
          ('EDSRmini', 49_603, 11.65, 35.44), ('SwinIRmini', 98_900, 22, 35.74), ('IMDN', None, None, 35.82),
          ('EDSR-baseline', 1_369_859, 316.2, 35.78), ('SwinIR-light', None, None, 36.0))),
    _images('ASSLN', 'ASSL', 3, .728, 74.4, 34.51, .9280, 30.45, .8439, 29.19, .8069, 28.35, .8562),
    _images('SRPN-Lite', 'SRP', 3, .615, 62.7, 34.47, .9276, 30.38, .8425, 29.16, .8061, 28.22, .8534),
    _images('ASSLN', 'ASSL', 4, .737, 42.4, 32.29, .8964, 28.69, .7844, 27.66, .7384, 26.27, .7907),
    _images('SRPN-Lite', 'SRP', 4, .623, 35.8, 32.24, .8958, 28.69, .7836, 27.63, .7373, 26.16, .7875),
    _images('SRPN', 'SRP', 4, None, None, 32.72, .9010, 29.04, .7917, 27.87, .7457, 27.25, .8172),
)
