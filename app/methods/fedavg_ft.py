"""FedAvg with local fine-tuning after it: the honest rival of every personal method.

The federation is that of one shared adapter. Before a client is scored, a copy of what it received is trained
on its own examples for ``personal.epochs``, with the run's optimizer and a schedule of its own, and so is the
head; the shared adapter is scored before that, with the head as it was. Of this nothing is kept or sent.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..learner import Branch, Learner
from ..mkd import Distillation, adapter_step
from ..settings import Settings
from .adapter import SharedAdapter
from .method import OwnExamples


class FedAvgFineTuned(SharedAdapter):
    """A shared adapter, and what a client makes of it when the federation is over."""

    name = "fedavg-ft"
    branches = ("student", "local")

    def scored(self, learner: Learner, own: OwnExamples, settings: Settings) -> Iterator[tuple[Branch, ...]]:
        """Score what was received; tune a copy; score that."""
        yield ("student",)
        learner.load("local", learner.state("shared"))
        task = Distillation(loss=settings.loss)

        def step(optimizer: Optimizer, batch: Any, targets: Tensor) -> None:
            adapter_step(learner, optimizer, batch, targets, task, "local")

        own.train(step, settings.personal.epochs)
        yield ("local",)
