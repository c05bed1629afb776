"""One round of training and one evaluation on one client's examples."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from app.accumulation import Accumulation
from app.conversations import Conversations
from app.examples import Examples
from app.learner import Branch, Learner, Role
from app.measurements import EPOCHS, of_epoch
from app.methods import METHODS
from app.mkd import Distillation, make_optimizer
from app.settings import Settings
from app.tasks import TASKS

from .augmentation import augmented

EVALUATION_BATCH = 64
Step = Callable[[Optimizer, Any, Tensor], Any]


def schedule(step: int, total: int, warmup: float, kind: str = "linear") -> float:
    """Return the factor of the learning rate: linear warm-up, then linear decay, over the whole run; or 1.

    Parameters
    ----------
    step : int
        Steps taken before, in all rounds.
    total : int
        Steps in the whole run.
    warmup : float
        Share of the run to warm up in, in [0, 1).
    kind : str
        "linear" or "constant".
    """
    if kind == "constant":
        return 1.0
    warm = math.ceil(total * warmup)
    return (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)


def generator(*key: int) -> torch.Generator:
    """Make a generator whose numbers are a function of `key` (seed, partition, round, epoch)."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def batch_sizes(num_examples: int, batch_size: int, least: int = 1) -> list[int]:
    """Return how many examples each batch has.

    They are `batch_size`, or `least` if that is more, and in the last the rest; where that would be fewer
    than `least`, it is joined to the batch before it.
    """
    size = max(batch_size, least)
    whole, rest = divmod(num_examples, size)
    if whole and 0 < rest < least:
        return [size] * (whole - 1) + [size + rest]
    return [size] * whole + [rest] * (rest > 0)


def num_steps(sizes: list[int], settings: Settings) -> int:
    """Return how many steps the optimizer takes in an epoch of batches of these sizes."""
    return math.ceil(len(sizes) / settings.gradient_accumulation)


def shuffled(sizes: list[int], *key: int) -> tuple[Tensor, ...]:
    """Return the rows of batches of these sizes, in an order that is a function of `key`."""
    return torch.randperm(sum(sizes), generator=generator(*key)).split(sizes)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on CUDA, in float32 elsewhere."""
    # A step updates the head between two forwards: weights cast before must not be used again.
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


@contextmanager
def pulled(weights: Iterable[Tensor], proximal_mu: float) -> Iterator[None]:
    """Add μ (w − w as it came) to each gradient: FedProx (Li et al., 2020, arXiv 1812.06127, equation 2)."""
    hooks = []
    if proximal_mu:
        pairs = [(weight, weight.detach().clone()) for weight in weights if weight.requires_grad]
        hooks = [
            weight.register_hook(lambda grad, w=weight, came=came: grad + proximal_mu * (w.detach() - came))
            for weight, came in pairs
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def training(model: Learner) -> Iterator[None]:
    """Compute as in training, and afterwards as in evaluation again, whatever happens."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def train_round(
    learner: Learner,
    examples: Examples | Conversations,
    settings: Settings,
    server_round: int,
    partition_id: int,
    least: int = 1,
) -> dict[str, Any]:
    """Train what the run's method trains, in place, for one round; what was received is where it begins.

    The setting `proximal-mu` pulls all that is shared, see `pulled`. No step is on fewer than `least`
    examples, as long as there are so many.

    Returns
    -------
    dict
        Mean losses and training scores; of several local epochs also those of each of the first
        `EPOCHS`. Norms of the changes of both adapters, examples and seconds.
    """
    started = time.perf_counter()
    method = METHODS[settings.method]
    sizes = batch_sizes(len(examples), settings.batch_size, least)
    epochs = settings.local_epochs
    taken = num_steps(sizes, settings) * epochs
    total, done = settings.num_rounds * taken, (server_round - 1) * taken
    distillation = Distillation(
        alpha=settings.alpha,
        beta=settings.beta,
        temperature=settings.temperature,
        loss=settings.loss,
        update=settings.update,
    )
    before = {role: _moving(learner, role) for role in method.trained}
    shared = [*learner.parameters_of["shared"].values()]
    if learner.head is not None and learner.head_travels:
        shared += learner.head.parameters()
    sums: dict[str, Tensor] = {}
    by_epoch: list[dict[str, Tensor]] = [{} for _ in range(min(epochs, EPOCHS) if epochs > 1 else 0)]
    key = (settings.seed, partition_id, server_round)

    def step(optimizer: Optimizer, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        return method.step(learner, optimizer, inputs, targets, distillation, settings)

    with training(learner), pulled(shared, settings.proximal_mu):
        batches = steps(learner, examples, settings, key, sizes, epochs, done, total)
        for number, (count, take) in enumerate(batches):
            measured = take(step)
            epoch = number // len(sizes)
            for added in (sums, *by_epoch[epoch : epoch + 1]):
                for name, value in measured.items():
                    added[name] = added.get(name, 0) + value * count
    return {
        "num-examples": len(examples),
        **{name: float(value) / (len(examples) * epochs) for name, value in sums.items()},
        **{
            of_epoch(name, epoch): float(value) / len(examples)
            for epoch, added in enumerate(by_epoch, start=1)
            for name, value in added.items()
        },
        **{f"delta-{role}": _distance(before[role], _moving(learner, role)) for role in method.trained},
        "train-seconds": time.perf_counter() - started,
    }


def steps(
    learner: Learner,
    examples: Examples | Conversations,
    settings: Settings,
    key: tuple[int, int, int],
    sizes: list[int],
    epochs: int,
    done: int,
    total: int,
) -> Iterator[tuple[int, Callable[[Step], Any]]]:
    """Yield for each batch how many examples it has, and what calls a step with optimizer, inputs, targets.

    Parameters
    ----------
    key : tuple of int
        With the epoch it decides the order: seed, partition, round.
    sizes : list of int
        Of the batches of an epoch.
    done, total : int
        The optimizer's steps before, and in all: where the schedule is.
    """
    optimizer = make_optimizer(learner, settings.learning_rate, settings.weight_decay, settings.optimizer)
    task, together = TASKS[settings.loss], settings.gradient_accumulation
    for epoch in range(epochs):
        chance = generator(*key, epoch, 1)
        order = shuffled(sizes, *key, epoch)
        for first in range(0, len(order), together):
            factor = schedule(done, total, settings.warmup, settings.schedule)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            gathering = Accumulation(optimizer) if together > 1 else None
            for rows in order[first : first + together]:
                inputs, targets = examples.batch(rows, learner.device)
                if settings.augment and "pixel_values" in inputs:
                    inputs["pixel_values"] = augmented(inputs["pixel_values"], chance)
                if gathering:
                    gathering.weigh(task.count(targets))
                moved: Any = gathering or optimizer

                def take(
                    step: Step, moved: Any = moved, inputs: Any = inputs, targets: Tensor = targets
                ) -> Any:
                    with mixed_precision(learner.device):
                        return step(moved, inputs, targets)

                yield len(rows), take
            if gathering:
                gathering.finish()
            done += 1


@dataclass(frozen=True)
class OwnTraining:
    """A client's training examples at an evaluation, see `app.methods.method.OwnExamples`.

    Attributes
    ----------
    load : callable
        Gives the examples; most methods do not ask.
    """

    learner: Learner
    load: Callable[[], Examples | Conversations]
    settings: Settings
    server_round: int
    partition_id: int
    least: int = 1

    @property
    def _key(self) -> tuple[int, int, int]:
        # Past the last round: an order that no training has, but for what is scored before the first.
        return self.settings.seed, self.partition_id, self.settings.num_rounds + self.server_round

    def some(self, count: int) -> Any:
        """Return the model inputs of a few, the same in each round, but of `least` at least."""
        examples = self.load()
        chosen = torch.randperm(len(examples), generator=generator(self.settings.seed, self.partition_id))
        return examples.batch(chosen[: max(count, self.least)], self.learner.device)[0]

    def train(self, step: Step, epochs: int) -> None:
        """Call a step with optimizer, inputs and targets of each batch; the rate rises and falls once."""
        examples = self.load()
        sizes = batch_sizes(len(examples), self.settings.batch_size, self.least)
        total = num_steps(sizes, self.settings) * epochs
        with training(self.learner):
            for _, take in steps(self.learner, examples, self.settings, self._key, sizes, epochs, 0, total):
                take(step)


def _moving(learner: Learner, role: Role) -> dict[str, Tensor]:
    """Return a copy of a role's weights that training moves: not of statistics or control variates."""
    weights = learner.parameters_of[role].items()
    return {name: weight.detach().clone() for name, weight in weights if weight.requires_grad}


def _distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return float(get_total_norm([after[name] - before[name] for name in before]))


def evaluate(learner: Learner, examples: Examples, settings: Settings, own: OwnTraining) -> dict[str, Any]:
    """Return the mean score of each branch of the run's method, all with the client's own head."""
    started = time.perf_counter()
    task, method = TASKS[settings.loss], METHODS[settings.method]
    sums: dict[Branch, float] = dict.fromkeys(method.branches, 0.0)
    for branches in method.scored(learner, own, settings):
        for rows in torch.arange(len(examples)).split(EVALUATION_BATCH):
            inputs, scores = examples.batch(rows, learner.device)
            with torch.no_grad(), mixed_precision(learner.device):
                trunk = learner.trunk(inputs)
                for branch in branches:
                    logits = learner.classify(learner.features(trunk, branch))
                    sums[branch] += float(task.score(*task.pair(logits, scores)).sum())
    return {
        "num-examples": len(examples),
        **{branch: total / len(examples) for branch, total in sums.items()},
        "evaluate-seconds": time.perf_counter() - started,
    }
