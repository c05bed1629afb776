"""Other ways of taking our step: compiled, as a CUDA graph, both branches in one batch, with less memory."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from app.checkpointing import recompute_blocks
from app.families.generative import Entered
from app.mkd import Outcome, descend, losses, mkd_step
from app.piecewise import PiecewiseLogits
from app.quantisation import QUANTISED, loading
from client_app.local_training import mixed_precision

from .log import Log
from .speed import measure
from .subjects import Make, Subject

Step = Callable[[], Outcome]
Way = Callable[[Subject, int, torch.device], Step]
Ways = Mapping[str, Way]


def as_it_is(subject: Subject, batch: int, device: torch.device, **settings: Any) -> Step:
    """Take the step as clients do."""
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)
    return lambda: mkd_step(learner, optimizer, kept, targets, subject.method(**settings))


def joint(subject: Subject, batch: int, device: torch.device) -> Step:
    """Take one update of both losses, by two forwards."""
    return as_it_is(subject, batch, device, update="joint")


def in_one_batch(subject: Subject, batch: int, device: torch.device) -> Step:
    """Take the joint update by one forward, of which half the rows are the student's, half the teacher's."""
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)
    method = subject.method(update="joint")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    student, teacher = (
        torch.tensor([[[1.0 - one]], [[one]]], dtype=dtype, device=device).repeat_interleave(batch, 0)
        for one in (0.0, 1.0)
    )
    # A row's share of each adapter: none of one that is not in its branch.
    shares = {"shared": student, "frozen": 0.5 * teacher, "local": 0.5 * teacher}
    learner.branches["mixed"] = shares  # type: ignore[assignment]

    def step() -> Outcome:
        trunk = _twice(learner.trunk(kept), batch)
        z_s, z_dat = _halves(learner.classify(learner.features(trunk, "mixed")))
        ce_s, kl_s = losses(z_s, z_dat, targets, method)
        ce_dat, kl_dat = losses(z_dat, z_s, targets, method)
        descend(optimizer, 0.5 * (ce_s + kl_s) + 0.5 * (ce_dat + kl_dat))
        measured = torch.stack([loss.detach() for loss in (ce_s, kl_s, ce_dat, kl_dat)])
        return Outcome(z_s.detach(), z_dat.detach(), z_dat.detach(), measured)

    return step


def _twice(trunk: Any, batch: int) -> Any:
    """Return what all branches have in common, for twice as many rows."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and len(value) == batch else value

    doubled = tree_map(twice, trunk)
    if isinstance(trunk, Entered) and trunk.told is not None:
        told = torch.cat([trunk.told, trunk.told + trunk.mask[:, 1:].numel()])
        return doubled._replace(told=told)
    return doubled


def _halves(logits: Any) -> Any:
    if isinstance(logits, PiecewiseLogits):
        halves = logits.hidden.chunk(2)
        return [PiecewiseLogits(half, logits.head, logits.shape[1]) for half in halves]
    return logits.chunk(2)


def compiled(subject: Subject, batch: int, device: torch.device) -> Step:
    """Compile each block; those of one shape share what is compiled, once for each branch."""
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    for block in _blocks(learner.model):
        block.compile(backend="inductor" if device.type == "cuda" else "eager")
    return lambda: mkd_step(learner, optimizer, kept, targets, subject.method())


def graph(subject: Subject, batch: int, device: torch.device) -> Step:
    """Record from the trunk on what the step asks of the device, and play it again; the trunk is as ever."""
    if device.type != "cuda":
        raise ValueError("needs CUDA")
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)
    for group in optimizer.param_groups:
        group["capturable"] = True
    begun = [weight.detach().clone() for weight in learner.trained_parameters()]
    with mixed_precision(device):
        trunk = learner.trunk(kept)
    recorded: Any = SimpleNamespace(
        trunk=lambda _: trunk, features=learner.features, classify=learner.classify
    )

    def take() -> Outcome:
        with mixed_precision(device):
            return mkd_step(recorded, optimizer, kept, targets, subject.method())

    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            take()
    torch.cuda.current_stream(device).wait_stream(aside)
    played = torch.cuda.CUDAGraph()
    with torch.cuda.graph(played):
        outcome = take()
    # As if no step had been taken yet.
    for weight, first in zip(learner.trained_parameters(), begun, strict=True):
        weight.data.copy_(first)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()

    def step() -> Outcome:
        learner.trunk(kept)
        played.replay()
        return outcome

    return step


def checkpointed(subject: Subject, batch: int, device: torch.device) -> Step:
    """Keep what enters a block, and compute the rest again in the backward pass."""
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)
    recompute_blocks(learner)
    return lambda: mkd_step(learner, optimizer, kept, targets, subject.method())


AS_IT_IS, COMPILED = "as it is", "torch.compile"
SPEED = {AS_IT_IS: as_it_is, "CUDA graph": graph, COMPILED: compiled}
UPDATES = {"joint update": joint, "joint update, both branches in one batch": in_one_batch}
MEMORY = {AS_IT_IS: as_it_is, "gradient checkpointing": checkpointed}


def compare(log: Log, tiny: bool, make: Make, ways: Ways) -> None:
    """Take steps in each way; `difference` is that of its first losses from those of the first way."""
    subject = make(log.device, tiny)
    for batch in (2,) if tiny else (4, 64):
        expected: Tensor | None = None
        for name, way in ways.items():

            def one(way: Way = way, batch: int = batch) -> tuple[Tensor, dict[str, float]]:
                call = way(subject, batch, log.device)
                with mixed_precision(log.device):
                    first = call().losses.clone()
                return first, measure(log, subject, batch, call)

            what = f"{subject.name}, batch {batch}, {name}"
            if result := log.attempt(what, log.seconds * (60 if name == COMPILED else 5), one):
                first, figures = result
                expected = first if expected is None else expected
                log.result(what, **figures, difference=float((first - expected).abs().max()))
            log.free()


def quantised(log: Log, tiny: bool, make: Make) -> None:
    """Take steps over a base in fewer bits, saved and loaded as a client loads it."""
    for precision in QUANTISED:

        def one(precision: str = precision) -> tuple[Subject, float, dict[str, float]]:
            options = loading(precision)
            subject = make(log.device, tiny)
            model, whole, batch = subject.backbone.model, subject.size(), subject.batches[1]
            with TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model = type(model).from_pretrained(folder, **options).eval().requires_grad_(False)
            subject = replace(subject, backbone=replace(subject.backbone, model=model))
            figures = measure(log, subject, batch, as_it_is(subject, batch, log.device))
            return subject, subject.size() / whole, figures

        if result := log.attempt(f"a base in {precision}", 30 * log.seconds, one):
            subject, share, figures = result
            log.result(f"{subject.name}, batch {subject.batches[1]}, {precision}", **figures, share=share)
        log.free()


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
