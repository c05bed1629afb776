"""Ditto: beside the federation's adapter each client trains one of its own, drawn to it.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv 2012.04221, algorithm 1, on adapters. The shared adapter w is FedAvg's. The client's own v takes as many
steps on

    CE(v) + λ/2 · ‖v − w‖²

with w as it was received and λ the setting ``personal.pull``. The head is trained by both.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..learner import Learner
from ..mkd import Distillation, branch_loss, descend
from ..settings import Settings
from .adapter import SharedAdapter


class Ditto(SharedAdapter):
    """A shared and a local adapter; the shared one travels, and the local one is scored beside it."""

    name = "ditto"
    branches = ("student", "local")
    trained = ("shared", "local")
    two_updates = True

    def step(
        self,
        learner: Learner,
        optimizer: Optimizer,
        batch: Any,
        targets: Tensor,
        distillation: Distillation,
        settings: Settings,
    ) -> dict[str, Tensor]:
        """Take a step of the shared adapter, then one of the local adapter."""
        trunk = learner.trunk(batch)
        ce_student = branch_loss(learner, trunk, "student", targets, distillation)
        descend(optimizer, ce_student)
        ce_local = branch_loss(learner, trunk, "local", targets, distillation)
        v, w = learner.parameters_of["local"], learner.parameters_of["frozen"]
        apart = sum_of_squares((v[name] - w[name] for name in v), ce_local.device)
        descend(optimizer, ce_local + settings.personal.pull / 2 * apart)
        return {"ce-student": ce_student.detach(), "ce-local": ce_local.detach()}


def sum_of_squares(arrays: Iterable[Tensor], device: torch.device) -> Tensor:
    """Compute the squared norm of all arrays together, wherever each lies, on a device."""
    return torch.stack([array.square().sum().to(device) for array in arrays]).sum()
