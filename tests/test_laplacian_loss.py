"""The loss on Laplacian pyramids, against matrices written out and by hand."""

from __future__ import annotations

import pytest
import reference_training as reference
import torch
from basicsr.losses import build_loss

from basicsr_ssl.losses import MultiLaplacianLoss
from basicsr_ssl.losses.laplacian_loss import blur, laplacian_pyramid


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('shape', [(2, 3, 32, 32), (1, 3, 17, 30), (2, 2, 3, 21, 19)], ids=['even', 'odd', 'clip'])
@pytest.mark.parametrize('levels', [1, 3, 5])
def test_it_equals_the_reference(shape: tuple[int, ...], levels: int) -> None:
    a, b = images(*shape), images(*shape, seed=1)
    seen = MultiLaplacianLoss(0.3, levels)(a, b)
    torch.testing.assert_close(seen, 0.3 * reference.multi_laplacian(a, b, levels), rtol=1e-12, atol=0)


def test_by_hand() -> None:
    # a constant difference is the same at the coarsest level, nothing elsewhere and no high frequency
    a = images(1, 1, 20, 20)
    assert float(MultiLaplacianLoss()(a, a + 0.25)) == pytest.approx(16 * 0.25)
    # a single pixel blurs to the outer product of the taps
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 256
    taps = torch.tensor([1., 4, 6, 4, 1])
    assert torch.equal(blur(dot)[0, 0, 2:7, 2:7], taps[:, None] * taps)
    # one level: the mean distance, and that of the high frequencies
    zero = torch.zeros_like(dot)
    assert float(MultiLaplacianLoss(levels=1)(dot, zero)) == pytest.approx((256 + (256 - 36) + (256 - 36)) / 81)


def test_a_pyramid_gives_its_image_back() -> None:
    x = images(1, 3, 23, 18)
    *details, out = laplacian_pyramid(x, 4)
    for detail in reversed(details):
        spread = torch.zeros_like(detail)
        spread[..., ::2, ::2] = out
        out = detail + 4 * blur(spread)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-14)


def test_mixed_precision_does_not_round_it() -> None:
    a, b = images(1, 3, 20, 20).float(), images(1, 3, 20, 20, seed=1).float()
    plain = MultiLaplacianLoss()(a, b)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(MultiLaplacianLoss()(a, b), plain)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match='levels must be at least 1, got 0'):
        build_loss({'type': 'MultiLaplacianLoss', 'levels': 0})
    with pytest.raises(ValueError, match='needs images of at least 17 pixels a side, got 16x40'):
        MultiLaplacianLoss()(images(1, 3, 16, 40), images(1, 3, 16, 40))
