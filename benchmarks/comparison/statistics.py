"""Whether one method beats another: paired differences, their interval and their test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, permutation_test

# One score for each seed and client.
Scores = Mapping[tuple[int, str], float]
RESAMPLES = 9999
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, in the scores' unit.

    Attributes
    ----------
    mean : float
        First less second.
    low, high : float
        Its 95 % interval by the bootstrap over pairs; NaN where all pairs are alike.
    p : float
        Two-sided, by permuting which of a pair is which: exact where there are few pairs.
    pairs : int
        How many.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def difference(first: Scores, second: Scores) -> Difference | None:
    """Compare what both have, by seed and client; None with fewer than two pairs."""
    both = sorted(first.keys() & second.keys())
    gaps = np.array([first[key] - second[key] for key in both])
    if len(gaps) < 2:
        return None
    if np.ptp(gaps) == 0 and gaps[0] == 0:
        return Difference(0.0, 0.0, 0.0, 1.0, len(gaps))
    interval = bootstrap(
        (gaps,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    test = permutation_test(
        (gaps,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    low, high = (float(bound) for bound in interval)
    return Difference(float(gaps.mean()), low, high, float(test.pvalue), len(gaps))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for how many there are (Holm, 1979)."""
    order = np.argsort(p_values)
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
