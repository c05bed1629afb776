"""Global alignment: the third stage of MLLM-LLaVA-FL, on the server, after an aggregation.

Zhang et al., WACV 2025, arXiv 2409.06067, section 3.3. On a small class-balanced public pool the aggregated
model p takes a few steps of

    L_align = CE(y, p) + β · T² · KL(q ‖ p)

where q is what the multimodal LLM, the teacher model, says about each example: of its answer, or where the
model writes, of each token of a text, see `public_texts`. Around it stand two guards of
this project's own: the model stays within a radius of the aggregate, and is not changed at all if that loss
gets worse on held-out public examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from app.backbones import open_backbone
from app.heads import answer_with_new_head
from app.learner import Learner
from app.records import from_record, to_record
from app.settings import Settings

from .alignment_loss import Alignment, Losses
from .global_model import GlobalModel
from .pooled_target import pooled_target
from .public_pool import Pool, load_pools
from .public_texts import TextPool, load_text_pools


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
    train, held_out : Pool or TextPool
        What to align on, and what decides whether the result counts; no example in both.
    settings : Alignment
        How.
    """

    def __init__(
        self, model: GlobalModel, train: Pool | TextPool, held_out: Pool | TextPool, settings: Alignment
    ) -> None:
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
        classes = self.train.classes_by(settings.labels)
        answer = self.model.answering(self.train.examples, settings.part)
        trained = self.model.trained(settings.part)
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        for rows in balanced_batches(classes, settings.batch_size, settings.steps, generator):
            losses = self.train.losses(answer(rows), rows, train_target, settings)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
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
        """Fit a head of the server's own, if it has one, to the model as it is."""
        if isinstance(self.train, Pool):
            answers = self.train.answers(self.settings.labels)
            self.model.fit_own_head(self.train.examples, answers, self.settings.seed)

    def _targets(self) -> tuple[Any, Any]:
        train, held_out = self.train, self.held_out
        if self.settings.target == "teacher" or isinstance(train, TextPool) or isinstance(held_out, TextPool):
            return train.target, held_out.target
        known = [self.model.all_logits(pool.examples) for pool in (train, held_out)]
        return pooled_target(train, held_out, *known)

    def _measure(self, target: Any) -> Losses:
        return self.held_out.measured(self.model, target, self.settings)


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
    train: Pool | TextPool
    held_out: Pool | TextPool
    if settings.loss == "next-token":
        train, held_out = load_text_pools(settings, backbone)
    else:
        train, held_out = load_pools(settings, backbone, classes)
        if not learner.head_travels:
            answer_with_new_head(learner, backbone.width, len(train.classes), settings.seed, settings.head)
    if learner.head is None:  # features are logits: it writes, or the pool's answers are told by their texts
        learner.answer_with(nn.Identity())
    names = {field.name for field in fields(Alignment)} - {"seed"}
    given = {name: getattr(settings.align, name) for name in names}
    return PoolAligner(GlobalModel(learner), train, held_out, Alignment(**given, seed=settings.seed))
