"""What an alignment minimises: CE(y, p) + β · T² · KL(q ‖ p), over answers or over the tokens of texts."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from app.likelihood import with_others
from app.piecewise import PiecewiseLogits
from app.tasks import TASKS

from .global_model import Part


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
        Of texts it says whose they are, see `public_texts`, and classes are equal texts.
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


def text_loss(logits: Any, told: Tensor, said: tuple[Tensor, Tensor] | None, settings: Alignment) -> Losses:
    """Compute L_align of texts, a mean over their tokens.

    Parameters
    ----------
    logits : Tensor or PiecewiseLogits
        Of the model at the texts' tokens, shape (tokens, words).
    told : Tensor
        The texts' tokens y, int64, shape (tokens,).
    said : tuple of Tensor, optional
        q of the teacher model at the same tokens: log-probabilities, softened by T, of its likeliest words
        and of all others together, (tokens, some + 1), and which words these are, (tokens, some). p is
        compared with it in the same way. None: there is no KL.
    settings : Alignment
        β, T.
    """
    ce = TASKS["next-token"].loss(logits, told)
    if said is None:
        return Losses(ce, ce, torch.zeros_like(ce))
    t = settings.temperature

    def divergence(some: Tensor, q: Tensor, words: Tensor) -> Tensor:
        p = with_others(log_softmax(some / t, dim=-1), words)
        return kl_div(p, q, reduction="batchmean", log_target=True) * t**2

    def with_gradient(some: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            share = divergence(some.requires_grad_(), *others)
        return share.detach(), torch.autograd.grad(share, some)[0]

    pieces = isinstance(logits, PiecewiseLogits)
    kl = logits.mean(with_gradient, *said) if pieces else divergence(logits, *said)
    return Losses(ce + settings.beta * kl, ce, kl)
