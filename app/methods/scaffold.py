"""SCAFFOLD on the shared adapter: each client's gradients are corrected for how its own differ from all's.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv 1910.06378, algorithm 1. With c the server's control variate and cᵢ the client's,
a step goes down g − cᵢ + c. Afterwards cᵢ⁺ is the mean of the round's gradients g, which is what the paper's
option II is under plain gradient descent; under AdamW its difference of weights would be none of gradients.
A client sends c + |S|/N · (cᵢ⁺ − cᵢ), with |S|/N the setting ``fraction-train``: the plain mean of what is
sent is the paper's c⁺, as that of the adapters is x⁺. The head is trained without a correction.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..adapters import Adapter, adapt
from ..backbones import Backbone
from ..dual_adapter import DualAdapter
from ..learner import Learner
from ..mkd import Distillation
from ..settings import Settings
from .adapter import SharedAdapter

CONTROL = "control."


class ControlledAdapter(DualAdapter):
    """A shared adapter; in the places of the two others lie c, which is shared as well, and cᵢ."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        adapter, c, own = (self.parameters_of[role] for role in ("shared", "frozen", "local"))
        for control in (*c.values(), *own.values()):
            control.requires_grad_(False).zero_()
        self._adapter = adapter
        self._c, self._own = ({CONTROL + name: v for name, v in one.items()} for one in (c, own))
        self.parameters_of = {"shared": {**adapter, **self._c}, "frozen": {}, "local": self._own}
        self._begun_with: dict[str, tuple[Tensor, Tensor]] = {}
        self._steps = 0
        self.remember_first_weights()

    @property
    def adapter_names(self) -> frozenset[str]:
        """Names of the adapter alone."""
        return frozenset(self._adapter)

    def receive(self, arrays: Mapping[str, Tensor]) -> None:
        """Begin a round; an adapter that was exported comes without c."""
        if not self._c.keys() & arrays.keys():
            arrays = {**arrays, **{name: torch.zeros_like(c) for name, c in self._c.items()}}
        Learner.receive(self, arrays)
        self._steps = 0

    @contextmanager
    def corrected(self, fraction: float) -> Iterator[None]:
        """Correct the gradients of a step; both controls become those after the round's steps so far.

        `fraction` is the share of the clients that a round asks.
        """
        if not self._steps:
            self._begun_with = {name: (c.clone(), self._own[name].clone()) for name, c in self._c.items()}
        self._steps += 1
        gradients: dict[str, Tensor] = {}

        def correct(name: str, gradient: Tensor) -> Tensor:
            gradients[name] = gradient.detach()
            c, own = self._begun_with[name]
            return gradient - own + c

        hooks = [
            weight.register_hook(partial(correct, CONTROL + name)) for name, weight in self._adapter.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name, (c, own) in self._begun_with.items():
            # A step that does not touch a weight has a gradient of 0 there.
            gradient = gradients.get(name, torch.zeros_like(own))
            mean = self._own[name].lerp_(gradient.to(own.dtype), 1 / self._steps)
            self._c[name].copy_(c + fraction * (mean - own))


class Scaffold(SharedAdapter):
    """A shared adapter and its control variates; twice as much travels."""

    name = "scaffold"

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse what would not average control variates as they are, or not correct each step by them."""
        yield from super().problems(settings)
        yield (
            settings.strategy != "fedavg",
            f"strategy = {settings.strategy!r} with method = 'scaffold', whose control variates are averaged;"
            " allowed: 'fedavg'",
        )
        yield (
            settings.clip_change > 0,
            f"clip-change = {settings.clip_change} with method = 'scaffold', whose clients' control variates"
            " must add up to what the server has; allowed: 0",
        )
        yield (
            settings.gradient_accumulation > 1,
            f"gradient-accumulation = {settings.gradient_accumulation} with method = 'scaffold', which"
            " corrects the gradients of each batch; allowed: 1",
        )
        yield (
            settings.dp.mode != "none",
            f"dp.mode = {settings.dp.mode!r} with method = 'scaffold', which sends gradients beside"
            " changes, of another size; allowed: 'none'",
        )

    def open(self, backbone: Backbone, adapter: Adapter, seed: int, device: torch.device) -> DualAdapter:
        """Make the adapter and its control variates."""
        return adapt(backbone, adapter.config(backbone), seed, device, ControlledAdapter)

    def exported(
        self, arrays: Mapping[str, Tensor], backbone: Backbone, adapter: Adapter, seed: int
    ) -> dict[str, Tensor]:
        """Return the adapter alone."""
        return {name: value for name, value in arrays.items() if not name.startswith(CONTROL)}

    def step(
        self,
        learner: Learner,
        optimizer: Optimizer,
        batch: Any,
        targets: Tensor,
        distillation: Distillation,
        settings: Settings,
    ) -> dict[str, Tensor]:
        """Take one corrected step on the task's loss."""
        assert isinstance(learner, ControlledAdapter)
        with learner.corrected(settings.fraction_train):
            return super().step(learner, optimizer, batch, targets, distillation, settings)
