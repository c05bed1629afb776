"""What a federated method says of itself: what is trained, what travels, one step, which branches are scored.

A method is one file in this folder with one subclass of `Method`; `methods.METHODS` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..adapters import Adapter, adapt
from ..backbones import Backbone
from ..learner import Branch, Learner, Role
from ..mkd import Distillation
from ..settings import Settings

# A length; or a name and the most that it may be, from 1: axes of one name have one length in a whole reply.
Axis = int | tuple[str, int]
Arrays = Mapping[str, Tensor]


class OwnExamples(Protocol):
    """A client's training examples, for a method that makes something of them before it is scored."""

    def some(self, count: int) -> Any:
        """Return the model inputs of a few, always the same."""

    def train(self, step: Callable[[Optimizer, Any, Tensor], Any], epochs: int) -> None:
        """Call a step with optimizer, inputs and targets of each batch; the rate rises and falls once."""


class Method(ABC):
    """A method by its parts; the defaults are those of one shared adapter and its head.

    Attributes
    ----------
    name : str
        The setting ``method``.
    branches : tuple of str
        Which branches an evaluation scores; the first is what is deployed.
    trained : tuple of str
        Roles whose weights move.
    two_updates : bool
        Whether a step is two updates, of which each also trains the head, if one is trained.
    artifact : str
        What a run exports: an ``adapter`` or a whole ``model``.
    note : str
        What a reader of an exported result must know of it, a sentence; empty where it is a whole adapter.
    combine : callable, optional
        What was sent, the arrays of each reply and its weight → what is sent next, alike in names and shapes.
        None: the strategy averages.
    """

    name: str
    branches: tuple[Branch, ...] = ("student",)
    trained: tuple[Role, ...] = ("shared",)
    two_updates = False
    artifact = "adapter"
    note = ""
    combine: Callable[[Arrays, Sequence[Arrays], Sequence[float]], Arrays] | None = None

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Yield what settings the method cannot work with: whether it is so, and the line to say."""
        return ()

    def open(self, backbone: Backbone, adapter: Adapter, seed: int, device: torch.device) -> Learner:
        """Make what is trained, with its first weights; ValueError if the backbone cannot be adapted."""
        return adapt(backbone, adapter.config(backbone), seed, device)

    def travelling(self, learner: Learner) -> dict[str, Tensor]:
        """Return what is sent, both ways, by its names on the wire."""
        return learner.shared()

    def reply_layout(self, sent: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[Axis, ...]]:
        """Say what a reply holds, from the shapes of what was sent: by name, each axis.

        What is not as declared is refused. Another layout than that of what was sent needs `combine`. Names
        that were not sent are of float32.
        """
        return sent

    def receive(self, learner: Learner, arrays: Mapping[str, Tensor]) -> None:
        """Take what arrives; ValueError if it is not what `travelling` gives."""
        learner.receive(arrays)

    def exported(
        self, arrays: Mapping[str, Tensor], backbone: Backbone, adapter: Adapter, seed: int
    ) -> Mapping[str, Tensor]:
        """Return the weights of an exported adapter, of those that travelled (without a head)."""
        return arrays

    def scored(self, learner: Learner, own: OwnExamples, settings: Settings) -> Iterator[tuple[Branch, ...]]:
        """Yield branches as soon as they may be scored; between two, what is private may be changed.

        An evaluation begins with what the client keeps, and leaves it as it is.
        """
        yield self.branches

    @abstractmethod
    def step(
        self,
        learner: Learner,
        optimizer: Optimizer,
        batch: Any,
        targets: Tensor,
        distillation: Distillation,
        settings: Settings,
    ) -> dict[str, Tensor]:
        """Take one step on a batch; return what was measured, by its name in ``metrics.jsonl``."""
