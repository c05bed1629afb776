"""Paired tests: by hand where there are few clients, and what they must not say."""

from itertools import product

import numpy as np
import pytest

from benchmarks.comparison.statistics import difference, holm


def scores(values, seed=0):
    return {(seed, f"client {index}"): value for index, value in enumerate(values)}


def test_scores_are_matched_by_seed_and_client_and_the_p_value_is_exact():
    first, second = scores([3.0, 5.0, 4.0, 9.0, 2.0]), scores([1.0, 2.0, 5.0, 4.0, 1.0])
    shuffled = dict(reversed(second.items())) | {(1, "client 0"): 99.0}
    found = difference(first, shuffled)
    gaps = np.array([2.0, 3.0, -1.0, 5.0, 1.0])
    every = [abs(np.mean(gaps * signs)) for signs in product((1, -1), repeat=5)]
    assert found.mean == pytest.approx(2.0)
    assert (found.clients, found.seeds, found.agreeing) == (5, 1, 1)
    # SciPy doubles the smaller tail: signs and their opposites come in pairs.
    assert found.p == pytest.approx(np.mean([value >= 2.0 - 1e-9 for value in every]))
    # Standard deviation √5, and 2.776 the 97.5 % quantile of t with four degrees of freedom.
    assert (found.low, found.high) == pytest.approx((2.0 - 2.776, 2.0 + 2.776), abs=1e-3)


def test_a_client_of_several_seeds_is_one_client():
    once = difference(scores([3.0, 1.0, 2.0, 4.0, 2.0]), scores([0.0] * 5))
    thrice = difference(
        {
            **scores([6.0, 2.0, 4.0, 8.0, 4.0]),
            **scores([4.0, 2.0, 3.0, 5.0, 4.0], 1),
            **scores([-1.0] * 5, 2),
        },
        {**scores([0.0] * 5), **scores([0.0] * 5, 1), **scores([0.0] * 5, 2)},
    )
    assert (thrice.clients, thrice.seeds, thrice.agreeing) == (5, 3, 2)
    # However many the seeds, five clients of one sign are 2 of 32.
    assert once.p == thrice.p == pytest.approx(2 / 32)


def test_what_is_alike_is_no_difference_and_one_client_tells_nothing():
    same = scores([1.0, 2.0, 3.0])
    assert (difference(same, same).p, difference(same, same).mean) == (1.0, 0.0)
    assert difference(scores([1.0]), scores([2.0])) is None
    assert difference(same, scores([1.0, 2.0], seed=1)) is None


def test_a_difference_that_is_always_there_is_seen_in_many_clients_and_not_in_four():
    many = difference(scores([2.0, 1.0, 3.0] * 5), scores([0.0] * 15))
    few = difference(scores([2.0, 1.0, 3.0, 2.0]), scores([0.0] * 4))
    assert many.p < 0.001 < 0.05 < few.p
    assert many.low > 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
