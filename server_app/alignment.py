"""Global alignment: the third stage of MLLM-LLaVA-FL, on the server, after an aggregation.

Zhang et al., WACV 2025, arXiv 2409.06067, section 3.3. On a small class-balanced public pool the aggregated
model p takes a few steps of

    L_align = CE(y, p) + β · T² · KL(q ‖ p)

where q is what the multimodal LLM, the teacher model, says about each example. Around it stand two guards of
this project's own: the model stays within a radius of the aggregate, and is not changed at all if that loss
gets worse on held-out public examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from app.backbones import open_backbone
from app.heads import answer_with_new_head
from app.learner import Learner
from app.records import from_record, to_record
from app.settings import Settings

from .global_model import GlobalModel, Part
from .pooled_target import pooled_target
from .public_pool import Pool, load_pools


@dataclass(frozen=True)
class Alignment:
    """Settings of the alignment.

    Attributes
    ----------
    steps : int
        K, batches to train on after an aggregation. 0: every aggregate stays as it is.
    batch_size : int
        Public examples a batch.
    learning_rate : float
        Of AdamW, constant.
    labels : {"true", "none"}
        "none" leaves CE out: the teacher model alone supervises; classes are balanced by its first choice.
    beta : float
        β, weight of the teacher model. 0 leaves KL out.
    temperature : float
        T, softens both distributions.
    target : {"teacher", "pooled"}
        What q is: the teacher model's distribution, as published, or `pooled_target`'s, in which what the
        clients know counts as well.
    part : {"all", "head"}
        "all" trains all that is shared, as published; "head" the travelling head alone, on features that stay
        what the clients made of them.
    radius : float
        Trust region: largest distance from the aggregate, in multiples of the aggregate's norm.
    seed : int
        With the round it decides the batches.
    """

    steps: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    labels: Literal["true", "none"] = "true"
    beta: float = 1.0
    temperature: float = 1.0
    target: Literal["teacher", "pooled"] = "teacher"
    part: Part = "all"
    radius: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Losses:
    """The loss of some examples and its two terms: CE(y, p), and T² · KL(q ‖ p) before β."""

    total: Tensor
    ce: Tensor
    kl: Tensor


def alignment_loss(logits: Tensor, labels: Tensor, target: Tensor, settings: Alignment) -> Losses:
    """Compute L_align.

    Parameters
    ----------
    logits : Tensor
        Of the model, shape (batch, answers).
    labels : Tensor
        True answers, int64, shape (batch,); -1 where unknown, which counts in no CE.
    target : Tensor
        q, shape (batch, answers); a row of zeros, from a teacher model that abstained, counts in no KL.
    settings : Alignment
        labels, β, T.
    """
    nothing = logits.square().sum() * 0  # never -0.0
    known = labels >= 0
    ce = cross_entropy(logits[known], labels[known]) if settings.labels == "true" and known.any() else nothing
    sure = target.sum(1) > 0
    kl = nothing
    if settings.beta and sure.any():
        t = settings.temperature
        q = softmax(target[sure].clamp_min(1e-12).log() / t, dim=-1)
        kl = kl_div(log_softmax(logits[sure] / t, dim=-1), q, reduction="batchmean") * t**2
    return Losses(ce + settings.beta * kl, ce, kl)


def balanced_batches(classes: Tensor, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield rows of `steps` batches: every class is as likely as any other, whatever its share.

    Parameters
    ----------
    classes : Tensor
        Class of each example, int64, shape (examples,); those below 0 are not drawn.
    """
    members = [torch.nonzero(classes == c).flatten() for c in classes[classes >= 0].unique()]
    for _ in range(steps):
        drawn = torch.randint(len(members), (size,), generator=generator).tolist()
        yield torch.stack(
            [members[c][torch.randint(len(members[c]), (), generator=generator)] for c in drawn]
        )


class PoolAligner:
    """Align with a teacher model on a public pool: a `strategies.Aligner`.

    A function of the round and the arrays: it keeps nothing from one round to the next.

    Parameters
    ----------
    model : GlobalModel
        The server's copy of what clients train. Where their heads are private, it has a head of the server's
        own: what is learnt through it moves the shared adapter, and the head itself goes nowhere.
    train, held_out : Pool
        What to align on, and what decides whether the result counts; no example in both.
    settings : Alignment
        How.
    """

    def __init__(self, model: GlobalModel, train: Pool, held_out: Pool, settings: Alignment) -> None:
        self.model, self.train, self.held_out, self.settings = model, train, held_out, settings

    def align(self, server_round: int, arrays: ArrayRecord) -> tuple[ArrayRecord, dict[str, float]]:
        """Return the aligned arrays, or those given if aligning made them worse.

        Metrics: ``ce`` and ``kl`` before and after (held-out examples), ``delta-norm`` (distance from the
        aggregate), ``accepted`` (1 or 0).
        """
        settings = self.settings
        if settings.steps == 0:
            return arrays, {}
        aggregate = from_record(arrays)
        self.model.load(aggregate)
        self.fit_head()
        train_target, held_out_target = self._targets()
        before = self._measure(held_out_target)

        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + server_round)
        answers = self.train.answers(settings.labels)
        classes = torch.where(answers.sum(1) > 0, answers.argmax(1), -1)
        answer = self.model.answering(self.train.examples, settings.part)
        trained = self.model.trained(settings.part)
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        for rows in balanced_batches(classes, settings.batch_size, settings.steps, generator):
            logits = answer(rows)
            labels, target = (x[rows].to(logits.device) for x in (self.train.labels, train_target))
            optimizer.zero_grad(set_to_none=True)
            alignment_loss(logits, labels, target, settings).total.backward()
            optimizer.step()
            self.model.keep_within(aggregate, settings.radius)

        after = self._measure(held_out_target)
        accepted = bool(after.total <= before.total)
        aligned = self.model.state() if accepted else aggregate
        moved = torch.stack([(aligned[name] - aggregate[name]).norm() for name in aggregate]).norm()
        measured: dict[str, Any] = {
            "ce-before": before.ce,
            "kl-before": before.kl,
            "ce": after.ce,
            "kl": after.kl,
            "delta-norm": moved,
            "accepted": accepted,
        }
        return to_record(aligned) if accepted else arrays, {k: float(v) for k, v in measured.items()}

    def fit_head(self) -> None:
        """Fit a head of the server's own to the model as it is."""
        answers = self.train.answers(self.settings.labels)
        self.model.fit_own_head(self.train.examples, answers, self.settings.seed)

    def _targets(self) -> tuple[Tensor, Tensor]:
        if self.settings.target == "teacher":
            return self.train.target, self.held_out.target
        known = [self.model.all_logits(pool.examples) for pool in (self.train, self.held_out)]
        return pooled_target(self.train, self.held_out, *known)

    def _measure(self, target: Tensor) -> Losses:
        logits = self.model.all_logits(self.held_out.examples)
        return alignment_loss(logits, self.held_out.labels, target, self.settings)


def open_aligner(
    settings: Settings,
    learner: Learner,
    classes: Sequence[str] | None = None,
) -> PoolAligner:
    """Make a run's aligner from its settings: load the public pool, ask the teacher model.

    Parameters
    ----------
    settings : Settings
        Their sections ``align``, ``teacher`` and ``public``.
    learner : Learner
        What clients train, on the server's device. Without a head that travels it gets one of its own.
    classes : sequence of str, optional
        The answers of the head that travels.

    Raises
    ------
    ValueError
        If the pool or the teacher model cannot be used.
    """
    backbone = open_backbone(settings)
    train, held_out = load_pools(settings, backbone, classes)
    if not learner.head_travels:
        answer_with_new_head(learner, backbone.width, len(train.classes), settings.seed, settings.head)
    if learner.head is None:  # features are logits: the pool's answers are told by their texts
        learner.answer_with(nn.Identity())
    names = {field.name for field in fields(Alignment)} - {"seed"}
    given = {name: getattr(settings.align, name) for name in names}
    return PoolAligner(GlobalModel(learner), train, held_out, Alignment(**given, seed=settings.seed))
