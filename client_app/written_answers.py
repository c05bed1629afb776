"""An evaluation of a client's written answers, for each branch."""

import time
from typing import Any

import torch

from app.chat import ChatProcessor
from app.conversations import Conversations
from app.families.generative import AnswerPositions
from app.learner import Learner
from app.methods import METHODS
from app.settings import Settings
from app.text_scores import text_score

from .local_training import EVALUATION_BATCH, OwnTraining, mixed_precision


def evaluate_written(
    learner: Learner,
    conversations: Conversations,
    processor: ChatProcessor,
    settings: Settings,
    own: OwnTraining,
) -> dict[str, Any]:
    """Return what the answers that each branch of the run's method writes are worth, on average."""
    started = time.perf_counter()
    wanted, method = conversations.answers(), METHODS[settings.method]
    sums = dict.fromkeys(method.branches, 0.0)
    for branches in method.scored(learner, own, settings):
        for rows in torch.arange(len(conversations)).split(EVALUATION_BATCH):
            questions = conversations.questions(rows, learner.device)
            for branch in branches:
                with torch.no_grad(), mixed_precision(learner.device), learner.branch(branch):
                    parts = AnswerPositions(learner.model)
                    written = parts.write(parts.trunk(questions), processor.stops, settings.writing.tokens)
                for row, tokens in zip(rows.tolist(), written, strict=True):
                    sums[branch] += text_score(settings.writing.score, processor.decode(tokens), wanted[row])
    return {
        "num-examples": len(conversations),
        **{branch: total / len(conversations) for branch, total in sums.items()},
        "evaluate-seconds": time.perf_counter() - started,
    }
