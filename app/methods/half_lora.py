"""LoRA of which one matrix travels: W + B·A, with A of shape (rank, in) and B of shape (out, rank)."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, adapt
from ..backbones import Backbone
from ..dual_adapter import DualAdapter
from ..learner import Learner
from ..settings import Settings
from .adapter import SharedAdapter

A, B = ".lora_A.", ".lora_B."


class HalfLora(SharedAdapter):
    """The student's LoRA in two halves: which is shared, and whether the other is the client's own or fixed.

    What is not shared and not the client's own stays as the seed made it, the same for all.
    """

    @property
    @abstractmethod
    def halves(self) -> Mapping[Any, str]:
        """Role → the matrix that has it, `A` or `B`: ``shared``, and ``local`` if the other is trained."""

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse adapters without matrices A and B."""
        yield (
            settings.adapter != "lora",
            f"adapter = {settings.adapter!r} with method = {self.name!r}; allowed: 'lora'",
        )
        yield (
            settings.pretrain.part == "adapter",
            f"pretrain.part = 'adapter' with method = {self.name!r}, whose adapter is in halves; allowed:"
            " 'none'",
        )
        yield from super().problems(settings)

    def open(self, backbone: Backbone, adapter: Adapter, seed: int, device: torch.device) -> DualAdapter:
        """Make the adapters, and give the halves of the shared one their roles."""
        learner = adapt(backbone, adapter.config(backbone), seed, device)
        whole, copy = learner.parameters_of["shared"], learner.parameters_of["frozen"]

        def half(weights: Mapping[str, Any], role: str) -> dict[str, Any]:
            kind = self.halves.get(role)
            return {name: weight for name, weight in weights.items() if kind and kind in name}

        learner.parameters_of = {
            "shared": half(whole, "shared"),
            "frozen": half(copy, "shared"),
            "local": half(whole, "local"),
        }
        moving = {id(weight) for role in self.trained for weight in learner.parameters_of[role].values()}
        for weight in whole.values():
            weight.requires_grad_(id(weight) in moving)
        learner.remember_first_weights()
        return learner

    def exported(
        self, arrays: Mapping[str, Tensor], backbone: Backbone, adapter: Adapter, seed: int
    ) -> dict[str, Tensor]:
        """Return what a newcomer begins with: the shared half, and the other's first weights."""
        first: Learner = adapt(backbone, adapter.config(backbone), seed)
        return {**first.state("shared"), **arrays}
