"""The server's own copy of what the clients train, with a head to answer by."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from app.conversations import Conversations
from app.examples import Examples
from app.learner import Learner

# What an alignment trains.
Part = Literal["all", "head"]

_BATCH = 128
# A head of the server's own: enough for its loss to settle on some hundred examples.
_HEAD_EPOCHS = 20
_HEAD_RATE = 2e-3


class GlobalModel:
    """The student branch with the aggregated arrays in place, and a head.

    Where the head travels with the shared adapter (`classifier.*`), it is the clients' own, aggregated, and
    is trained as what it is. Where heads are private, as in FedDAT, the server has one of its own, which it
    fits to each new aggregate before it is used: its features have moved. Candidate scoring by text
    embeddings is no way there: nothing ties an encoder's pooled feature to the space of its word embeddings.
    Where the backbone answers by the answers' texts, or writes, it does so here too, and nothing is fitted.

    Parameters
    ----------
    learner : Learner
        What clients train, on the server's device, with a head: the one that travels, or the server's.
    """

    def __init__(self, learner: Learner) -> None:
        if learner.head is None:
            raise ValueError("the learner has no head")
        self.learner, self.head, self.head_travels = learner, learner.head, learner.head_travels
        self._first_head = copy.deepcopy(self.head.state_dict())

    def load(self, arrays: Mapping[str, Tensor]) -> None:
        """Put aggregated arrays in place."""
        # In a process that plays clients too, theirs may be in place.
        self.learner.answer_with(self.head, travels=self.head_travels)
        self.learner.receive(arrays)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the arrays as they are now, on the CPU."""
        return {name: value.cpu() for name, value in self.learner.shared().items()}

    def trained(self, part: Part) -> list[nn.Parameter]:
        """Return the parameters that alignment moves: the head's, and those of the shared arrays.

        Running statistics of batch normalisation are shared and not trained: they stay the aggregate's.
        """
        shared = self.learner.parameters_of["shared"].values() if part == "all" else ()
        return [*(array for array in shared if isinstance(array, nn.Parameter)), *self.head.parameters()]

    def answering(self, examples: Examples | Conversations, part: Part) -> Callable[[Tensor], Any]:
        """Return what computes logits of rows, with gradients to what `part` trains.

        They have a line for each row and its answers, or each token of a row's text and its words.
        """
        if part == "all":
            return lambda rows: self.head(self._features(examples, rows))
        features = self.all_features(examples)
        return lambda rows: self.head(features[rows])

    @torch.no_grad()
    def all_features(self, examples: Examples | Conversations) -> Tensor:
        """Compute features (examples, width)."""
        batches = torch.arange(len(examples)).split(_BATCH)
        return torch.cat([self._features(examples, rows) for rows in batches])

    @torch.no_grad()
    def all_logits(self, examples: Examples) -> Tensor:
        """Compute logits (examples, answers), on the CPU."""
        return self.head(self.all_features(examples)).cpu()

    def fit_own_head(self, examples: Examples, wanted: Tensor, seed: int) -> None:
        """Fit a head of the server's own to the aggregate, from its first weights; leave any other.

        Parameters
        ----------
        examples : Examples
            Public examples.
        wanted : Tensor
            Distribution to learn, shape (examples, answers); rows of zeros count in nothing.
        seed : int
            Decides the order.
        """
        if self.head_travels or not [*self.head.parameters()]:
            return
        self.head.load_state_dict(self._first_head)
        features, wanted = self.all_features(examples), wanted.to(self.learner.device)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=_HEAD_RATE)
        for _ in range(_HEAD_EPOCHS):
            for rows in torch.randperm(len(examples), generator=generator).split(_BATCH):
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(self.head(features[rows]), wanted[rows]).backward()
                optimizer.step()

    @torch.no_grad()
    def keep_within(self, center: Mapping[str, Tensor], radius: float) -> None:
        """Pull the arrays back to a ball of `radius` times the center's norm around it."""
        now = self.state()
        moved = torch.stack([(now[name] - center[name]).norm() for name in center]).norm()
        limit = radius * torch.stack([value.norm() for value in center.values()]).norm()
        if moved > limit:
            share = limit / moved
            self.load({name: center[name] + share * (now[name] - center[name]) for name in center})

    def _features(self, examples: Examples | Conversations, rows: Tensor) -> Tensor:
        inputs, _ = examples.batch(rows, self.learner.device)
        return self.learner.features(self.learner.trunk(inputs), "student")
