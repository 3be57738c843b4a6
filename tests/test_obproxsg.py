"""OBProx-SG against a loop over single weights, and against the closed form of a lasso problem."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from basicsr_ssl.models.optimization import OPTIMIZER_REGISTRY

SETTINGS = {'penalty': 0.3, 'proximal_iter': 3, 'eps': 0.02}


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
            for shape in ((3, 2, 2, 2), (4, 5), (6,))]


def gradients(parameters: list[nn.Parameter], iteration: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(iteration)
    return [p.detach() + torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]


def step_slowly(x: float, g: float, lr: float, iteration: int, penalised: bool, decay: float) -> float:
    g += decay * x
    if not penalised:
        return x - lr * g
    if iteration <= SETTINGS['proximal_iter']:
        z = x - lr * g
        if z > lr * SETTINGS['penalty']:
            return z - lr * SETTINGS['penalty']
        return z + lr * SETTINGS['penalty'] if z < -lr * SETTINGS['penalty'] else 0.0
    if x == 0:
        return 0.0
    z = x - lr * (g + (SETTINGS['penalty'] if x > 0 else -SETTINGS['penalty']))
    return z if z * x > 0 and abs(z) > SETTINGS['eps'] else 0.0


@pytest.mark.parametrize('decay', [0.0, 0.2])
def test_steps_equal_the_loop(decay: float) -> None:
    parameters, zeros = weights(), []
    optimizer = OPTIMIZER_REGISTRY.get('OBProxSG')(parameters, 0.1, weight_decay=decay, **SETTINGS)
    for iteration in range(1, 9):
        optimizer.param_groups[0]['lr'] = lr = 0.1 if iteration < 6 else 0.07
        expected = []
        for p, gradient in zip(parameters, gradients(parameters, iteration)):
            p.grad = gradient
            expected.append([step_slowly(x, g, lr, iteration, p.dim() > 1, decay)
                             for x, g in zip(p.flatten().tolist(), gradient.flatten().tolist())])
        optimizer.step()
        for p, values in zip(parameters, expected):
            torch.testing.assert_close(p.detach().flatten(), torch.tensor(values, dtype=torch.float64), rtol=1e-13,
                                       atol=0)
        zeros.append(sum(int((p == 0).sum()) for p in parameters))
    assert 0 < zeros[2] < zeros[-1] < 44 and not (parameters[2] == 0).any()
    assert zeros[2:] == sorted(zeros[2:])  # zeros stay


def test_a_resumed_course_is_the_same_bit_for_bit() -> None:
    def run(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for iteration in range(first, last + 1):
            for p, gradient in zip(parameters, gradients(parameters, iteration)):
                p.grad = gradient
            optimizer.step()

    kind = OPTIMIZER_REGISTRY.get('OBProxSG')
    whole = weights()
    run(whole, kind(whole, 0.1, **SETTINGS), 1, 6)
    for stop in (2, 3, 4):  # before, at and after the turn
        parts = weights()
        optimizer = kind(parts, 0.1, **SETTINGS)
        run(parts, optimizer, 1, stop)
        stored = io.BytesIO()
        torch.save({'weights': parts, 'optimizer': optimizer.state_dict()}, stored)
        stored.seek(0)
        state = torch.load(stored, weights_only=True)
        resumed = [nn.Parameter(p.detach().clone()) for p in state['weights']]
        optimizer = kind(resumed, 0.1, **SETTINGS)
        optimizer.load_state_dict(state['optimizer'])
        run(resumed, optimizer, stop + 1, 6)
        assert all(map(torch.equal, resumed, whole))


@pytest.mark.parametrize('proximal_iter', [5, 2000])
def test_lasso_has_its_closed_form(proximal_iter: int) -> None:
    """min_x |A x - b|^2 / 2 + penalty * |x|_1 with orthonormal columns: x = S(A^T b), S shrinking by the penalty."""
    generator = torch.Generator().manual_seed(0)
    a = torch.linalg.qr(torch.randn(30, 12, generator=generator, dtype=torch.float64)).Q
    b = 2 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    correlation, penalty = a.T @ b, 0.8
    solution = correlation.sign() * (correlation.abs() - penalty).clamp_min(0)
    assert 3 <= int((solution == 0).sum()) <= 9
    x = nn.Parameter(0.1 * correlation)
    optimizer = OPTIMIZER_REGISTRY.get('OBProxSG')([x], 0.2, penalty=penalty, proximal_iter=proximal_iter, eps=1e-6)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (a @ x - b).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), solution, rtol=0, atol=1e-12)
    assert torch.equal(x == 0, solution == 0)
