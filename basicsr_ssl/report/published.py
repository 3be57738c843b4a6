"""Published figures of x4 video super-resolution, as printed: what a new result is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# a benchmark's name in `data.catalog`, and a degradation
Test = tuple[str, str]

#: The columns of the papers' tables, in their order.
TESTS: tuple[Test, ...] = (('REDS4', 'BI'), ('Vimeo90K-T', 'BI'), ('Vid4', 'BI'), ('UDM10', 'BD'), ('Vimeo90K-T', 'BD'),
                           ('Vid4', 'BD'))

#: Where the rows come from.
SOURCES = {'SSL': 'Structured Sparsity Learning for Efficient Video Super-Resolution, CVPR 2023, arXiv 2206.07687',
           'mmagic': 'model zoo of mmagic, BasicVSR'}


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        method: as the source names it.
        source: a key of ``SOURCES``.
        scores: PSNR in dB and SSIM by test: on RGB for REDS4, on Y for the others.
        params, macs: without the flow network; MACs per LR frame of 180x320; None where the source does not say.
        params_with_flow: with it.
        doubts: what to know about single figures.
    """
    method: str
    source: str
    scores: Mapping[Test, tuple[float, float]]
    params: float | None = None
    macs: float | None = None
    params_with_flow: float | None = None
    doubts: Mapping[Test, str] = field(default_factory=dict)


def _ssl(method: str, params: float | None, *figures: float, **more: object) -> Published:
    """A row of the SSL paper: parameters in millions, then PSNR and SSIM of every test."""
    scores = dict(zip(TESTS, zip(figures[::2], figures[1::2], strict=True), strict=True))
    return Published(method, 'SSL', scores, params and params * 1e6, **more)  # type: ignore[arg-type]


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
