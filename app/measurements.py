"""What a client may measure: every metric of its replies, and what it says of its data, with their ranges.

A name that does not stand here, or a value out of its range, is dropped by the server and counted: a row of
``metrics.jsonl`` holds nothing else that a client said.
"""

Range = tuple[float, float]  # smallest and largest value, both allowed

_COUNT: Range = (0, 2**53)
_SCORE: Range = (0, 1)
# Rounding may leave a divergence of 0 just below it.
_LOSS: Range = (-1e-3, 1e9)
_NORM: Range = (0, 1e9)
_SECONDS: Range = (0, 1e8)

# How many local epochs of a round, its first, are told one by one: a row does not grow with them.
EPOCHS = 10
EPOCH = ".epoch-"
_OF_STEPS: dict[str, Range] = {
    **dict.fromkeys(("ce-student", "kl-student", "ce-teacher", "kl-teacher", "ce-local", "ce-mixed"), _LOSS),
    **dict.fromkeys(("train-student", "train-teacher"), _SCORE),
}


def of_epoch(name: str, epoch: int) -> str:
    """Name what was measured in one local epoch, counted from 1."""
    return f"{name}{EPOCH}{epoch}"


IN_BOTH = {"num-examples": _COUNT, "state-recovered": _COUNT}
MEASURED: dict[str, dict[str, Range]] = {
    "train": {
        **IN_BOTH,
        **_OF_STEPS,
        **{
            of_epoch(name, epoch): allowed
            for name, allowed in _OF_STEPS.items()
            for epoch in range(1, EPOCHS + 1)
        },
        **dict.fromkeys(("delta-shared", "delta-local"), _NORM),
        "train-seconds": _SECONDS,
        # Of Flower's mod for adaptive clipping: whether the change was longer than the norm.
        "norm_bit": (0, 1),
    },
    "evaluate": {
        **IN_BOTH,
        **dict.fromkeys(("student", "local", "teacher", "mixed"), _SCORE),
        "evaluate-seconds": _SECONDS,
    },
}
SAID: dict[str, Range] = {
    "text-only": _SCORE,
    "unanswerable": _SCORE,
    "natural-partitions": (0, 10**6),
    "skipped": _COUNT,
}
