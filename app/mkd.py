"""Mutual knowledge distillation between the shared and the local adapter: the method.

FedDAT (Chen, Zhang, Krompass, Gu, Tresp; AAAI 2024; arXiv 2308.12305), algorithm 1, client update. With z_s
the logits of the student branch (A_s in place) and z_DAT those of the dual-adapter teacher (the mean of Â_s
and A_c in place), both through the client's head,

    L_s   = ½ [CE(z_s, y)   + α · KL(z_DAT ‖ z_s)]     trains A_s
    L_DAT = ½ [CE(z_DAT, y) + β · KL(z_s ‖ z_DAT)]     trains A_c

and each takes the other's logits as a constant. The head is trained by both.

`reference_step` is the step as published: three forwards, two updates. `fast_step` computes the same from
two forwards over a common trunk: neither A_c nor Â_s moves between the teacher's two passes, only the head
does. Tests hold it to the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, softmax
from torch.optim import Optimizer

from .dual_adapter import DualAdapter
from .trained_model import TrainedModel

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Distillation:
    """Settings of the method.

    Attributes
    ----------
    alpha, beta : float
        Weight of the distillation term for the student and for the teacher branch.
    temperature : float
        Softens both distributions; the published code uses 3.
    loss : {"bce-scores", "cross-entropy"}
        Form of CE, see `task_loss`.
    update : {"alternating", "joint"}
        Published: A_s and head, then A_c and head, two optimizer steps a batch. Joint: one step on the sum
        of both losses.
    """

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 3.0
    loss: Literal["bce-scores", "cross-entropy"] = "bce-scores"
    update: Literal["alternating", "joint"] = "alternating"


@dataclass(frozen=True)
class Outcome:
    """What a step computed, detached.

    Attributes
    ----------
    student, dat : Tensor
        Logits that the two losses saw, shape (batch, answers).
    teacher : Tensor
        Logits of the teacher branch that taught the student, shape (batch, answers).
    losses : Tensor
        CE and KL of the student, then CE and KL of the teacher branch, before the ½; shape (4,).
    """

    student: Tensor
    teacher: Tensor
    dat: Tensor
    losses: Tensor


def task_loss(logits: Tensor, scores: Tensor, form: str) -> Tensor:
    """Compare logits with answer scores in [0, 1], both of shape (batch, answers).

    ``"bce-scores"`` is the VQA form of the published code: binary cross-entropy, mean over the batch, sum
    over the answers. ``"cross-entropy"`` takes the scores as they are for target weights. An unanswerable
    row has no score above 0: the first form then pushes every answer down, the second ignores the row.
    """
    if form == "bce-scores":
        return binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]
    return cross_entropy(logits, scores)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T² · KL(teacher ‖ student) from logits (batch, answers), mean over the batch.

    The teacher is a constant.
    """
    target = softmax(teacher.detach() / temperature, dim=-1)
    return kl_div(log_softmax(student / temperature, dim=-1), target, reduction="batchmean") * temperature**2


def losses(logits: Tensor, other: Tensor, scores: Tensor, method: Distillation) -> tuple[Tensor, Tensor]:
    """Return CE(z, y) and KL(other ‖ z)."""
    return task_loss(logits, scores, method.loss), divergence(logits, other, method.temperature)


def reference_step(
    adapter: DualAdapter,
    head: nn.Module,
    optimizer: Optimizer,
    inputs: Inputs,
    scores: Tensor,
    method: Distillation,
) -> Outcome:
    """Take the published step on one batch: A_s and head, then A_c and head.

    Parameters
    ----------
    adapter : DualAdapter
        Holds A_s, Â_s, A_c.
    head : nn.Module
        The client's head, features (batch, width) → logits (batch, answers).
    optimizer : Optimizer
        Over A_s, A_c and the head. A parameter without a gradient must stay as it is.
    inputs : Mapping
        Model inputs, see `app.backbones.embed`.
    scores : Tensor
        Answer scores in [0, 1], shape (batch, answers).
    method : Distillation
        Settings; ``update`` is "alternating" here whatever it says.
    """
    with torch.no_grad():
        z_teacher = head(adapter(inputs, "teacher"))

    z_s = head(adapter(inputs, "student"))
    ce_s, kl_s = losses(z_s, z_teacher, scores, method)
    _descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s))

    z_dat = head(adapter(inputs, "teacher"))
    ce_dat, kl_dat = losses(z_dat, z_s, scores, method)
    _descend(optimizer, 0.5 * (ce_dat + method.beta * kl_dat))
    return _outcome(z_s, z_teacher, z_dat, ce_s, kl_s, ce_dat, kl_dat)


def fast_step(
    adapter: DualAdapter,
    head: nn.Module,
    optimizer: Optimizer,
    inputs: Inputs,
    scores: Tensor,
    method: Distillation,
) -> Outcome:
    """Take one step on a batch with two forwards over a common trunk; parameters as for `reference_step`."""
    trunk = adapter.trunk(inputs)
    h_dat = adapter.features(trunk, "teacher")
    z_s = head(adapter.features(trunk, "student"))

    if method.update == "joint":
        z_teacher = z_dat = head(h_dat)
        ce_s, kl_s = losses(z_s, z_dat, scores, method)
        ce_dat, kl_dat = losses(z_dat, z_s, scores, method)
        _descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s) + 0.5 * (ce_dat + method.beta * kl_dat))
    else:
        with torch.no_grad():
            z_teacher = head(h_dat)
        ce_s, kl_s = losses(z_s, z_teacher, scores, method)
        _descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s))

        z_dat = head(h_dat)
        ce_dat, kl_dat = losses(z_dat, z_s, scores, method)
        _descend(optimizer, 0.5 * (ce_dat + method.beta * kl_dat))
    return _outcome(z_s, z_teacher, z_dat, ce_s, kl_s, ce_dat, kl_dat)


def adapter_step(
    adapter: TrainedModel,
    head: nn.Module,
    optimizer: Optimizer,
    inputs: Inputs,
    scores: Tensor,
    method: Distillation,
) -> Tensor:
    """Take one step of the baselines, a single adapter or all weights, on CE alone; return the loss."""
    z_s = head(adapter.features(adapter.trunk(inputs), "student"))
    loss = task_loss(z_s, scores, method.loss)
    _descend(optimizer, loss)
    return loss.detach()


def make_optimizer(
    adapter: TrainedModel, head: nn.Module, learning_rate: float, weight_decay: float, kind: str = "adamw"
) -> Optimizer:
    """Make the published AdamW over A_s, A_c and the head: betas (0.9, 0.98), eps 1e-8.

    As published, no decay on names containing ``bias`` or ``LayerNorm.weight``; the head's own norm weight
    is decayed. `kind` "sgd" makes SGD without momentum, with the same decay.
    """
    named = [
        *adapter.parameters_of["shared"].items(),
        *adapter.parameters_of["local"].items(),
        *head.named_parameters(),
    ]
    named = [(name, p) for name, p in named if p.requires_grad]
    spared = [p for name, p in named if "bias" in name or "LayerNorm.weight" in name]
    decayed = [p for name, p in named if "bias" not in name and "LayerNorm.weight" not in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8)


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _outcome(z_s: Tensor, z_teacher: Tensor, z_dat: Tensor, *terms: Tensor) -> Outcome:
    return Outcome(
        z_s.detach(), z_teacher.detach(), z_dat.detach(), torch.stack([term.detach() for term in terms])
    )
