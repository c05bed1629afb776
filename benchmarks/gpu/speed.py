"""How fast a step is, how much of the device it uses, and what it needs at once."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from app.dual_adapter import DualAdapter
from app.mkd import adapter_step, mkd_step, reference_step
from client_app.local_training import mixed_precision

from .. import step as published_step
from ..figures import machine_of
from ..step import BF16_PEAK, count_flops, peak_memory
from ..token_step import whole_forwards
from .log import Log
from .subjects import Make, Subject

ONE, LITERAL, OURS = "one adapter", "literal", "ours"
# Steps that are timed at least.
LEAST = 3


def wait(device: torch.device) -> None:
    """Wait for all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pace(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return seconds a call, of so many in a row as take `seconds`; the host waits for the last alone."""

    def some(number: int) -> float:
        wait(device)
        began = time.perf_counter()
        with mixed_precision(device):
            for _ in range(number):
                call()
        wait(device)
        return (time.perf_counter() - began) / number

    first = some(LEAST)
    return first if LEAST * first >= seconds else some(int(seconds / first))


def measure(
    log: Log, subject: Subject, batch: int, call: Callable[[], Any], flops: float = 0.0
) -> dict[str, float]:
    """Return the figures of a step; `flops` are those of one example."""
    with mixed_precision(log.device):
        peak, _ = peak_memory(call, log.device)
    each = pace(call, log.device, log.seconds)
    figures = {"samples/s": batch / each, "ms": 1000 * each, "peak MB": peak / 1e6}
    most = next((value for name, value in BF16_PEAK.items() if name in machine_of(log.device)), None)
    if flops and most:
        figures["% of bf16 peak"] = 100 * flops * batch / each / most
    return figures


def variants(
    subject: Subject, trained: tuple[DualAdapter, Optimizer], batch: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Return what is compared; all move the same adapters, which does not matter to what they cost."""
    learner, optimizer = trained
    whole, kept, targets = subject.draw(batch, device)
    method = subject.method()
    one: Any = whole_forwards(learner) if subject.writes else learner
    return {
        OURS: lambda: mkd_step(learner, optimizer, kept, targets, method),
        LITERAL: lambda: reference_step(learner, optimizer, whole, targets, method),
        ONE: lambda: adapter_step(one, optimizer, whole, targets, method),
    }


def sweep(log: Log, tiny: bool, make: Make) -> None:
    """Take our step, the literal one and one adapter's, in batches from small to large."""
    subject = make(log.device, tiny)
    trained = subject.learner(log.device)
    print(f"  {subject.name}: {subject.size() / 1e6:.3g} MB of weights", flush=True)
    with mixed_precision(log.device):
        flops = {name: count_flops(call) for name, call in variants(subject, trained, 1, log.device).items()}
    log.free()
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in (OURS, LITERAL, ONE)}
    for name, rows in found.items():  # ours first, of all sizes
        for batch in subject.batches:

            def one(name: str = name, batch: int = batch) -> dict[str, float]:
                return measure(
                    log, subject, batch, variants(subject, trained, batch, log.device)[name], flops[name]
                )

            what = f"{subject.name}, batch {batch}, {name}"
            if figures := log.attempt(what, 5 * log.seconds, one):
                rows[batch] = figures
                log.result(what, **figures)
            log.free()
    _goals(log, subject, found)


def _goals(log: Log, subject: Subject, found: dict[str, dict[int, dict[str, float]]]) -> None:
    for other in (LITERAL, ONE):
        both = found[OURS].keys() & found[other].keys()
        for batch in sorted(both):
            ratio = found[OURS][batch]["samples/s"] / found[other][batch]["samples/s"]
            log.result(f"{subject.name}, batch {batch}, ours over {other}", ratio=ratio)
    best = max((row["samples/s"] for row in found[OURS].values()), default=0.0)
    if subject.writes:
        if share := max((row.get("% of bf16 peak", 0.0) for row in found[OURS].values()), default=0.0):
            log.goal(f"{subject.name}, % of the bf16 peak", share, 50)
    else:
        log.goal(f"{subject.name}, samples/s", best, 3000)
        log.goal(f"{subject.name}, samples/s, further", best, 5000)


def end_to_end(log: Log, tiny: bool, make: Make) -> None:
    """Take our step and the published one, which makes its inputs anew in each of its three forwards."""
    subject = make(log.device, tiny)
    batch = 2 if tiny else 32
    steps = published_step.make_variants(subject.backbone, batch, log.device)
    rates = {}
    for name in (published_step.OURS, published_step.LITERAL, published_step.PUBLISHED):
        rates[name] = batch / pace(steps[name], log.device, log.seconds)
        log.result(f"{subject.name}, batch {batch}, {name}", **{"samples/s": rates[name]})
    ours = rates[published_step.OURS]
    log.goal(f"{subject.name}, ours over the published step", ours / rates[published_step.PUBLISHED], 4)
    log.goal(f"{subject.name}, ours over the literal step", ours / rates[published_step.LITERAL], 4)
