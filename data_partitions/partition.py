"""What a benchmark gives: one client's data."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import datasets

POOL_FEATURES = datasets.Features(
    image=datasets.Image(),
    question=datasets.Value("string"),
    answer=datasets.Value("string"),
    example_id=datasets.Value("string"),
)
SPLITS = ("train", "validation", "test")
Groups = dict[str, tuple[int, ...]]
FEATURES = datasets.Features(
    image=datasets.Image(),
    question=datasets.Value("string"),
    scores=datasets.List(datasets.Value("float32")),
    example_id=datasets.Value("string"),
)


@dataclass(frozen=True)
class Partition:
    """One client's data.

    Attributes
    ----------
    partition_id : int
        Number of the client, from 0.
    name : str
        What is special about it, such as `sketch`.
    answers : tuple of str
        Its own answer list: the columns of `scores`.
    train, validation, test : datasets.Dataset
        Columns as in `FEATURES`; `scores` has one value per answer.
    unanswerable : dict
        Split → rows whose answer is not in `answers`; they are kept, with scores of 0.
    skipped : dict
        Split → rows left out because they could not be used.
    sources : sequence
        The files and folders that all this is made of: path, size, time of change.
    """

    partition_id: int
    name: str
    answers: tuple[str, ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    unanswerable: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    sources: Sequence[tuple[str, int, int]] = ()


class BalancedTest(NamedTuple):
    """What a model for all clients is measured on.

    Attributes
    ----------
    answers : tuple of str
        All classes: the answer list of every client.
    rows : datasets.Dataset
        Columns as a partition's; every class is equally frequent.
    groups : dict
        ``many``, ``medium`` and ``few``: indices of the classes that have so many training examples.
    """

    answers: tuple[str, ...]
    rows: datasets.Dataset
    groups: Groups


def require_one_of(key: str, value: str, allowed: Collection[str]) -> None:
    """Raise a ValueError naming the run-config key, the value and what is allowed, unless the value is."""
    if value not in allowed:
        raise ValueError(f"{key} = {value!r}; allowed: {', '.join(allowed)}")


def pool_of(
    images: Sequence[dict], questions: Sequence[str], given: Sequence[str], ids: Sequence[str]
) -> datasets.DatasetDict:
    """Make the server's public examples: of each answer every fifth is for validation, the rest for training.

    Parameters
    ----------
    images : sequence of dict
        Encoded pictures, as `datasets.Image` stores them.
    questions, given, ids : sequences of str
        What is asked of each, the true answer, and the example's id.
    """
    met: Counter[str] = Counter()
    parts: dict[str, list[tuple]] = {"train": [], "validation": []}
    for row in zip(images, questions, given, ids, strict=True):
        met[row[2]] += 1
        parts["validation" if met[row[2]] % 5 == 0 else "train"].append(row)
    columns = {
        part: {name: [row[place] for row in rows] for place, name in enumerate(POOL_FEATURES)}
        for part, rows in parts.items()
    }
    return datasets.DatasetDict(
        {part: datasets.Dataset.from_dict(own, features=POOL_FEATURES) for part, own in columns.items()}
    )


def client_name(natural: Collection[str], partition_id: int) -> str:
    """Name of a client: that of the natural client it goes with, numbered from the second one on."""
    turn, index = divmod(partition_id, len(natural))
    return list(natural)[index] + (f"-{turn + 1}" if turn else "")


def answer_list(answers: Iterable[str], limit: int | None = None) -> list[str]:
    """Answers by falling frequency, ties in alphabetical order, at most `limit`."""
    counted = sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, _ in counted[:limit]]


def scored_split(
    images: Iterable[dict],
    questions: Iterable[str],
    given: Iterable[str],
    ids: Iterable[str],
    answers: Sequence[str],
) -> tuple[datasets.Dataset, int]:
    """Make one split of a partition.

    Parameters
    ----------
    images : iterable of dict
        Encoded pictures, as `datasets.Image` stores them.
    questions, given, ids : iterables of str
        What is asked of each, the true answer, and the example's id.
    answers : sequence of str
        The client's answer list.

    Returns
    -------
    tuple
        The split, with scores of 1 for the true answer, and how many true answers are not in the list.
    """
    given = list(given)
    columns = {
        "image": list(images),
        "question": list(questions),
        "scores": [[float(answer == listed) for listed in answers] for answer in given],
        "example_id": list(ids),
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES), sum(
        answer not in answers for answer in given
    )
