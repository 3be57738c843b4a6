"""What a method selects and what it pulls at, by hand; training with them is in test_stages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference_training as reference
import torch
from nets import random_gates_, randomise_, tiny_net
from torch import Tensor

from basicsr_ssl.api import choose_units, with_gates
from basicsr_ssl.archs import PrunableEDSR
from basicsr_ssl.methods import METHOD_REGISTRY
from basicsr_ssl.methods.assl import alignment_loss
from basicsr_ssl.pruning.options import PruningOptions


def edsr(residual: Any = 'aligned', seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net = PrunableEDSR(8, 2, scale=2, residual=residual)
    randomise_(net)
    return net.double()


def method(kind: str, net: Any, options: dict[str, Any] | None = None, **pruning: Any) -> Any:
    cls = METHOD_REGISTRY.get(kind)
    settings = PruningOptions.of(**{'ratio': 0.4, 'scope': 'local', 'score': 'gate' if cls.kind else 'l1', **pruning})
    return cls(cls.prepare(net), cls.Options(**(options or {})).model_dump(), settings.model_dump())


# ---- alignment (ASSL)

def test_alignment_by_hand() -> None:
    """Two layers of three units, of which each loses one: thresholds 2 and 1."""
    def mask(difference: float) -> float:
        return 1 / (1 + math.exp(-difference))

    one, other = [mask(-1), mask(1), mask(0)], [mask(0), mask(4), mask(-0.5)]
    products = [sum(a * b for a, b in zip(first, second)) for first in (one, other) for second in (one, other)]
    loss = alignment_loss(torch.tensor([[1., -3, 2], [1, 5, -0.5]], dtype=torch.float64), 1)
    assert float(loss) == pytest.approx(-sum(products) / 4, rel=1e-12)


@pytest.mark.parametrize(('layers', 'units', 'removed'), [(2, 5, 2), (4, 7, 0), (3, 6, 5)])
def test_alignment_and_its_gradient_equal_the_slow_ones(layers: int, units: int, removed: int) -> None:
    s = torch.randn(layers, units, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, expected = alignment_loss(s, removed), reference.alignment(list(s), removed)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, s)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_layers_that_keep_the_same_units_have_the_least_alignment_loss() -> None:
    keep = torch.tensor([1., 9, 9, 1])
    together, apart = torch.stack([keep, keep]), torch.stack([keep, keep.flip(0).roll(1)])
    assert alignment_loss(together, 2) < alignment_loss(apart, 2)


@pytest.mark.parametrize('residual', ['aligned', 'rsc'])
def test_only_aligned_groups_are_aligned_and_only_until_the_selection(residual: str) -> None:
    assl = method('ASSL', edsr(residual), {'select_iter': 3, 'align_weight': 2.0})
    if residual == 'rsc':
        assert assl.losses(1) == {}
        return
    stream = next(group for group in assl.net.groups if group.name == 'stream')
    gates = [assl.net.get_parameter(name) for name in reference.gates_of(stream)]
    assert len(gates) == 4  # what writes to the stream: first, a convolution of each block, last
    torch.testing.assert_close(assl.losses(3)['l_align'], 2 * reference.alignment(gates, 3), rtol=1e-12, atol=0)
    assert assl.losses(4) == {}


# ---- what is selected

def gone(chosen: dict[str, list[int]], net: Any) -> dict[str, list[int]]:
    return {group.name: sorted(set(range(group.size)) - set(chosen[group.name])) for group in net.groups}


def test_assl_takes_the_least_norms_of_a_stream_those_summed() -> None:
    assl = method('ASSL', edsr())
    random_gates_(assl.net)
    for group in assl.net.groups:
        size = sum(assl.net.get_parameter(name).detach().abs() for name in reference.gates_of(group))
        assert gone(assl.choose(), assl.net)[group.name] == sorted(size.argsort()[:3].tolist())  # type: ignore


def test_srp_takes_the_least_filters_and_of_a_stream_random_ones() -> None:
    by_name = {seed: gone(method('SRP', edsr(), seed=seed).choose(), edsr()) for seed in (0, 1)}
    net = edsr()
    for j in (0, 1):
        size = net.get_parameter(f'body.{j}.conv1.weight').detach().abs().sum((1, 2, 3))
        assert all(chosen[f'body.{j}.mid'] == sorted(size.argsort()[:3].tolist()) for chosen in by_name.values())
    assert by_name[0]['stream'] != by_name[1]['stream'] and len(by_name[0]['stream']) == 3
    assert gone(method('SRP', edsr(seed=1), seed=1).choose(), net)['stream'] == by_name[1]['stream']
    scored = method('SRP', edsr(), {'aligned': 'score'})
    assert scored.choose() == choose_units(net, PruningOptions.of(ratio=0.4, scope='local', score='l1'))


# ---- what is pulled at

def pulled(chosen: Any) -> dict[str, Tensor]:
    chosen.select({group.name: list(range(1, group.size)) for group in chosen.net.groups})  # all but the first
    return chosen.masks


def test_ssl_pulls_at_gates_assl_at_norms_and_biases_srp_at_filters_and_biases() -> None:
    for kind in ('SSL', 'ASSL', 'SRP'):
        chosen = method(kind, edsr(), score='l1')
        expected = {}
        for name, parameter in chosen.net.named_parameters():
            layer, part = name.rsplit('.', 1)
            if (part == 'weight' and kind != 'SRP') or (part == 'bias' and kind == 'SSL') or layer == 'conv_last':
                continue
            expected[name] = torch.zeros_like(parameter, dtype=torch.bool)
            # four filters make one channel after the shuffle
            expected[name][:4 if layer == 'upsample.0' and part != 'gate' else 1] = True
        masks = pulled(chosen)
        assert masks.keys() == expected.keys(), kind
        assert all(torch.equal(mask, expected[name]) for name, mask in masks.items()), kind


def test_a_filter_that_is_also_an_input_channel_of_a_unit_is_pulled_at_once() -> None:
    srp = method('SRP', edsr('rsc'), {'interval': 1, 'delta': 0.25})
    cross = torch.zeros(8, 8, dtype=torch.bool)
    cross[0], cross[:, 0] = True, True
    assert torch.equal(pulled(srp)['body.0.conv1.weight'], cross[:, :, None, None].expand(8, 8, 3, 3))
    weight = srp.net.get_parameter('body.0.conv1.weight')
    weight.grad = torch.zeros_like(weight)
    srp.adjust_gradients(1)
    assert torch.equal(weight.grad, 0.25 * weight.detach() * cross[:, :, None, None])


def test_how_small_the_selected_has_become_is_told() -> None:
    srp = method('SRP', tiny_net())
    assert srp.figures(srp.net) == {'penalty': 0.0, 'selected': 0.0}
    masks = pulled(srp)
    sums = [0., 0, 0, 0]
    for name, mask in masks.items():
        for value, selected in zip(srp.net.get_parameter(name).flatten().tolist(), mask.flatten().tolist()):
            sums[2 * (not selected)] += value**2
            sums[2 * (not selected) + 1] += 1
    expected = math.sqrt(sums[0] / sums[1] / (sums[2] / sums[3]))
    assert srp.figures(srp.net)['selected'] == pytest.approx(expected, rel=1e-6)


# ---- the papers' schedules

@pytest.mark.parametrize(('kind', 'published'), [
    ('SSL', {4: 0, 5: 1e-4, 4999: 0.0999, 5000: 0.1, 19000: 0.1}),
    ('ASSL', {19: 0, 20: 1e-4, 39: 1e-4, 40: 2e-4, 99999: 0.4999, 100000: 0.5, 143150: 0.5}),
    ('SRP', {19: 0, 20: 1e-4, 39: 1e-4, 40: 2e-4, 99999: 0.4999, 100000: 0.5, 143150: 0.5}),
])
def test_the_schedules_of_the_papers_are_the_defaults(kind: str, published: dict[int, float]) -> None:
    schedule = method(kind, edsr(), score='l1').schedule
    assert {step: schedule.factor(step) for step in published} == pytest.approx(published, abs=1e-12)


def test_gates_of_another_kind_become_those_of_the_method() -> None:
    for start in ('scale', 'weight_norm', 'mask'):
        for kind in ('SSL', 'ASSL', 'SRP'):
            cls = METHOD_REGISTRY.get(kind)
            assert cls.prepare(with_gates(edsr(), start)).spec.gates == cls.kind
