"""FedDPA: a global and a local adapter, mixed for each example by how much it is like the client's own.

Yang, Long, Shen, Jiang, Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS
2024, arXiv 2403.19211, the variant FedDPA-T. In training the global adapter is FedAvg's, and the local one
learns in the mean of both, the global one as it was received. To an example x inference gives

    h + (1 − λ_x) · A_global(h) + λ_x · A_local(h),   λ_x = ½ · mean over s of cos(φ(x), φ(x_s))

with x_s five of the client's training examples and φ the features under its local adapter, none of which is
kept or leaves. (FedDAT's step with α = β = 0 is the same training.)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.optim import Optimizer

from ..adapters import Adapter, adapt
from ..backbones import Backbone
from ..dual_adapter import DualAdapter
from ..heads import TRAINED_HEADS
from ..learner import Branch, Learner
from ..mkd import Distillation, branch_loss, descend
from ..settings import Settings
from .adapter import SharedAdapter
from .method import OwnExamples

# As in the published code: S examples to compare with, and the local adapter's largest share.
REFERENCES, LARGEST_SHARE = 5, 0.5


class MixedAdapters(DualAdapter):
    """Adapters of which the branch ``mixed`` has its own shares for each example.

    Attributes
    ----------
    references : Tensor or None
        Features of the client's own examples, shape (references, width). Without, both share equally.
    """

    references: Tensor | None = None

    def features(self, trunk: Any, branch: Branch) -> Any:
        """Compute what the head takes, after the shares of the examples."""
        if branch != "mixed" or self.references is None:
            return super().features(trunk, branch)
        usual = self.branches[branch]
        own = local_shares(super().features(trunk, "local"), self.references)[:, None, None]
        self.branches[branch] = {"shared": 1 - own, "local": own}
        try:
            return super().features(trunk, branch)
        finally:
            self.branches[branch] = usual

    def forward(self, batch: Any, branch: Branch) -> Tensor:
        """Compute a branch's logits, with the shares of the examples where there are any to compare with."""
        if branch != "mixed" or self.references is None:
            return super().forward(batch, branch)
        return self.classify(self.features(self.trunk(batch), branch))


def local_shares(features: Tensor, references: Tensor) -> Tensor:
    """Compute the local adapter's share for each example, shape (n,), in [0, ½].

    Parameters
    ----------
    features : Tensor
        Of the examples, shape (n, width).
    references : Tensor
        Of the client's own, shape (references, width).
    """
    alike = cosine_similarity(features[:, None].float(), references[None].float(), dim=-1).mean(1)
    return LARGEST_SHARE * alike.clamp(min=0)


class FedDPA(SharedAdapter):
    """A global and a local adapter; the global one travels."""

    name = "feddpa"
    branches = ("student", "mixed")
    trained = ("shared", "local")
    two_updates = True

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse what has no features of a whole example."""
        yield from super().problems(settings)
        yield (
            settings.loss == "next-token",
            "method = 'feddpa' with loss = 'next-token', whose features are of tokens; allowed: losses with"
            " an answer list",
        )
        yield (
            settings.head not in TRAINED_HEADS,
            f"head = {settings.head!r} with method = 'feddpa', which compares the features that a head takes;"
            f" allowed: {', '.join(map(repr, TRAINED_HEADS))}",
        )

    def open(self, backbone: Backbone, adapter: Adapter, seed: int, device: torch.device) -> MixedAdapters:
        """Make the adapters."""
        learner = adapt(backbone, adapter.config(backbone), seed, device, MixedAdapters)
        assert isinstance(learner, MixedAdapters)
        return learner

    def step(
        self,
        learner: Learner,
        optimizer: Optimizer,
        batch: Any,
        targets: Tensor,
        distillation: Distillation,
        settings: Settings,
    ) -> dict[str, Tensor]:
        """Take a step of the global adapter, then one of the local adapter beside the received one."""
        trunk = learner.trunk(batch)
        ce_student = branch_loss(learner, trunk, "student", targets, distillation)
        descend(optimizer, ce_student)
        ce_mixed = branch_loss(learner, trunk, "teacher", targets, distillation)
        descend(optimizer, ce_mixed)
        return {"ce-student": ce_student.detach(), "ce-mixed": ce_mixed.detach()}

    @torch.no_grad()
    def scored(self, learner: Learner, own: OwnExamples, settings: Settings) -> Iterator[tuple[Branch, ...]]:
        """Look at some of the client's own examples, then score."""
        assert isinstance(learner, MixedAdapters)
        learner.references = learner.features(learner.trunk(own.some(REFERENCES)), "local")
        yield self.branches
        learner.references = None
