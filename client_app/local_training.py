"""One round of training and one evaluation on one client's examples."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from app.dual_adapter import Branch, DualAdapter, Role
from app.examples import Examples
from app.heads import AnswerHead
from app.metrics import vqa_score
from app.mkd import Distillation, adapter_step, fast_step, make_optimizer, reference_step
from app.settings import Settings

LOSSES = ("ce-student", "kl-student", "ce-teacher", "kl-teacher")
EVALUATION_BATCH = 64


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then linear decay, over the whole run.

    Parameters
    ----------
    step : int
        Batches trained on before, in all rounds.
    total : int
        Batches in the whole run.
    warmup : float
        Share of the run to warm up in, in [0, 1).
    """
    warm = math.ceil(total * warmup)
    return (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)


def shuffled(num_examples: int, batch_size: int, *key: int) -> Iterator[Tensor]:
    """Yield rows of batches in an order that is a function of `key` (seed, partition, round, epoch)."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
    yield from order.split(batch_size)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on CUDA, in float32 elsewhere."""
    # A step updates the head between two forwards: weights cast before must not be used again.
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


@contextmanager
def pulled(adapter: DualAdapter, proximal_mu: float) -> Iterator[None]:
    """Add μ (A_s − Â_s) to the gradient of A_s: FedProx (Li et al., 2020, arXiv 1812.06127, equation 2)."""
    hooks = []
    if proximal_mu:
        pairs = zip(*(adapter.parameters_of[role].values() for role in ("shared", "frozen")), strict=True)
        hooks = [
            a_s.register_hook(lambda grad, a_s=a_s, came=came: grad + proximal_mu * (a_s.detach() - came))
            for a_s, came in pairs
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def train_round(
    adapter: DualAdapter,
    head: AnswerHead,
    examples: Examples,
    settings: Settings,
    server_round: int,
    partition_id: int,
    proximal_mu: float = 0.0,
) -> dict[str, Any]:
    """Train A_s, A_c and the head in place for one round; Â_s is A_s as it came.

    For `proximal_mu` see `pulled`.

    Returns
    -------
    dict
        Mean losses and training scores, norms of the changes of both adapters, examples and seconds.
    """
    started = time.perf_counter()
    device = next(head.parameters()).device
    batches = math.ceil(len(examples) / settings.batch_size) * settings.local_epochs
    total, done = settings.num_rounds * batches, (server_round - 1) * batches
    optimizer = make_optimizer(adapter, head, settings.learning_rate, settings.weight_decay)
    method = Distillation(
        alpha=settings.alpha,
        beta=settings.beta,
        temperature=settings.temperature,
        loss=settings.loss,
        update=settings.update,
    )
    trained: tuple[Role, ...] = ("shared", "local") if settings.method == "feddat" else ("shared",)
    before = {role: adapter.state(role) for role in trained}
    sums: dict[str, Tensor] = {}
    for epoch in range(settings.local_epochs):
        key = (settings.seed, partition_id, server_round, epoch)
        for rows in shuffled(len(examples), settings.batch_size, *key):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(done, total, settings.warmup)
            inputs, scores = examples.batch(rows, device)
            with mixed_precision(device), pulled(adapter, proximal_mu):
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
    adapter: DualAdapter,
    head: AnswerHead,
    optimizer: Optimizer,
    inputs: dict[str, Tensor],
    scores: Tensor,
    method: Distillation,
    settings: Settings,
) -> dict[str, Tensor]:
    if settings.method == "adapter":
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
    adapter: DualAdapter, head: AnswerHead, examples: Examples, branches: tuple[Branch, ...]
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
