"""The server's public examples, with labels and with what the teacher model says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import one_hot

from app.backbones import Backbone, choose_device
from app.examples import Examples
from app.settings import Settings, feddat_home
from data_partitions.benchmarks import DataOptions, load_pool

from .alignment_loss import Alignment, Losses, alignment_loss
from .global_model import GlobalModel
from .teachers.annotating import annotate
from .teachers.teacher import open_teacher


@dataclass(frozen=True)
class Pool:
    """Public examples, ready for alignment.

    Attributes
    ----------
    classes : tuple of str
        All answers, in the order of the head's outputs.
    examples : Examples
        Pictures and questions; their scores are one-hot over the pool's answers.
    labels : Tensor
        Index of the true answer, int64, shape (examples,); -1 where there is none.
    target : Tensor
        The teacher model's distribution, float32, shape (examples, answers); zeros where it abstained.
    """

    classes: tuple[str, ...]
    examples: Examples
    labels: Tensor
    target: Tensor

    def answers(self, labels: str) -> Tensor:
        """Return what is taken for the right answer of each example, (examples, answers).

        With "true" labels these, else the teacher model's first choice; a row of zeros where there is none.
        """
        classes = self.target.shape[1]
        if labels == "true":
            return one_hot(self.labels.clamp_min(0), classes) * (self.labels >= 0).float()[:, None]
        return one_hot(self.target.argmax(1), classes) * (self.target.sum(1) > 0).float()[:, None]

    def classes_by(self, labels: str) -> Tensor:
        """Return the index of each example's `answers`, int64, shape (examples,); -1 where there is none."""
        answers = self.answers(labels)
        return torch.where(answers.sum(1) > 0, answers.argmax(1), -1)

    def losses(self, logits: Tensor, rows: Tensor, target: Tensor, settings: Alignment) -> Losses:
        """Compute the loss of some rows by their logits (rows, answers); `target` is that of all examples."""
        labels, own = (of_all[rows].to(logits.device) for of_all in (self.labels, target))
        return alignment_loss(logits, labels, own, settings)

    def measured(self, model: GlobalModel, target: Tensor, settings: Alignment) -> Losses:
        """Compute the loss of all examples under a model as it is."""
        return alignment_loss(model.all_logits(self.examples), self.labels, target, settings)


def public_rows(settings: Settings) -> tuple[list[Dataset], str]:
    """Return a run's public rows, those to align on and those held out, and what to call them in an error."""
    rows = load_pool(settings.benchmark, DataOptions.of(settings.run_config(), feddat_home() / "data"))
    source = f"public.data = {settings.public.data!r}" if settings.public.data else "the public pool"
    return [rows["train"], rows["validation"]], source


def require_held_out(part: Dataset, source: str) -> None:
    """Raise a ValueError where nothing is held out that could decide whether an alignment counts."""
    if not len(part):
        raise ValueError(f"{source} has no answer five times, so none is held out; allowed: more examples")


def load_pools(
    settings: Settings, backbone: Backbone, classes: Sequence[str] | None = None
) -> tuple[Pool, Pool]:
    """Load what a run aligns on and its held-out part, annotated by the run's teacher model.

    Parameters
    ----------
    settings : Settings
        Name the pool, the teacher model and what it is asked.
    backbone : Backbone
        Makes the examples.
    classes : sequence of str, optional
        The answers in the order of the clients' common head. None: all answers of the pool.

    Raises
    ------
    ValueError
        If the pool lacks a class, has an answer that is none or is too small to hold any out, or the teacher
        model cannot be used.
    """
    parts, source = public_rows(settings)
    train, held_out = (set(part["answer"]) for part in parts)
    classes = list(classes or sorted(train | held_out))
    if strange := sorted((train | held_out) - set(classes)):
        raise ValueError(
            f"{source}: {strange[0]!r} is not a class of the clients; allowed: {', '.join(classes)}"
        )
    if missing := sorted(set(classes) - train):
        raise ValueError(f"{source} has no example of class {missing[0]!r}; allowed: examples of all classes")
    require_held_out(parts[1], source)
    annotated = _ask(settings, parts, classes) if settings.align.beta else None
    index_of = {answer: index for index, answer in enumerate(classes)}
    pools = []
    for index, part in enumerate(parts):
        labels = torch.tensor([index_of[answer] for answer in part["answer"]])
        scores = one_hot(labels, len(classes)).float()
        rows_scored = part.add_column("scores", scores.tolist())
        examples = backbone.examples(rows_scored, choose_device(settings.server_device), classes)
        target = annotated[index] if annotated else torch.zeros(len(part), len(classes))
        pools.append(Pool(tuple(classes), examples, labels, target))
    return pools[0], pools[1]


def _ask(settings: Settings, parts: Sequence[Dataset], classes: Sequence[str]) -> list[Tensor]:
    teacher = open_teacher(
        settings.teacher.model, normalise=settings.teacher.normalise, device=settings.server_device
    )
    return [
        annotate(
            teacher,
            part["image"],
            prompts(settings, part),
            classes,
            cache=cache,
            temperature=settings.teacher.temperature,
            margin=settings.teacher.margin,
        )
        for cache, part in zip(caches(settings), parts, strict=True)
    ]


def prompts(settings: Settings, part: Dataset) -> list[str]:
    """Return what the teacher model is asked about each public row."""
    return [settings.teacher.prompt.replace("{question}", question) for question in part["question"]]


def caches(settings: Settings) -> list[Path]:
    """Return the files that keep what a teacher model says of both parts."""
    kept = feddat_home() / "annotations"
    kept.mkdir(parents=True, exist_ok=True)
    return [kept / f"{settings.benchmark}-{name}.parquet" for name in ("train", "validation")]
