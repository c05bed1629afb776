"""An evaluation of what a client's model writes, or would rather write, for each branch."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from app.chat import ChatProcessor
from app.conversations import Conversations
from app.families.generative import AnswerPositions
from app.learner import Learner
from app.methods import METHODS
from app.settings import Settings
from app.text_scores import text_score

from .chosen_answers import Choice
from .client import Client
from .local_training import EVALUATION_BATCH, OwnTraining, mixed_precision


def evaluate_written(
    learner: Learner,
    conversations: Conversations,
    processor: ChatProcessor,
    settings: Settings,
    own: OwnTraining,
    answers: Callable[[], Sequence[str]],
) -> dict[str, Any]:
    """Return what the answers of each branch of the run's method are worth, on average.

    By the setting `writing.score` these are written, or chosen; `answers` are then what there is to choose
    from for examples without options of their own, see `Choice`.
    """
    started = time.perf_counter()
    method = METHODS[settings.method]
    sums = dict.fromkeys(method.branches, 0.0)
    scores: Callable[..., list[float]]
    if settings.writing.score == "choice":
        scores = Choice(conversations, processor, answers).scores
    else:
        scores = _written(conversations.answers(), processor, settings)
    for branches in method.scored(learner, own, settings):
        for rows in torch.arange(len(conversations)).split(EVALUATION_BATCH):
            questions = conversations.questions(rows, learner.device)
            for branch in branches:
                with torch.no_grad(), mixed_precision(learner.device), learner.branch(branch):
                    for score in scores(AnswerPositions(learner.model), rows, questions):
                        sums[branch] += score
    return {
        "num-examples": len(conversations),
        **{branch: total / len(conversations) for branch, total in sums.items()},
        "evaluate-seconds": time.perf_counter() - started,
    }


def unwritable(client: Client) -> str:
    """Say how many of a client's test questions have no right answer that it can write; nothing if all have.

    What is longer than the setting `writing.tokens` is cut there.
    """
    settings, rows = client.settings, client.partition.test["answers"]
    if settings.loss != "next-token" or settings.writing.score == "choice":
        return ""
    limit, tokens = settings.writing.tokens, functools.cache(client.backbone.processor.answer)
    try:
        needed = [min(len(tokens(answer)) - 1 for answer in own) for own in rows]  # its end is not written
    except ValueError:
        return ""  # one that the model has no words for is named where examples are made
    longer = sum(number > limit for number in needed)
    if not longer:
        return ""
    return (
        f"client {client.partition.name}: {longer} of {len(needed)} test questions have no right answer that"
        f" fits into writing.tokens = {limit}; allowed, for all to fit: {max(needed)} or more"
    )


def _written(
    wanted: Sequence[Mapping[str, float]], processor: ChatProcessor, settings: Settings
) -> Callable[..., list[float]]:
    kind, limit = settings.writing.score, settings.writing.tokens

    def scores(parts: AnswerPositions, rows: Tensor, questions: Mapping[str, Tensor]) -> list[float]:
        written = parts.write(parts.trunk(questions), processor.stops, limit)
        pairs = zip(rows.tolist(), written, strict=True)
        return [text_score(kind, processor.decode(tokens), wanted[row]) for row, tokens in pairs]

    return scores
