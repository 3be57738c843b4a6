"""Selection: nets of four units worked out by hand, every prefix of the line tried, and properties."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from nets import VARIANTS, tiny_net

from basicsr_ssl import count_macs, count_params, prune_network
from basicsr_ssl.api import choose_units, cut_network
from basicsr_ssl.pruning.options import PruningOptions
from basicsr_ssl.pruning.scores import score_units
from basicsr_ssl.pruning.selection import select_units

TWO_LAYERS = {'a': torch.tensor([4., 1, 3, 2]), 'b': torch.tensor([8., 5, 7, 6])}


@pytest.mark.parametrize(('ratio', 'options', 'expected'), [
    (0, {}, {'a': [0, 1, 2, 3], 'b': [0, 1, 2, 3]}),
    (0.125, {}, {'a': [0, 2, 3], 'b': [0, 1, 2, 3]}),
    (0.25, {}, {'a': [0, 2], 'b': [0, 1, 2, 3]}),
    (0.5, {}, {'a': [0], 'b': [0, 2, 3]}),  # the fourth weakest is a's last unit: min_keep sends b's weakest
    (0.75, {}, {'a': [0], 'b': [0]}),
    (0.5, {'min_keep': 2}, {'a': [0, 2], 'b': [0, 2]}),
    (0.25, {'scope': 'local'}, {'a': [0, 2, 3], 'b': [0, 2, 3]}),
    (0.5, {'scope': 'local'}, {'a': [0, 2], 'b': [0, 2]}),
    (0.75, {'scope': 'local'}, {'a': [0], 'b': [0]}),
    (0.5, {'round_to': 2}, {'a': [0, 2], 'b': [0, 2]}),
], ids=['nothing', 'one', 'quarter', 'half', 'most', 'min_keep', 'local-quarter', 'local-half', 'local-most',
        'round_to'])
def test_two_layers_by_hand(ratio: float, options: dict[str, Any], expected: dict[str, list[int]]) -> None:
    assert select_units(TWO_LAYERS, ratio, **options) == expected


@pytest.mark.parametrize(('size', 'ratio', 'removed'), [
    (10, 0.3, 3), (10, 0.35, 4), (7, 0.5, 4), (100, 0.29, 29), (35, 0.1, 4), (3, 0.1, 0), (1000, 0.999, 999),
])
@pytest.mark.parametrize('scope', ['global', 'local'])
def test_the_count_is_exact_halves_round_up(size: int, ratio: float, removed: int, scope: str) -> None:
    scores = {'a': torch.rand(size, generator=torch.Generator().manual_seed(0))}
    kept = select_units(scores, ratio, scope=scope)
    assert len(kept['a']) == size - removed
    assert set(kept['a']) == set(torch.topk(scores['a'], size - removed).indices.tolist())


def test_ties_are_broken_by_group_name_and_unit() -> None:
    scores = {'b': torch.ones(4), 'a': torch.ones(4)}
    assert select_units(scores, 0.25) == {'b': [0, 1, 2, 3], 'a': [2, 3]}
    assert select_units(scores, 0.5) == {'b': [1, 2, 3], 'a': [3]}
    assert select_units(scores, 0.25, scope='local') == {'b': [1, 2, 3], 'a': [1, 2, 3]}


@pytest.mark.parametrize(('options', 'message'), [
    ({'ratio': -0.1}, r'ratio must be at least 0 and below 1 \(the share to remove\), got -0\.1'),
    ({'ratio': 1.0}, r'ratio must be at least 0 and below 1 \(the share to remove\), got 1\.0'),
    ({'ratio': float('nan')}, 'ratio must be at least 0'),
    ({'ratio': 0.5, 'scope': 'layer'}, "unknown scope 'layer'; choose one of global, local"),
    ({'ratio': 0.5, 'round_to': 0}, 'round_to and min_keep must be at least 1, got 0 and 1'),
    ({'ratio': 0.5, 'min_keep': 0}, 'round_to and min_keep must be at least 1, got 1 and 0'),
    ({'ratio': 0.9}, r'ratio 0\.9 cannot be reached: with min_keep 1 and round_to 1 at most 0\.7500 can be removed'),
    ({'ratio': 0.5, 'min_keep': 3}, r'with min_keep 3 and round_to 1 at most 0\.2500'),
    ({'ratio': 0.4, 'round_to': 4}, r'with min_keep 1 and round_to 4 at most 0\.0000'),
], ids=['negative', 'whole', 'nan', 'scope', 'round_to', 'min_keep', 'unreachable', 'unreachable-min_keep',
        'unreachable-round_to'])
def test_errors_name_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_units(TWO_LAYERS, **options)


# ---- budgets

def two_convs(widths: dict[str, int]) -> int:
    """Weights of 3 -> a -> b with 3x3 kernels."""
    return 9 * (3 * widths['a'] + widths['a'] * widths['b'])


def by_trying_every_prefix(scores: dict[str, torch.Tensor], ratio: float, min_keep: int, round_to: int) -> \
        dict[str, list[int]]:
    """Remove the weakest unit that may still go, again and again, until the rounded network costs little enough."""
    kept = {name: set(range(len(values))) for name, values in scores.items()}
    order = {name: sorted(units, key=lambda u: (float(scores[name][u]), u)) for name, units in kept.items()}

    def rounded() -> dict[str, list[int]]:
        result = {}
        for name, units in kept.items():
            size, width = len(order[name]), len(units)
            if width < size:  # the nearest multiple, the larger one at a tie, that is neither 0 nor below min_keep
                allowed = [m for m in range(round_to, size + round_to, round_to) if m >= min_keep]
                width = min(size, min(allowed, key=lambda m: (abs(m - width), -m)))
            result[name] = sorted(order[name][size - width:])
        return result

    while two_convs({name: len(units) for name, units in rounded().items()}) > \
            (1 - ratio) * two_convs({name: len(values) for name, values in scores.items()}):
        free = [(float(scores[name][u]), name, u) for name, units in kept.items() if len(units) > min_keep
                for u in units]
        _, name, unit = min(free)
        kept[name].remove(unit)
    return rounded()


@pytest.mark.parametrize('ratio', [0, 0.1, 0.37, 0.5, 0.75])
@pytest.mark.parametrize(('min_keep', 'round_to'), [(1, 1), (3, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize('seed', range(3))
def test_budgets_equal_the_first_prefix_that_meets_them(ratio: float, min_keep: int, round_to: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {'b': torch.rand(11, generator=generator), 'a': torch.rand(9, generator=generator)}
    assert select_units(scores, ratio, cost=two_convs, min_keep=min_keep, round_to=round_to) == \
        by_trying_every_prefix(scores, ratio, min_keep, round_to)


@pytest.mark.parametrize('ratio', [0.1, 0.37, 0.5, 0.8])
def test_local_budgets_take_the_smallest_common_share(ratio: float) -> None:
    sizes = {'a': 9, 'b': 11}
    kept = select_units({name: torch.arange(float(size)) for name, size in sizes.items()}, ratio, scope='local',
                        cost=two_convs)
    shares = [i / 10000 for i in range(10000)]
    widths = ({name: size - int(share * size + 0.5) for name, size in sizes.items()} for share in shares)
    expected = next(w for w in widths if two_convs(w) <= (1 - ratio) * two_convs(sizes))
    assert {name: len(units) for name, units in kept.items()} == expected
    assert kept == {name: list(range(size - expected[name], size)) for name, size in sizes.items()}


def milliseconds(widths: dict[str, int]) -> float:
    """A latency: widths that are not multiples of 4 run at half the speed."""
    return sum(width if width % 4 == 0 else 2 * width for width in widths.values())


def test_a_cost_that_is_not_monotone_leaves_the_widest_network_that_fits() -> None:
    scores = {'a': torch.arange(16.)}
    # 16 costs 16, 15 to 13 cost 30 to 26, 12 costs 12, 11 to 9 cost 22 to 18, 8 costs 8: bisection would miss 12
    kept = select_units(scores, 0.2, cost=milliseconds, monotone=False)
    assert kept == {'a': list(range(4, 16))}


@pytest.mark.parametrize('round_to', [1, 4])
@pytest.mark.parametrize('scope', ['global', 'local'])
@pytest.mark.parametrize('ratio', [0, 0.15, 0.3, 0.5, 0.6])
def test_a_cost_that_is_not_monotone_against_all_networks_of_the_line(ratio: float, scope: str, round_to: int) -> None:
    generator = torch.Generator().manual_seed(5)
    scores = {name: torch.rand(size, generator=generator) for name, size in (('a', 12), ('b', 16), ('c', 8))}
    shares = range(660 if round_to > 1 else 910)  # in thousandths, up to what rounding lets go
    line = [select_units(scores, share / 1000, scope=scope, round_to=round_to) for share in shares]
    sizes = {name: len(values) for name, values in scores.items()}
    widths = next(widths for kept in line if milliseconds(widths := {name: len(units) for name, units in kept.items()})
                  <= (1 - ratio) * milliseconds(sizes))
    # odd widths may cost no less than the next whole vectors: then all of those stay
    for name, size in sizes.items():
        widths[name] = max(width for width in range(widths[name], size + 1)
                           if milliseconds({'': width}) <= milliseconds({'': widths[name]})
                           and (width % round_to == 0 or width == size))
    expected = {name: sorted(values.argsort()[sizes[name] - widths[name]:].tolist()) for name, values in scores.items()}
    assert select_units(scores, ratio, scope=scope, cost=milliseconds, monotone=False, round_to=round_to) == expected


def test_the_least_cost_of_the_line_is_what_can_be_reached() -> None:
    with pytest.raises(ValueError, match=r'ratio 0\.9 cannot be reached: .* at most 0\.7500 can be removed'):
        select_units({'a': torch.arange(16.)}, 0.9, cost=milliseconds, monotone=False, min_keep=3)


@pytest.mark.parametrize('args', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('budget', ['params', 'macs'])
def test_networks_meet_their_budget_and_one_unit_more_would_not(args: dict[str, Any], budget: str) -> None:
    net: Any = tiny_net(**args)

    def price(kept: dict[str, list[int]]) -> int:
        small = cut_network(net, kept)
        if budget == 'macs':
            return count_macs(small, (20, 30), flow='flow' in args)
        return sum(p.numel() for p in small.parameters())

    target = 0.4 * price({})
    kept = choose_units(net, PruningOptions.of(ratio=0.6, budget=budget, score='l1', relative=False, lr_size=(20, 30),
                                               flow='flow' in args))
    assert price(kept) <= target
    scores = score_units(net.state_dict(), net.groups, 'l1')
    _, name, unit = max((float(scores[name][u]), name, u) for name, units in kept.items()
                        for u in set(range(len(scores[name]))) - set(units))
    assert price({**kept, name: [*kept[name], unit]}) > target


def test_budgets_count_from_what_a_compact_network_has_left() -> None:
    net = tiny_net(flow='spynet')
    half = prune_network(net, 0.5, budget='params', score='l1')
    quarter = prune_network(half, 0.5, budget='params', score='l1')
    assert 0.47 < count_params(half, flow=False) / count_params(net, flow=False) <= 0.5
    assert 0.46 < count_params(quarter, flow=False) / count_params(half, flow=False) <= 0.5


def test_rounded_widths_are_multiples_or_full() -> None:
    small: Any = prune_network(tiny_net(num_feat=12, tail_feat=10), 0.5, budget='macs', score='l1', round_to=4)
    widths = small.spec.widths
    assert widths and set(widths.values()) <= {4, 8}


# ---- properties

LAYERS = st.dictionaries(st.sampled_from(['a', 'b', 'c', 'd']), st.lists(st.integers(0, 5), min_size=1, max_size=9),
                         min_size=1)
PERCENT = st.integers(0, 99)
PROPERTY = hypothesis.settings(deadline=None, derandomize=True, max_examples=150)


def as_scores(layers: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in layers.items()}


def reachable(layers: dict[str, list[int]], percent: int, min_keep: int = 1) -> bool:
    removed = (percent * sum(map(len, layers.values())) + 50) // 100
    return removed <= sum(max(0, len(values) - min_keep) for values in layers.values())


@PROPERTY
@hypothesis.given(LAYERS, PERCENT, st.integers(1, 3))
def test_global_selection_is_exact_and_takes_the_weakest(layers: dict[str, list[int]], percent: int,
                                                         min_keep: int) -> None:
    hypothesis.assume(reachable(layers, percent, min_keep))
    kept = select_units(as_scores(layers), percent / 100, min_keep=min_keep)
    total = sum(map(len, layers.values()))
    assert total - sum(map(len, kept.values())) == (percent * total + 50) // 100
    gone = [(values[u], name, u) for name, values in layers.items() for u in range(len(values)) if u not in kept[name]]
    for name, units in kept.items():
        assert units == sorted(set(units))
        assert len(units) >= min(min_keep, len(layers[name]))
        if len(units) > min_keep and gone:  # otherwise its units were not for taking
            assert min((layers[name][u], name, u) for u in units) > max(gone)


@PROPERTY
@hypothesis.given(LAYERS, PERCENT, st.randoms(use_true_random=False), st.sampled_from(['global', 'local']))
def test_the_order_of_the_layers_makes_no_difference(layers: dict[str, list[int]], percent: int, random: Any,
                                                     scope: str) -> None:
    hypothesis.assume(reachable(layers, percent))
    names = list(layers)
    random.shuffle(names)
    try:
        expected = select_units(as_scores(layers), percent / 100, scope=scope)
    except ValueError:
        hypothesis.reject()
    assert select_units({name: as_scores(layers)[name] for name in names}, percent / 100, scope=scope) == expected


@PROPERTY
@hypothesis.given(LAYERS, PERCENT, PERCENT)
def test_a_larger_ratio_keeps_a_part_of_what_a_smaller_one_keeps(layers: dict[str, list[int]], one: int,
                                                                 other: int) -> None:
    low, high = sorted((one, other))
    hypothesis.assume(reachable(layers, high))
    more, less = (select_units(as_scores(layers), percent / 100) for percent in (low, high))
    assert all(set(less[name]) <= set(more[name]) for name in layers)


@PROPERTY
@hypothesis.given(LAYERS, PERCENT)
def test_local_selection_takes_the_same_share_of_every_layer(layers: dict[str, list[int]], percent: int) -> None:
    removed = {name: (percent * len(values) + 50) // 100 for name, values in layers.items()}
    hypothesis.assume(all(removed[name] < len(values) for name, values in layers.items()))
    kept = select_units(as_scores(layers), percent / 100, scope='local')
    for name, values in layers.items():
        weakest_first = sorted(range(len(values)), key=lambda u: (values[u], u))
        assert kept[name] == sorted(weakest_first[removed[name]:])
