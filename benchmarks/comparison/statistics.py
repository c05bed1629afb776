"""Whether one method beats another: paired differences of clients, their interval and their test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, t

# One score for each seed and client.
Scores = Mapping[tuple[int, str], float]
RESAMPLES = 9999
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, in the scores' unit.

    A client's difference is its mean over the seeds: a client of several seeds is one client.

    Attributes
    ----------
    mean : float
        First less second, the mean of the clients.
    low, high : float
        Its 95 % interval, by Student's t over clients.
    p : float
        Two-sided, by permuting which of a client's two is which: exact where there are few clients.
    clients, seeds : int
        How many.
    agreeing : int
        In how many seeds the clients' mean has the sign of `mean`.
    """

    mean: float
    low: float
    high: float
    p: float
    clients: int
    seeds: int
    agreeing: int


def difference(first: Scores, second: Scores) -> Difference | None:
    """Compare what both have, paired by seed and client; None with fewer than two clients."""
    by_client: dict[str, list[float]] = {}
    by_seed: dict[int, list[float]] = {}
    for seed, client in sorted(first.keys() & second.keys()):
        gap = first[seed, client] - second[seed, client]
        by_client.setdefault(client, []).append(gap)
        by_seed.setdefault(seed, []).append(gap)
    gaps = np.array([np.mean(own) for own in by_client.values()])
    if len(gaps) < 2:
        return None
    mean, counts = float(gaps.mean()), (len(gaps), len(by_seed))
    agreeing = sum(bool(np.sign(np.mean(own)) == np.sign(mean)) for own in by_seed.values())
    if np.ptp(gaps) == 0 and gaps[0] == 0:
        return Difference(0.0, 0.0, 0.0, 1.0, *counts, agreeing)
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    test = permutation_test(
        (gaps,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return Difference(mean, mean - half, mean + half, float(test.pvalue), *counts, agreeing)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for how many there are (Holm, 1979)."""
    order = np.argsort(p_values)
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
