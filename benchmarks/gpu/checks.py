"""The step on a device held to the literal one on the CPU, in float32 and in bfloat16."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from app.mkd import Outcome, mkd_step, reference_step

from .log import Log
from .subjects import Make, Subject

STEPS, BATCH, RATE = 2, 2, 0.05
# Of the largest logit and loss, and of the length of what the weights changed by. In float32 sums are taken
# in another order, some 1e-6 a sum. bfloat16 keeps 8 bits, over a dozen blocks and back: on the CPU, by
# autocast, ViLT-B/32 differed by 0.03, 0.006 and 0.16, SmolVLM-256M by less.
FLOAT32 = {"logits": 1e-4, "losses": 1e-4, "changes": 1e-3}
BFLOAT16 = {"logits": 0.1, "losses": 0.05, "changes": 0.3}
# How many checks one model has: these, and what losses are computed in.
EACH = len(FLOAT32) + len(BFLOAT16) + 1


@contextmanager
def exact() -> Iterator[None]:
    """Compute products of float32 in float32, not in TF32."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def bfloat16(device: torch.device) -> torch.autocast:
    """Compute as a client does on CUDA, on any device."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def taken(
    subject: Subject, take: Callable[..., Outcome], device: torch.device, precision: Any
) -> dict[str, Tensor]:
    """Take some steps; return all logits, losses and changes of weights, on the CPU.

    SGD, for what AdamW makes of a gradient that is all but zero is its sign.
    """
    learner, optimizer = subject.learner(device, "sgd", RATE)
    batch = subject.draw(BATCH, device)
    inputs = batch.whole if take is reference_step else batch.kept
    before = [weight.detach().clone() for weight in learner.trained_parameters()]
    logits, losses = [], []
    with precision:
        for _ in range(STEPS):
            outcome = take(learner, optimizer, inputs, batch.targets, subject.method())
            logits += [getattr(outcome, name)[:].float().cpu() for name in ("student", "teacher", "dat")]
            losses.append(outcome.losses.cpu())
    moved = zip(learner.trained_parameters(), before, strict=True)
    changes = [(weight.detach() - old).flatten().cpu() for weight, old in moved]
    return {"logits": torch.cat(logits), "losses": torch.cat(losses), "changes": torch.cat(changes)}


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Compare logits and losses at their worst place, changes as a whole."""
    gaps = {name: found[name] - value for name, value in expected.items()}
    largest = {
        name: float(gaps[name].abs().max() / expected[name].abs().max()) for name in ("logits", "losses")
    }
    return {**largest, "changes": float(gaps["changes"].norm() / expected["changes"].norm())}


def parity(log: Log, tiny: bool, make: Make) -> None:
    """Hold our step on the log's device to the literal one on the CPU."""
    cpu, device = torch.device("cpu"), log.device
    subject = make(cpu, tiny)
    expected = taken(subject, reference_step, cpu, torch.autocast("cpu", enabled=False))
    with exact():
        found = taken(subject, mkd_step, device, torch.autocast(device.type, enabled=False))
    for name, value in differences(found, expected).items():
        log.check(f"{subject.name}, float32, {name}", value, FLOAT32[name])
    found = taken(subject, mkd_step, device, bfloat16(device))
    for name, value in differences(found, expected).items():
        log.check(f"{subject.name}, bfloat16, {name}", value, BFLOAT16[name])
    log.check(
        f"{subject.name}, bfloat16, losses not in float32", float(found["losses"].dtype != torch.float32), 0.0
    )
