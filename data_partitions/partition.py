"""What a benchmark gives: one client's data, in rows of one form whatever they were made of.

A row is one example, with all that a model may be given and what it should answer. A model that writes takes
`images`, `messages` and `answers`; one that chooses from the client's answer list takes the `images`,
`question` and `scores`.

images
    Pictures, 0 to any number, as the bytes that they are stored as; each was decoded, to see that it can be.
messages
    The conversation up to what is to be answered: an optional turn of `system`, then `user` and `assistant`
    by turns, `user` last. In the `content` of users' turns each ``<image>`` is the place of a picture: as
    many as there are `images`, in their order.
answers
    What is right as the assistant's next turn; the first is what is learned. Never empty.
answer_scores
    How right each is, in (0, 1]: what VQA's annotators agree on.
options
    What the answer is chosen from; empty if it is open.
question
    What the last turn asks, without the places of pictures.
scores
    One for each answer of the client's answer list: that of `answer_scores`, else 0.
example_id
    Where it is from.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import datasets
import pyarrow.compute as pc

POOL_FEATURES = datasets.Features(
    image=datasets.Image(),
    question=datasets.Value("string"),
    answer=datasets.Value("string"),
    example_id=datasets.Value("string"),
)
SPLITS = ("train", "validation", "test")
Groups = dict[str, tuple[int, ...]]
PLACE = "<image>"
FEATURES = datasets.Features(
    images=datasets.List(datasets.Image()),
    messages=datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
    answers=datasets.List(datasets.Value("string")),
    answer_scores=datasets.List(datasets.Value("float32")),
    options=datasets.List(datasets.Value("string")),
    question=datasets.Value("string"),
    scores=datasets.List(datasets.Value("float32")),
    example_id=datasets.Value("string"),
)


@dataclass(frozen=True)
class Row:
    """One example; its parts are the columns of that name.

    Attributes
    ----------
    images : sequence of dict
        Encoded pictures, as `datasets.Image` stores them.
    messages : sequence of dict
        Turns, with `role` and `content`.
    answers : dict
        Answer → its score; the first is learned.
    options : sequence of str
        What the answer is chosen from.
    example_id : str
        Where it is from.
    """

    images: Sequence[dict]
    messages: Sequence[dict[str, str]]
    answers: Mapping[str, float]
    example_id: str
    options: Sequence[str] = ()

    @classmethod
    def asking(cls, image: dict, question: str, answer: str, example_id: str) -> "Row":
        """Make a question about one picture."""
        messages = [{"role": "user", "content": f"{PLACE}\n{question}"}]
        return cls([image], messages, {answer: 1.0}, example_id)

    @property
    def question(self) -> str:
        """What the last turn asks, without the places of pictures."""
        return " ".join(self.messages[-1]["content"].replace(PLACE, " ").split())


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

    @property
    def pictures(self) -> int:
        """Most pictures that one of its examples has."""
        columns = [
            split.with_format("arrow")[:]["images"] for split in (self.train, self.validation, self.test)
        ]
        return max(pc.max(pc.list_value_length(column)).as_py() or 0 for column in columns)

    def tested_on_validation(self) -> "Partition":
        """Return it with its validation rows as its test; ValueError where it has none."""
        if not len(self.validation):
            raise ValueError(
                f"evaluate-on = 'validation': {self.name} has no validation rows; allowed: 'test'"
            )
        unanswerable = self.unanswerable | {"test": self.unanswerable.get("validation", 0)}
        return replace(self, test=self.validation, unanswerable=unanswerable)


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


def scored_split(rows: Iterable[Row], answers: Sequence[str]) -> tuple[datasets.Dataset, int]:
    """Make one split of a partition.

    Parameters
    ----------
    rows : iterable of Row
        The examples.
    answers : sequence of str
        The client's answer list.

    Returns
    -------
    tuple
        The split, and how many rows have no answer that is in the list.
    """
    columns: dict[str, list] = {name: [] for name in FEATURES}
    unanswerable = 0
    for row in rows:
        scores = [row.answers.get(answer, 0.0) for answer in answers]
        unanswerable += not any(scores)
        values = {
            **vars(row),
            "answers": list(row.answers),
            "answer_scores": list(row.answers.values()),
            "question": row.question,
            "scores": scores,
        }
        for name, column in columns.items():
            column.append(values[name])
    return datasets.Dataset.from_dict(columns, features=FEATURES), unanswerable
