"""FedDAT: a shared and a local adapter teach each other; the shared one travels (arXiv 2308.12305)."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..learner import Learner
from ..mkd import LOSSES, Distillation, mkd_step, reference_step
from ..settings import Settings
from .method import Method


class FedDAT(Method):
    """The published method, or its joint update."""

    name = "feddat"
    branches = ("student", "local", "teacher")
    trained = ("shared", "local")
    two_updates = True

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse the joint update in the published step."""
        yield (
            settings.update == "joint" and settings.step == "reference",
            "update = 'joint' is not in the published step; allowed with step = 'fast' only",
        )

    def step(
        self,
        learner: Learner,
        optimizer: Optimizer,
        batch: Any,
        targets: Tensor,
        distillation: Distillation,
        settings: Settings,
    ) -> dict[str, Tensor]:
        """Take one step of mutual knowledge distillation."""
        step = mkd_step if settings.step == "fast" else reference_step
        outcome = step(learner, optimizer, batch, targets, distillation)
        task = distillation.task
        _, counted = task.pair(outcome.student, targets)
        return {
            **dict(zip(LOSSES, outcome.losses, strict=True)),
            "train-student": task.score(outcome.student, counted).mean(),
            "train-teacher": task.score(outcome.dat, counted).mean(),
        }
