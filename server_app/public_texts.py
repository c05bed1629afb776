"""The server's public examples for a model that writes, and what the teacher model says at each token.

The texts that it learns to write are the public examples' own answers (``align.labels = 'true'``) or those
that the teacher model writes ('none'). If both have one tokenizer, the teacher model also says, at each token
of these texts, how likely it finds which words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from torch import Tensor

from app.backbones import Backbone, choose_device
from app.conversations import Conversations
from app.settings import Settings
from data_partitions.partition import Row, scored_split

from .alignment_loss import Alignment, Losses, text_loss
from .global_model import GlobalModel
from .public_pool import caches, prompts, public_rows, require_held_out
from .teachers.annotating import annotate_captions
from .teachers.models import load_tokenizer
from .teachers.teacher import ModelTeacher, open_teacher

# Likeliest words of the teacher model's that are kept of each token: a vocabulary has 150,000.
WORDS = 256


@dataclass(frozen=True)
class TextPool:
    """Public examples with a text each, ready for alignment.

    Attributes
    ----------
    examples : Conversations
        Pictures and questions, each with its text as the answer.
    texts : sequence of Tensor
        The texts' tokens, int64, shape (tokens,) each.
    target : sequence of tuple, optional
        For each text what the teacher model says at its tokens, see `app.likelihood.likeliest_words`; None
        where it says texts alone.
    """

    examples: Conversations
    texts: Sequence[Tensor]
    target: Sequence[tuple[Tensor, Tensor]] | None = None

    def classes_by(self, labels: str) -> Tensor:
        """Return which of the different texts each example has, int64, shape (examples,)."""
        met: dict[tuple[int, ...], int] = {}
        return torch.tensor([met.setdefault(tuple(text.tolist()), len(met)) for text in self.texts])

    def losses(self, logits: Any, rows: Tensor, target: Any, settings: Alignment) -> Losses:
        """Compute the loss of some rows by the logits (tokens, words) at their texts' tokens."""
        chosen = rows.tolist()
        told = torch.cat([self.texts[row] for row in chosen]).to(logits.device)
        if target is None:
            return text_loss(logits, told, None, settings)
        q, words = (torch.cat(of_each) for of_each in zip(*(target[row] for row in chosen), strict=True))
        return text_loss(logits, told, (q.to(logits.device), words.to(logits.device)), settings)

    @torch.no_grad()
    def measured(self, model: GlobalModel, target: Any, settings: Alignment) -> Losses:
        """Compute the loss of all examples under a model as it is: the mean over all tokens."""
        answer = model.answering(self.examples, "all")
        sums, tokens = torch.zeros(2), 0
        for rows in torch.arange(len(self.texts)).split(settings.batch_size):
            found = self.losses(answer(rows), rows, target, settings)
            count = sum(len(self.texts[row]) for row in rows.tolist())
            sums += torch.stack([found.ce, found.kl]).cpu() * count
            tokens += count
        ce, kl = sums / tokens
        return Losses(ce + settings.beta * kl, ce, kl)


def load_text_pools(settings: Settings, backbone: Backbone) -> tuple[TextPool, TextPool]:
    """Load what a run aligns on and its held-out part, with the texts that its settings ask for.

    Raises
    ------
    ValueError
        The pool is too small to hold any out, the teacher model cannot be used, or it has another tokenizer
        where its words are asked for.
    """
    parts, source = public_rows(settings)
    require_held_out(parts[1], source)
    if settings.align.beta:
        _require_same_words(settings, backbone)
    teacher = (
        open_teacher(settings.teacher.model, device=settings.server_device) if _asked(settings) else None
    )
    pools = []
    for part, cache in zip(parts, caches(settings), strict=True):
        asked, answers = prompts(settings, part), part["answer"]
        if teacher and settings.align.labels == "none":
            answers = annotate_captions(teacher, part["image"], asked, cache=cache)
        try:
            examples = backbone.examples(_rows(part, answers), choose_device(settings.server_device))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        texts = _texts(examples)
        target = None
        if isinstance(teacher, ModelTeacher) and settings.align.beta:
            target = teacher.likeliest_words(
                part["image"],
                asked,
                [text.tolist() for text in texts],
                words=backbone.processor.vocabulary,
                most=WORDS,
                temperature=settings.align.temperature,
            )
        pools.append(TextPool(examples, texts, target))
    return pools[0], pools[1]


def _asked(settings: Settings) -> bool:
    return settings.align.beta > 0 or settings.align.labels == "none"


def _rows(part: Dataset, answers: Sequence[str]) -> Dataset:
    """Return public rows as a client's are, with these answers."""
    stored = part.cast_column("image", ImageColumn(decode=False))
    columns = zip(stored["image"], stored["question"], answers, stored["example_id"], strict=True)
    return scored_split((Row.asking(*row) for row in columns), ())[0]


def _texts(examples: Conversations) -> list[Tensor]:
    ends = examples.ends[:-1]
    parts = zip(examples.tokens.tensor_split(ends), examples.told.tensor_split(ends), strict=True)
    return [tokens[told] for tokens, told in parts]


def _require_same_words(settings: Settings, backbone: Backbone) -> None:
    """Raise a ValueError unless the teacher model's tokens are the backbone's, by the same numbers."""
    name = settings.teacher.model
    if name.endswith(".parquet"):
        other = "which has texts, and no words' likelihoods"
    elif load_tokenizer(name).get_vocab() != backbone.processor.tokenizer.get_vocab():
        other = "whose tokenizer is not the backbone's"
    else:
        return
    raise ValueError(
        f"align.beta = {settings.align.beta} with loss = 'next-token' and teacher.model = {name!r}, {other};"
        " allowed: 0.0, which with align.labels = 'none' aligns by what it writes"
    )
