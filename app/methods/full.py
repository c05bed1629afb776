"""All weights of a backbone are trained and sent, as in the published long-tailed protocol."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..backbones import Backbone
from ..learner import Branch, Learner
from ..settings import Settings
from .adapter import SharedAdapter


class FullModel(Learner):
    """A copy of a backbone's weights, to be trained; its one branch is the student.

    The running statistics of batch normalisation are among what is shared: averaged, and not trained. The
    counters of batches, which nothing reads, are not.

    Parameters
    ----------
    backbone : Backbone
        What it starts as.
    device : torch.device
        Where it computes.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        super().__init__()
        self.whole: Any = copy.deepcopy(backbone.model).to(device).requires_grad_(True)
        self._features = backbone.features
        statistics = {name: b for name, b in self.whole.named_buffers() if b.is_floating_point()}
        self.parameters_of = {"shared": {**dict(self.whole.named_parameters()), **statistics}, "local": {}}
        self.remember_first_weights()
        self.eval()

    @property
    def model(self) -> Any:
        """The backbone's copy."""
        return self.whole

    def features(self, trunk: Any, branch: Branch) -> Tensor:
        """Compute the features (batch, width)."""
        return self._features(self.whole, trunk)


class Full(SharedAdapter):
    """No adapter: the whole backbone and its head."""

    name = "full"
    artifact = "model"
    note = "All weights of the backbone were trained."

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse what does not go with averaging all weights."""
        yield (
            settings.loss == "next-token",
            "method = 'full' with loss = 'next-token', whose pictures are kept as features; allowed: methods"
            " with an adapter",
        )
        yield from super().problems(settings)
        yield (
            settings.head != "shared",
            f"head = {settings.head!r} with method = 'full', which sends all weights; allowed: 'shared'",
        )
        yield (
            settings.strategy in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"),
            f"strategy = {settings.strategy!r} with method = 'full' would step the statistics of batch "
            "normalisation, and a variance below 0; allowed: strategies without a server optimizer",
        )
        yield (
            settings.gradient_accumulation > 1,
            f"gradient-accumulation = {settings.gradient_accumulation} with method = 'full', whose batch"
            " normalisation sees one batch at a time; allowed: 1",
        )
        yield (
            settings.wire_precision != "float32",
            f"wire-precision = {settings.wire_precision!r} with method = 'full' would round the statistics "
            "of batch normalisation, and a variance below 0; allowed: 'float32'",
        )
        yield (
            settings.secure.aggregation,
            "secure.aggregation = true with method = 'full' would round the statistics of batch"
            " normalisation, and a variance below 0; allowed: false",
        )
        yield (
            settings.pretrain.part == "adapter",
            "pretrain.part = 'adapter' with method = 'full', which has no adapter; allowed: 'none'",
        )

    def open(self, backbone: Backbone, adapter: Any, seed: int, device: torch.device) -> FullModel:
        """Copy the backbone."""
        return FullModel(backbone, device)
