"""What the replies of a round set for each other: more than is usual is clipped, the absurd refused.

Clipping a change to a norm bounds what one client can do to the mean, whatever it sends (Sun et al., "Can You
Really Backdoor Federated Learning?", 2019, https://arxiv.org/abs/1911.07963). The norm here is the lower
median of the round, array by array, with a reply that is missing for one of no length: as long as attackers
are at most half of those that a round asked, and an honest client replies, it is at most an honest one's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, inf
from statistics import median, median_low

import numpy as np
from flwr.app import Array, ArrayRecord

from .checks import in_place

MIN_PEERS = 3  # of fewer, a median tells nothing: one of two is half of it
MAX_COUNT = 1000.0
MAX_WEIGHT_RATIO = 2.0


@dataclass(frozen=True)
class Limits:
    """How far a reply may differ from the others of its round.

    Attributes
    ----------
    max_change : float
        Largest norm of a change that is let in, see `far_changes`.
    clip_change : float
        Largest norm of each array's change, in multiples of what is usual, see `usual_norms`; a larger one is
        scaled down to it. Infinity: none is.
    """

    max_change: float = inf
    clip_change: float = inf


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return hypot(*(float(np.linalg.norm(array)) for array in arrays))


def like_received(sent: Mapping[str, np.ndarray], received: ArrayRecord) -> dict[str, np.ndarray]:
    """Return what a reply's arrays are changes of: what was sent, cut or filled with zeros to their shape."""
    names = [name for name in sent if name in received]
    names += [name for name in received if name not in sent]
    return {name: _shaped(sent.get(name), received[name]) for name in names}


def changes(sent: Mapping[str, np.ndarray], received: ArrayRecord) -> dict[str, float]:
    """Return the norm of what a client added to each array; those received passed the checks."""
    return {name: _distance(old, in_place(received[name])) for name, old in sent.items()}


def far_changes(sizes: Mapping[int, float], sent: ArrayRecord, max_change: float) -> dict[int, str]:
    """Find the changes that are too large.

    Parameters
    ----------
    sizes : Mapping[int, float]
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
    typical = median(sizes.values()) if len(sizes) >= MIN_PEERS else 0.0
    limit = max_change * (typical or max(1.0, norm(array.numpy().astype(float) for array in sent.values())))
    return {
        partition: f"changes the arrays by {size:.3g} in norm, more than {limit:.3g}"
        for partition, size in sizes.items()
        if not size <= limit < inf
    }


def usual_norms(round_changes: Sequence[Mapping[str, float]], missing: int = 0) -> dict[str, float]:
    """Return the lower median of the norms of each array's change, or the least if that is of none.

    A reply that changes nothing at all is as one that is missing; one that changes some arrays and not others
    says that these do not change.

    Parameters
    ----------
    round_changes : sequence of dict
        What `changes` returned for each reply.
    missing : int
        How many were asked besides, and have no reply that counts: were they left out, one honest client that
        fails would make a majority of attackers that are not.

    Returns
    -------
    dict[str, float]
        By array.
    """
    saying = [norms for norms in round_changes if any(norms.values())] or round_changes
    missing += len(round_changes) - len(saying)
    place = max(0, (len(saying) + missing - 1) // 2 - missing)
    return {name: sorted(norms[name] for norms in saying)[place] for name in (saying[0] if saying else ())}


def clipped(
    sent: Mapping[str, np.ndarray],
    received: ArrayRecord,
    norms: Mapping[str, float],
    limits: Mapping[str, float],
) -> tuple[ArrayRecord, float]:
    """Scale each array's change down to its limit.

    Parameters
    ----------
    sent : Mapping[str, numpy.ndarray]
        What the client was sent.
    received : ArrayRecord
        What came back; left as it is.
    norms : Mapping[str, float]
        What `changes` returned for it.
    limits : Mapping[str, float]
        Largest norm of each array's change.

    Returns
    -------
    ArrayRecord
        The arrays, in the order of those sent, with their dtypes; the same objects where within their limit.
    float
        Norm of what is left of the whole change over the norm that it had, in [0, 1].
    """
    kept = ArrayRecord()
    for name, old in sent.items():
        if norms[name] <= limits[name]:
            kept[name] = received[name]
            continue
        factor = limits[name] / norms[name]
        # Without a factor the difference may be infinite, and their product no number.
        values = old + factor * _difference(old, in_place(received[name])) if factor else old
        values = np.rint(values) if old.dtype.kind in "iub" else values
        kept[name] = Array(np.asarray(values, old.dtype))
    whole = hypot(*norms.values())
    left = hypot(*(min(size, limits[name]) for name, size in norms.items()))
    return kept, left / whole if 0 < whole < inf else float(whole == 0)


def most_counted(counts: Iterable[float]) -> float:
    """Return the largest weight that a reply may have by its own word: twice the lower median of all."""
    return MAX_WEIGHT_RATIO * median_low(counts)


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


def _shaped(old: np.ndarray | None, new: Array) -> np.ndarray:
    if old is not None and old.shape == tuple(new.shape):
        return old
    filled = np.zeros(new.shape, new.dtype)
    if old is not None and old.ndim == filled.ndim:
        common = tuple(slice(min(pair)) for pair in zip(old.shape, filled.shape, strict=True))
        filled[common] = old[common]
    return filled


def _difference(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.subtract(new, old, dtype=complex if old.dtype.kind == "c" else float)


def _distance(old: np.ndarray, new: np.ndarray) -> float:
    if np.dtype(old.dtype) == np.float32:
        with np.errstate(over="ignore"):
            apart = np.subtract(new, old).ravel()
            quick = float(np.sqrt(np.vdot(apart, apart)))
        # Squares may be too small or too large for it.
        if 0 < quick < inf:
            return quick
    return float(np.linalg.norm(_difference(old, new)))
