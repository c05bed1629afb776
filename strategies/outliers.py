"""Bounds that the replies of a round set for each other: one far from the rest does not count."""

from collections.abc import Iterable, Mapping
from math import inf, sqrt
from statistics import median

import numpy as np
from flwr.app import ArrayRecord

from .checks import in_place

MIN_PEERS = 3  # of fewer, a median tells nothing: one of two is half of it
MAX_COUNT = 1000.0


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return sqrt(sum(float(np.vdot(array, array)) for array in arrays))


def change(sent: Mapping[str, np.ndarray], received: ArrayRecord) -> float:
    """Return the norm of what a client added to the arrays it was sent; those received passed the checks."""

    def size(dtype: type) -> float:
        pairs = ((in_place(received[name]), sent[name]) for name in sent)
        return norm(np.subtract(new, old, dtype=dtype, casting="unsafe") for new, old in pairs)

    with np.errstate(over="ignore"):
        quick = size(np.float32)
    # Squares may be too small or too large for it.
    return quick if 0 < quick < inf else size(np.float64)


def far_changes(changes: Mapping[int, float], sent: ArrayRecord, max_change: float) -> dict[int, str]:
    """Find the changes that are too large.

    Parameters
    ----------
    changes : Mapping[int, float]
        Norm of each client's change, by partition.
    sent : ArrayRecord
        What they were sent.
    max_change : float
        Largest norm that is let in, in multiples of the median of all. With fewer than three replies, or when
        half of them change nothing, in multiples of the norm of `sent` (of 1, if that is larger).

    Returns
    -------
    dict[int, str]
        Partition → reason.
    """
    if max_change == inf:
        return {}
    typical = median(changes.values()) if len(changes) >= MIN_PEERS else 0.0
    limit = max_change * (typical or max(1.0, norm(array.numpy().astype(float) for array in sent.values())))
    return {
        partition: f"changes the arrays by {size:.3g} in norm, more than {limit:.3g}"
        for partition, size in changes.items()
        if not size <= limit < inf
    }


def absurd_counts(counts: Mapping[int, float], said: Mapping[int, float]) -> dict[int, str]:
    """Find the counts of examples that nobody can have.

    Parameters
    ----------
    counts : Mapping[int, float]
        What the clients weigh by their own word, by partition.
    said : Mapping[int, float]
        What they said the first time.

    Returns
    -------
    dict[int, str]
        Partition → reason, for a count over a thousand times what the client said the first time; the first
        time, over a thousand times the median of three clients or more.
    """
    typical = median(counts.values()) if len(counts) >= MIN_PEERS else inf
    return {
        partition: f"counts {count:g} examples, more than {MAX_COUNT:g} times {usual:g}"
        for partition, count in counts.items()
        if count > MAX_COUNT * (usual := said.get(partition, typical))
    }
