"""The server's public examples, with labels and with what the teacher model says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import one_hot

from app.backbones import Backbone, choose_device
from app.examples import Examples
from app.settings import Settings, feddat_home
from data_partitions.benchmarks import DataOptions, load_pool

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
    rows = load_pool(settings.benchmark, DataOptions.of(settings.run_config(), feddat_home() / "data"))
    parts = [rows["train"], rows["validation"]]
    train, held_out = (set(part["answer"]) for part in parts)
    classes = list(classes or sorted(train | held_out))
    source = f"public.data = {settings.public.data!r}" if settings.public.data else "the public pool"
    if strange := sorted((train | held_out) - set(classes)):
        raise ValueError(
            f"{source}: {strange[0]!r} is not a class of the clients; allowed: {', '.join(classes)}"
        )
    if missing := sorted(set(classes) - train):
        raise ValueError(f"{source} has no example of class {missing[0]!r}; allowed: examples of all classes")
    if not held_out:
        raise ValueError(f"{source} has no answer five times, so none is held out; allowed: more examples")
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
    kept = feddat_home() / "annotations"
    kept.mkdir(parents=True, exist_ok=True)
    return [
        annotate(
            teacher,
            part["image"],
            [settings.teacher.prompt.replace("{question}", question) for question in part["question"]],
            classes,
            cache=kept / f"{settings.benchmark}-{name}.parquet",
            temperature=settings.teacher.temperature,
            margin=settings.teacher.margin,
        )
        for name, part in zip(("train", "validation"), parts, strict=True)
    ]
