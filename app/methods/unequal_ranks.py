"""LoRA of a rank of each client's own: its node says a ``lora-rank``, up to the run's."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..learner import Learner
from ..settings import Settings
from .half_lora import A, B
from .method import Arrays, Axis, Method

Pair = tuple[Tensor, Tensor]


class UnequalRanks(Method):
    """What a method of LoRA needs to have adapters of several ranks averaged: how, is `mean`."""

    @abstractmethod
    def mean(self, pairs: Sequence[Pair], shares: Sequence[float], sent: Pair) -> Pair:
        """Make one adapter of those of a place.

        Parameters
        ----------
        pairs : sequence of tuple
            B of shape (out, r) and A of shape (r, in), each pair of its own r.
        shares : sequence of float
            What each pair counts; their sum is 1.
        sent : tuple
            B and A as they were sent, of the rank that the result must have.
        """

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse adapters without matrices A and B, and servers that go on from what matrices were."""
        yield from super().problems(settings)
        yield (
            settings.adapter != "lora",
            f"adapter = {settings.adapter!r} with method = {self.name!r}; allowed: 'lora'",
        )
        yield (
            settings.strategy not in ("fedavg", "fedprox"),
            f"strategy = {settings.strategy!r} with method = {self.name!r}, whose matrices need not be near"
            " those before; allowed: 'fedavg' and 'fedprox'",
        )

    def reply_layout(self, sent: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[Axis, ...]]:
        """Let a client's rank be any up to the run's: A has so many rows, and B so many columns."""

        def axes(name: str, shape: tuple[int, ...]) -> tuple[Axis, ...]:
            if A in name:
                return ("rank", shape[0]), shape[1]
            return (shape[0], ("rank", shape[1])) if B in name else shape

        return {name: axes(name, shape) for name, shape in sent.items()}

    def receive(self, learner: Learner, arrays: Mapping[str, Tensor]) -> None:
        """Take the first of what arrives, as many as the client's rank."""
        own = learner.parameters_of["shared"]

        def cut(name: str, value: Tensor) -> Tensor:
            return value[tuple(map(slice, own[name].shape))] if name in own else value

        learner.receive({name: cut(name, value) for name, value in arrays.items()})

    def combine(self, sent: Arrays, replies: Sequence[Arrays], weights: Sequence[float]) -> Arrays:  # type: ignore[override]
        """Make one adapter of all; average all else, a head that travels, as it is."""
        shares = [weight / sum(weights) for weight in weights]
        combined: dict[str, Tensor] = {}
        for name, value in sent.items():
            if A in name:
                b = name.replace(A, B)
                pairs = [(reply[b], reply[name]) for reply in replies]
                combined[b], combined[name] = self.mean(pairs, shares, (sent[b], value))
            elif B not in name:
                each = zip(shares, replies, strict=True)
                combined[name] = torch.stack([share * reply[name] for share, reply in each]).sum(0)
        return combined
