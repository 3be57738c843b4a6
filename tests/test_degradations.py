"""Degradations against slow references, and against LR frames that others made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils import tensor2img
from basicsr.utils.matlab_functions import imresize

from basicsr_ssl.data import degradations, options
from basicsr_ssl.data.clips_dataset import ClipFoldersTestDataset
from basicsr_ssl.data.degradations import DESCRIPTIONS, Degradation, blur_downsample, degrade
from basicsr_ssl.data.frames import read_image
from basicsr_ssl.nn.resize import bicubic_resize


def random_image(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def read(path):
    """(3, h, w) uint8 RGB."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def slow_imresize_1d(signal, scale):
    """MATLAB's rule, one output and one input at a time, mirrored borders, in Python floats."""
    length = len(signal)
    stretch = min(scale, 1)
    out = []
    for i in range(math.ceil(length * scale)):
        centre = (i + 0.5) / scale - 0.5
        total = weights = 0.0
        for j in range(math.floor(centre - 2 / stretch) - 1, math.ceil(centre + 2 / stretch) + 2):
            mirrored = j % (2 * length)
            mirrored = min(mirrored, 2 * length - 1 - mirrored)
            weight = cubic((centre - j) * stretch)
            total += weight * float(signal[mirrored])
            weights += weight
        out.append(total / weights)
    return torch.tensor(out, dtype=torch.float64)


def slow_bd(image, scale, sigma=1.6, kernel=13):
    """Gaussian sum around every scale-th pixel, borders replicated, for (h, w)."""
    height, width = image.shape
    half = kernel // 2
    out = torch.zeros(math.ceil(height / scale), math.ceil(width / scale), dtype=torch.float64)
    norm = sum(math.exp(-(a * a + b * b) / (2 * sigma**2))
               for a in range(-half, half + 1) for b in range(-half, half + 1))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for a in range(-half, half + 1):
                for b in range(-half, half + 1):
                    y, x = min(max(i * scale + a, 0), height - 1), min(max(j * scale + b, 0), width - 1)
                    out[i, j] += math.exp(-(a * a + b * b) / (2 * sigma**2)) / norm * image[y, x]
    return out


@pytest.mark.parametrize('scale', [0.25, 0.5, 1 / 3, 2, 3, 4])
@pytest.mark.parametrize('size', [(45, 51), (36, 24)])
def test_bicubic_is_basicsr_imresize(scale, size):
    image = random_image(3, *size)
    torch.testing.assert_close(bicubic_resize(image, scale), imresize(image, scale), rtol=0, atol=1e-6)


@pytest.mark.parametrize(('length', 'scale'), [(40, 0.25), (8, 0.25), (4, 0.25), (3, 0.5), (2, 4), (1, 4), (9, 1 / 3)])
def test_bicubic_by_hand_also_where_borders_mirror_repeatedly(length, scale):
    signal = random_image(length, dtype=torch.float64)
    expected = slow_imresize_1d(signal, scale)
    columns = bicubic_resize(signal[None, :].expand(8, -1), scale)  # constant along the rows
    torch.testing.assert_close(columns, expected.expand(len(columns), -1), rtol=0, atol=1e-6)
    rows = bicubic_resize(signal[:, None].expand(-1, 8), scale)
    torch.testing.assert_close(rows, expected[:, None].expand(-1, rows.shape[1]), rtol=0, atol=1e-6)


def test_bicubic_keeps_leading_dimensions_and_types():
    clip = random_image(2, 3, 3, 16, 20)
    whole = bicubic_resize(clip, 2)
    assert whole.shape == (2, 3, 3, 32, 40)
    torch.testing.assert_close(whole[1, 2], imresize(clip[1, 2], 2), rtol=0, atol=1e-6)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        out = bicubic_resize(clip.to(dtype), 2)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), bicubic_resize(clip.to(dtype).float(), 2), rtol=0, atol=tolerance)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(bicubic_resize(clip, 2), whole)


def test_bicubic_is_differentiable_after_a_first_use_in_inference_mode():
    with torch.inference_mode():
        bicubic_resize(torch.rand(1, 14, 22), 2)
    image = random_image(1, 14, 22, dtype=torch.float64).requires_grad_()
    bicubic_resize(image, 2).sum().backward()
    assert image.grad is not None
    # each row of weights sums to 1, so the sum of all derivatives is the number of output pixels
    assert image.grad.sum().item() == pytest.approx(28 * 44, abs=1e-3)


def test_bd_is_made_as_it_is_described(monkeypatch):
    """Frames, their description in results, and the options' texts have one source."""
    kernel = f'sigma {degradations.BD_SIGMA}, {degradations.BD_KERNEL}x{degradations.BD_KERNEL}'
    assert kernel in str(DESCRIPTIONS['BD']['kernel'])
    for section in (options.PhotoSourceOptions, options.ClipSourceOptions):
        assert kernel in str(section.model_fields['degradation'].description)
    levels = (random_image(16, 20) * 255).round()
    for sigma, width in ((degradations.BD_SIGMA, degradations.BD_KERNEL), (0.7, 5)):
        monkeypatch.setattr(degradations, 'BD_SIGMA', sigma)
        monkeypatch.setattr(degradations, 'BD_KERNEL', width)
        expected = (slow_bd(levels.double(), 4, sigma, width) + 0.5).floor().to(torch.uint8)
        assert torch.equal(degrade(levels.to(torch.uint8), 'BD', 4), expected)


@pytest.mark.parametrize(('size', 'scale'), [((20, 23), 4), ((9, 8), 2), ((5, 4), 3)])
def test_blur_downsample_by_hand(size, scale):
    image = random_image(*size, dtype=torch.float64)
    torch.testing.assert_close(blur_downsample(image, scale), slow_bd(image, scale), rtol=0, atol=1e-12)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_degrade_rounds_and_clamps_the_slow_references(scale):
    levels = (random_image(24, 36, seed=1, dtype=torch.float64) * 255).round()
    levels[:, :12], levels[:, 12:24] = 0, 255  # a step, so that bicubic overshoots
    image = levels.to(torch.uint8)
    rows = torch.stack([slow_imresize_1d(column, 1 / scale) for column in levels.T], dim=1)
    bi = torch.stack([slow_imresize_1d(row, 1 / scale) for row in rows])
    assert bi.min() < 0 and bi.max() > 255
    references: dict[Degradation, torch.Tensor] = {'BI': bi, 'BD': slow_bd(levels, scale)}
    for kind, expected in references.items():
        out = degrade(image, kind, scale)
        assert out.dtype == torch.uint8
        assert torch.equal(out.double(), (expected + 0.5).floor().clamp(0, 255))
        as_floats = degrade(image.float() / 255, kind, scale)
        assert as_floats.dtype == torch.float32
        assert torch.equal(as_floats, out.float() / 255)


def test_degrade_rounds_halves_up():
    image = torch.tensor([0, 1], dtype=torch.uint8).repeat(16, 16)
    assert (degrade(image, 'BI', 2)[:, 4:-4] == 1).all()  # the mean, 0.5; rounding halves to even would give 0
    assert (degrade(image + 1, 'BI', 2)[:, 4:-4] == 2).all()


@pytest.mark.parametrize('kind', ['BI', 'BD'])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_a_window_is_cut_out_of_the_whole_degraded_frame(kind, scale):
    clip = (random_image(2, 3, 20 * scale, 15 * scale) * 255).to(torch.uint8)
    whole = degrade(clip, kind, scale)
    for window in ((0, 0, 20, 15), (0, 0, 3, 4), (7, 5, 6, 6), (17, 11, 3, 4), (0, 14, 20, 1)):
        top, left, height, width = window
        assert torch.equal(degrade(clip, kind, scale, window), whole[..., top:top + height, left:left + width])


def test_bad_input_is_refused():
    image = torch.rand(3, 30, 33)
    with pytest.raises(ValueError, match='30 x 33 cannot be degraded by 4: crop them to 28 x 32'):
        degrade(image, 'BI', 4)
    with pytest.raises(ValueError, match=r"unknown degradation 'BX': choose BI .* or BD"):
        degrade(image, 'BX', 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'expected a floating point image, got torch\.uint8'):
        bicubic_resize(torch.zeros(3, 8, 8, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match='kernel must be odd'):
        blur_downsample(image, 3, kernel=12)


def test_lr_of_vid4_bit_for_bit(test_data):
    root = test_data / 'vid4' / 'GT'
    clips = ClipFoldersTestDataset({'name': 'Vid4', 'type': 'ClipFoldersTestDataset', 'dataroot_gt': str(root),
                                    'first_frame': 17, 'max_frames': 6})
    assert [clip['folder'] for clip in clips] == ['calendar', 'city', 'foliage', 'walk']
    for clip in clips:
        for name, lq in zip(clip['names'], clip['lq']):
            file = root.parent / 'BIx4' / clip['folder'] / f'{name}.png'
            assert torch.equal(lq, read(file)), file


def bicubic_psnr(root, **options):
    """Y-PSNR of bicubic upsampling, per clip of Vid4."""
    clips = ClipFoldersTestDataset({'name': 'Vid4', 'type': 'ClipFoldersTestDataset',
                                    'dataroot_gt': str(root / 'vid4' / 'GT'), **options})
    return {clip['folder']: np.mean([
        calculate_psnr(tensor2img(bicubic_resize(lq / 255, 4)), tensor2img(gt / 255), crop_border=0,
                       test_y_channel=True)
        for lq, gt in zip(clip['lq'], clip['gt'])]) for clip in clips}


def test_published_bicubic_psnr_of_calendar(test_data):
    assert bicubic_psnr(test_data, clips=['calendar']) == pytest.approx({'calendar': 20.3945}, abs=1e-4)


@pytest.mark.slow
def test_published_bicubic_psnr_of_vid4(test_data):
    assert np.mean(list(bicubic_psnr(test_data).values())) == pytest.approx(23.7836, abs=1e-4)
    assert np.mean(list(bicubic_psnr(test_data, degradation='BD').values())) == pytest.approx(21.795, abs=0.005)


def test_bd_agrees_with_the_frames_of_duf(test_data):
    """Borders and phase are those of DUF, whose frames are truncated to 8 bit where ours are rounded."""
    for file in sorted((test_data / 'bd_reference' / 'duf_calendar').iterdir())[::8]:
        gt, theirs = read(test_data / 'vid4' / 'GT' / 'calendar' / file.name), read(file).double()
        assert (blur_downsample(gt.double(), 4).floor() - theirs).abs().max() <= 2
        rounded = (degrade(gt, 'BD', 4).double() - theirs).abs()
        assert rounded.max() <= 3
        assert (rounded > 1).double().mean() < 0.003


def test_lr_of_reds_was_rounded_between_the_two_passes(test_data):
    """REDS was made from 8-bit images by passes that each round; that makes a tenth of its pixels differ from BI."""
    gt = read(test_data / 'reds' / 'GT' / 'seq_3' / '00000000.png')
    theirs = read(test_data / 'reds' / 'BIx4' / 'seq_3' / '00000000.png')
    strip = gt[0, :, :64].double()
    rows = torch.stack([slow_imresize_1d(column, 0.25) for column in strip.T], dim=1).add(0.5).floor().clamp(0, 255)
    both = torch.stack([slow_imresize_1d(row, 0.25) for row in rows]).add(0.5).floor().clamp(0, 255)
    assert torch.equal(both[:, :14], theirs[0, :, :14].double())  # the last two would need pixels beyond the strip

    difference = (degrade(gt, 'BI', 4).int() - theirs.int()).abs()
    assert (difference > 0).double().mean().item() == pytest.approx(0.105, abs=0.001)
    assert (difference > 1).double().mean() < 1e-3
