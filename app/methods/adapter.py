"""One shared adapter, trained on the answers alone: the baseline of every other method."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..learner import Learner
from ..mkd import Distillation, adapter_step
from ..settings import Settings
from .method import Method


class SharedAdapter(Method):
    """A shared adapter and the head."""

    name = "adapter"

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse what is of two adapters."""
        yield (
            settings.step == "reference",
            "step = 'reference' is FedDAT's published step; allowed with method = 'feddat' only",
        )
        yield (
            settings.update == "joint",
            "update = 'joint' is a step of two adapters; allowed with method = 'feddat' only",
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
        """Take one step on the task's loss."""
        loss = adapter_step(learner, optimizer, batch, targets, distillation, self.branches[0])
        return {f"ce-{self.branches[0]}": loss}
