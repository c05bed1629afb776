"""No federation: one adapter that sees all clients' examples, as if they lay in one place.

Adapter, heads (one for each client's answers), batches and the number of steps are those of one adapter under
FedAvg. But every step is taken on that one adapter, the batches of all clients in one random order under one
optimizer, so that nothing has to be averaged.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from app.backbones import open_backbone
from app.heads import new_head
from app.learner import Learner
from app.methods import METHODS, open_learner
from app.mkd import Distillation, make_optimizer
from app.settings import Settings, read_settings
from client_app.client import data_options
from client_app.local_training import (
    OwnTraining,
    batch_sizes,
    evaluate,
    generator,
    mixed_precision,
    schedule,
    shuffled,
    training,
)
from data_partitions.baseline import text_only_baseline
from data_partitions.benchmarks import load_partition

METHOD = "adapter"


class HeadOfEach(nn.Module):
    """The clients' heads, of which one is in place.

    Attributes
    ----------
    client : int
        Whose.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads, self.client = nn.ModuleList(heads), 0

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, width) to that client's logits (batch, answers)."""
        logits: Tensor = self.heads[self.client](features)
        return logits


def centralised(given: Mapping[str, Any], clients: int) -> list[dict[str, Any]]:
    """Train on all clients' examples; return rows as ``metrics.jsonl`` has them.

    Parameters
    ----------
    given : Mapping
        The run's settings, with answer lists and private heads. A round is as many epochs on all examples as
        each client takes on its own.
    clients : int
        How many.

    Raises
    ------
    ValueError
        A setting changes a client's steps in a way that is not followed here.
    """
    only = {"method": METHOD, "gradient-accumulation": 1, "augment": False, "proximal-mu": 0.0}
    for key, allowed in only.items():
        if given[key] != allowed:
            raise ValueError(f"{key} = {given[key]!r} with centralised = true; allowed: {allowed!r}")
    settings = read_settings(given)
    backbone, learner, options = open_backbone(settings), open_learner(settings), data_options(settings)
    partitions = [load_partition(settings.benchmark, client, clients, options) for client in range(clients)]
    train, test = (
        [
            backbone.examples(getattr(one, split), learner.device, one.answers, one.pictures)
            for one in partitions
        ]
        for split in ("train", "test")
    )
    head = HeadOfEach(
        [
            new_head(backbone.all_width(one.pictures), len(one.answers), settings.seed, settings.head)
            for one in partitions
        ]
    )
    learner.answer_with(head)
    learner.begin_anew()
    rows: list[dict[str, Any]] = []
    epochs = train_epochs(learner, head, train, settings)
    for server_round in range(1, settings.num_rounds + 1):
        started = time.perf_counter()
        for _ in range(settings.local_epochs):
            next(epochs)
        spent = time.perf_counter() - started
        scored = server_round % settings.evaluate_every == 0 or server_round == settings.num_rounds
        for client, partition in enumerate(partitions):
            head.client = client
            own = OwnTraining(
                learner, partial(list.__getitem__, train, client), settings, server_round, client
            )
            rows.append(
                {
                    "round": server_round,
                    "partition": client,
                    "name": partition.name,
                    "train-seconds": spent / clients,
                    "text-only": text_only_baseline(partition),
                    **(evaluate(learner, test[client], settings, own) if scored else {}),
                    "num-examples": len(train[client]),
                }
            )
    return rows


def train_epochs(
    learner: Learner, head: HeadOfEach, train: Sequence[Any], settings: Settings
) -> Iterator[None]:
    """Train for an epoch on all clients' examples each time it is asked, by one optimizer."""
    optimizer = make_optimizer(learner, settings.learning_rate, settings.weight_decay, settings.optimizer)
    distillation, method = Distillation(loss=settings.loss), METHODS[METHOD]
    sizes = [batch_sizes(len(examples), settings.batch_size) for examples in train]
    each = sum(map(len, sizes))
    total = settings.num_rounds * settings.local_epochs * each
    for epoch in count():
        before, within = divmod(epoch, settings.local_epochs)
        when = (before + 1, within)  # as a client's epochs are numbered, so that its batches are the same
        orders = [shuffled(of, settings.seed, client, *when) for client, of in enumerate(sizes)]
        batches = [(client, batch) for client, order in enumerate(orders) for batch in order]
        turns = torch.randperm(each, generator=generator(settings.seed, len(train), *when)).tolist()
        with training(learner):
            for step, turn in enumerate(turns, start=epoch * each):
                factor = schedule(step, total, settings.warmup, settings.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * factor
                head.client, batch = batches[turn]
                inputs, targets = train[head.client].batch(batch, learner.device)
                with mixed_precision(learner.device):
                    method.step(learner, optimizer, inputs, targets, distillation, settings)
        yield
