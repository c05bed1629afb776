"""What a written answer is worth beside those that are right, in [0, 1]."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGIT_OF = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}


def normalised(text: str) -> list[str]:
    """Return an answer's words as VQA's evaluation compares them (Antol et al., 2015, arXiv 1505.00468).

    Small letters, no articles, no punctuation but in numbers, numbers up to ten as digits. Where that
    evaluation puts apostrophes in, they are taken out.
    """
    text = re.sub(r"(?<=\d),(?=\d)|'", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_", " ", text)
    return [_DIGIT_OF.get(word, word) for word in text.split() if word not in _ARTICLES]


def exact(written: Sequence[str], right: Sequence[str]) -> float:
    """Return whether they are the same words."""
    return float(list(written) == list(right))


def token_f1(written: Sequence[str], right: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words (SQuAD: Rajpurkar et al., 2016)."""
    return _f1(sum((Counter(written) & Counter(right)).values()), written, right)


def rouge_l(written: Sequence[str], right: Sequence[str]) -> float:
    """Return the same of the longest common subsequence of words (ROUGE-L: Lin, 2004)."""
    row = [0] * (len(right) + 1)
    for word in written:
        before = row
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
    return _f1(row[-1], written, right)


def _f1(common: int, written: Sequence[str], right: Sequence[str]) -> float:
    if not written and not right:
        return 1.0
    return 2 * common / (len(written) + len(right))


TEXT_SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "exact": exact,
    "token-f1": token_f1,
    "rouge-l": rouge_l,
}


def text_score(kind: str, written: str, wanted: Mapping[str, float]) -> float:
    """Return what an answer is worth: its likeness to one that is right, times what that one is worth.

    With `kind` ``"exact"`` that is VQA's score where `wanted` holds what its annotators agree on.

    Parameters
    ----------
    kind : str
        A key of `TEXT_SCORES`.
    written : str
        What was answered.
    wanted : Mapping
        Answer → what it is worth, in [0, 1].
    """
    words = normalised(written)
    found = (worth * TEXT_SCORES[kind](words, normalised(right)) for right, worth in wanted.items())
    return max(found, default=0.0)
