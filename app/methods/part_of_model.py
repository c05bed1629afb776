"""Some of the backbone's own weights are trained and sent, and no adapter."""

import re
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..learner import Branch, Learner
from ..settings import Settings
from .adapter import SharedAdapter


class PartlyTrained(Learner):
    """A backbone with weights of its own in some places; all others are the process's, and frozen.

    Branches are computed as in evaluation, as those of adapters are.

    Parameters
    ----------
    backbone : Backbone
        What it starts as.
    names : collection of str
        Which parameters are trained.
    device : torch.device
        Where it computes.
    """

    def __init__(self, backbone: Backbone, names: Iterable[str], device: torch.device) -> None:
        super().__init__()
        self.whole: Any = backbone.fork().to(device)
        for name in names:
            place, _, last = name.rpartition(".")
            module = self.whole.get_submodule(place)
            setattr(module, last, nn.Parameter(getattr(module, last).detach().clone()))
        trained = {name: weight for name, weight in self.whole.named_parameters() if weight.requires_grad}
        self.parameters_of = {"shared": trained, "local": {}}
        self._features = backbone.features
        self.remember_first_weights()
        self.eval()

    @property
    def model(self) -> Any:
        """The backbone with what is trained inside."""
        return self.whole

    def train(self, mode: bool = True) -> "PartlyTrained":
        """Compute as in evaluation, whatever `mode` is."""
        return super().train(False)

    def features(self, trunk: Any, branch: Branch) -> Tensor:
        """Compute the features (batch, width)."""
        return self._features(self.whole, trunk)


class PartOfModel(SharedAdapter):
    """A choice of the backbone's parameters, and the head."""

    artifact = "model"

    @abstractmethod
    def names(self, model: nn.Module) -> list[str]:
        """Say which parameters of a backbone are trained."""

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse what needs an adapter."""
        yield from super().problems(settings)
        yield (
            settings.loss == "next-token",
            f"method = {self.name!r} with loss = 'next-token', whose pictures are kept as features; allowed:"
            " methods with an adapter",
        )
        yield (
            settings.pretrain.part == "adapter",
            f"pretrain.part = 'adapter' with method = {self.name!r}, which has no adapter; allowed: 'none'",
        )

    def open(self, backbone: Backbone, adapter: Any, seed: int, device: torch.device) -> PartlyTrained:
        """Make what is trained; ValueError if the backbone has none of it.

        What its family leaves alone stays as it is: most of that is not even computed.
        """
        alone = backbone.family.left_alone
        names = [name for name in self.names(backbone.model) if not alone or not re.fullmatch(alone, name)]
        if self.trained and not names:
            kind = type(backbone.model).__name__
            raise ValueError(f"method = {self.name!r}: {kind} has no such weights; allowed: another method")
        return PartlyTrained(backbone, names, device)
