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

IN_BOTH = {"num-examples": _COUNT, "state-recovered": _COUNT}
MEASURED: dict[str, dict[str, Range]] = {
    "train": {
        **IN_BOTH,
        **dict.fromkeys(
            ("ce-student", "kl-student", "ce-teacher", "kl-teacher", "ce-local", "ce-mixed"), _LOSS
        ),
        **dict.fromkeys(("train-student", "train-teacher"), _SCORE),
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
