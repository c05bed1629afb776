"""One round of training and one evaluation on one client's examples."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from app.examples import Examples
from app.metrics import vqa_score
from app.mkd import Distillation, adapter_step, fast_step, make_optimizer, reference_step
from app.settings import Settings
from app.trained_model import Branch, Role, TrainedModel

from .augmentation import augmented

LOSSES = ("ce-student", "kl-student", "ce-teacher", "kl-teacher")
EVALUATION_BATCH = 64


def schedule(step: int, total: int, warmup: float, kind: str = "linear") -> float:
    """Return the factor of the learning rate: linear warm-up, then linear decay, over the whole run; or 1.

    Parameters
    ----------
    step : int
        Batches trained on before, in all rounds.
    total : int
        Batches in the whole run.
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


def shuffled(num_examples: int, batch_size: int, *key: int) -> Iterator[Tensor]:
    """Yield rows of batches in an order that is a function of `key`."""
    yield from torch.randperm(num_examples, generator=generator(*key)).split(batch_size)


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
def training(model: TrainedModel) -> Iterator[None]:
    """Compute as in training, and afterwards as in evaluation again, whatever happens."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def train_round(
    adapter: TrainedModel,
    head: nn.Module,
    examples: Examples,
    settings: Settings,
    server_round: int,
    partition_id: int,
    proximal_mu: float = 0.0,
) -> dict[str, Any]:
    """Train A_s, A_c and the head in place for one round; Â_s is A_s as it came. Or all weights and the head.

    `proximal_mu` pulls all that is shared, see `pulled`.

    Returns
    -------
    dict
        Mean losses and training scores, norms of the changes of both adapters, examples and seconds.
    """
    started = time.perf_counter()
    device = next(head.parameters()).device
    batches = math.ceil(len(examples) / settings.batch_size) * settings.local_epochs
    total, done = settings.num_rounds * batches, (server_round - 1) * batches
    optimizer = make_optimizer(
        adapter, head, settings.learning_rate, settings.weight_decay, settings.optimizer
    )
    method = Distillation(
        alpha=settings.alpha,
        beta=settings.beta,
        temperature=settings.temperature,
        loss=settings.loss,
        update=settings.update,
    )
    trained: tuple[Role, ...] = ("shared", "local") if settings.method == "feddat" else ("shared",)
    before = {role: adapter.state(role) for role in trained}
    shared = [*adapter.parameters_of["shared"].values()]
    if settings.head == "shared":
        shared += head.parameters()
    sums: dict[str, Tensor] = {}
    with training(adapter), pulled(shared, proximal_mu):
        for epoch in range(settings.local_epochs):
            key = (settings.seed, partition_id, server_round, epoch)
            chance = generator(*key, 1)
            for rows in shuffled(len(examples), settings.batch_size, *key):
                for group in optimizer.param_groups:
                    factor = schedule(done, total, settings.warmup, settings.schedule)
                    group["lr"] = settings.learning_rate * factor
                inputs, scores = examples.batch(rows, device)
                if settings.augment:
                    inputs["pixel_values"] = augmented(inputs["pixel_values"], chance)
                with mixed_precision(device):
                    measured = _step(adapter, head, optimizer, inputs, scores, method, settings)
                for name, value in measured.items():
                    sums[name] = sums.get(name, 0) + value * len(rows)
                done += 1
    seen = len(examples) * settings.local_epochs
    return {
        "num-examples": len(examples),
        **{name: float(value) / seen for name, value in sums.items()},
        **{f"delta-{role}": _distance(before[role], adapter.state(role)) for role in trained},
        "train-seconds": time.perf_counter() - started,
    }


def _step(
    adapter: Any,
    head: nn.Module,
    optimizer: Optimizer,
    inputs: dict[str, Tensor],
    scores: Tensor,
    method: Distillation,
    settings: Settings,
) -> dict[str, Tensor]:
    if settings.method != "feddat":
        return {"ce-student": adapter_step(adapter, head, optimizer, inputs, scores, method)}
    step = fast_step if settings.step == "fast" else reference_step
    outcome = step(adapter, head, optimizer, inputs, scores, method)
    return {
        **dict(zip(LOSSES, outcome.losses, strict=True)),
        "train-student": vqa_score(outcome.student, scores).mean(),
        "train-teacher": vqa_score(outcome.dat, scores).mean(),
    }


def _distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return float(torch.stack([(after[name] - before[name]).norm() for name in before]).norm())


@torch.no_grad()
def evaluate(
    adapter: TrainedModel, head: nn.Module, examples: Examples, branches: tuple[Branch, ...]
) -> dict[str, Any]:
    """Return the mean VQA score of each branch, all with the client's own head."""
    started = time.perf_counter()
    device = next(head.parameters()).device
    sums = dict.fromkeys(branches, 0.0)
    for rows in torch.arange(len(examples)).split(EVALUATION_BATCH):
        inputs, scores = examples.batch(rows, device)
        with mixed_precision(device):
            trunk = adapter.trunk(inputs)
            for branch in branches:
                logits = head(adapter.features(trunk, branch))
                sums[branch] += float(vqa_score(logits, scores).sum())
    return {
        "num-examples": len(examples),
        **{branch: total / len(examples) for branch, total in sums.items()},
        "evaluate-seconds": time.perf_counter() - started,
    }
