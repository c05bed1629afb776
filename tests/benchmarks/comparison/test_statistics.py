"""Paired tests: by hand where there are few pairs, and what they must not say."""

from itertools import product

import numpy as np
import pytest

from benchmarks.comparison.statistics import difference, holm


def scores(values, seed=0):
    return {(seed, f"client {index}"): value for index, value in enumerate(values)}


def test_pairs_are_matched_by_seed_and_client_and_the_p_value_is_exact():
    first, second = scores([3.0, 5.0, 4.0, 9.0, 2.0]), scores([1.0, 2.0, 5.0, 4.0, 1.0])
    shuffled = dict(reversed(second.items())) | {(1, "client 0"): 99.0}
    found = difference(first, shuffled)
    gaps = np.array([2.0, 3.0, -1.0, 5.0, 1.0])
    every = [abs(np.mean(gaps * signs)) for signs in product((1, -1), repeat=5)]
    assert found.mean == pytest.approx(2.0)
    assert found.pairs == 5
    # SciPy doubles the smaller tail: signs and their opposites come in pairs.
    assert found.p == pytest.approx(np.mean([value >= 2.0 - 1e-9 for value in every]))
    assert -0.5 < found.low < 2.0 < found.high <= 5.0


def test_what_is_alike_is_no_difference_and_one_pair_tells_nothing():
    same = scores([1.0, 2.0, 3.0])
    assert (difference(same, same).p, difference(same, same).mean) == (1.0, 0.0)
    assert difference(scores([1.0]), scores([2.0])) is None
    assert difference(same, scores([1.0, 2.0], seed=1)) is None


def test_a_difference_that_is_always_there_is_seen_in_many_pairs_and_not_in_four():
    many = difference(scores([2.0, 1.0, 3.0] * 5), scores([0.0] * 15))
    few = difference(scores([2.0, 1.0, 3.0, 2.0]), scores([0.0] * 4))
    assert many.p < 0.001 < 0.05 < few.p
    assert many.low > 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
