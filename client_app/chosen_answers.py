"""Which of an example's options a model that writes finds likeliest."""

import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from app.chat import ChatProcessor
from app.conversations import Conversations
from app.families.generative import AnswerPositions

# Each is a forward for every example and branch.
MOST_OPTIONS = 256


class Choice:
    """What examples are answered with: the likeliest of their own options, or else of the client's answers.

    An option's likelihood is the probability that just this is written: that of all its tokens and of the
    answer's end, as was trained. With a mean over the tokens, the longer option would win whose rest is clear
    once it has begun; without the end, an option that begins another would never be less likely than it.

    Parameters
    ----------
    conversations : Conversations
        The examples.
    processor : ChatProcessor
        Makes tokens of options.
    answers : callable
        Gives the client's answer list, where it is needed.

    Raises
    ------
    ValueError
        An example has one option or too many, or none that is right; where it has the answer list, in which
        not every right answer need be, only the first two.
    """

    def __init__(
        self, conversations: Conversations, processor: ChatProcessor, answers: Callable[[], Sequence[str]]
    ) -> None:
        self._wanted = conversations.answers()
        self._options = list(conversations.options())
        self._tokens = functools.cache(processor.answer)
        for number, (own, wanted) in enumerate(zip(self._options, self._wanted, strict=True)):
            if own and not any(option in wanted for option in own):
                raise ValueError(
                    f"example {number} with writing.score = 'choice': none of its {len(own)} options is"
                    " right; allowed: options with a right answer among them"
                )
            options = own or answers()
            if not 2 <= len(options) <= MOST_OPTIONS:
                whose = "its options" if own else "its client's answers, for it has no options of its own,"
                raise ValueError(
                    f"example {number} with writing.score = 'choice': {whose} are {len(options)}; allowed: 2"
                    f" to {MOST_OPTIONS}"
                )
            self._options[number] = list(options)

    def scores(self, parts: AnswerPositions, rows: Tensor, questions: Mapping[str, Tensor]) -> list[float]:
        """Return what the chosen options of some examples are worth, by what their answers would be."""
        options = [self._options[row] for row in rows.tolist()]
        found = parts.likelihoods(questions, [[self._tokens(option) for option in own] for own in options])
        chosen = [own[index] for own, index in zip(options, found.argmax(1).tolist(), strict=True)]
        return [self._wanted[row].get(option, 0.0) for row, option in zip(rows.tolist(), chosen, strict=True)]
