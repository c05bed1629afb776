"""Mutual knowledge distillation between the shared and the local adapter: the method.

FedDAT (Chen, Zhang, Krompass, Gu, Tresp; AAAI 2024; arXiv 2308.12305), algorithm 1, client update. With z_s
the logits of the student branch (A_s in place) and z_DAT those of the dual-adapter teacher (the mean of Â_s
and A_c in place), both through the client's head,

    L_s   = ½ [CE(z_s, y)   + α · KL(z_DAT ‖ z_s)]     trains A_s
    L_DAT = ½ [CE(z_DAT, y) + β · KL(z_s ‖ z_DAT)]     trains A_c

and each takes the other's logits as a constant. The head is trained by both.

`reference_step` is the step as published: three forwards, two updates. `mkd_step` computes the same from
two forwards over a common trunk: neither A_c nor Â_s moves between the teacher's two passes, only the head
does. Tests hold it to the reference.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .learner import Branch, Learner
from .tasks import TASKS, Task, divergence


@dataclass(frozen=True)
class Distillation:
    """Settings of the method.

    Attributes
    ----------
    alpha, beta : float
        Weight of the distillation term for the student and for the teacher branch.
    temperature : float
        Softens both distributions; the published code uses 3.
    loss : str
        Form of CE, a key of `tasks.TASKS`. ``"bce-scores"``, ``"cross-entropy"``: targets are class indices
        or scores in [0, 1]. ``"next-token"``: token ids, -100 where nothing is to be told.
    update : {"alternating", "joint"}
        Published: A_s and head, then A_c and head, two optimizer steps a batch. Joint: one step on the sum
        of both losses.

    Raises
    ------
    ValueError
        A value is not allowed.

    Examples
    --------
    >>> Distillation(loss="cross-entropy", update="joint").beta
    1.0
    """

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 3.0
    loss: str = "bce-scores"
    update: Literal["alternating", "joint"] = "alternating"

    def __post_init__(self) -> None:
        for name, value, allowed in (("loss", self.loss, TASKS), ("update", self.update, UPDATES)):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r}; allowed: {', '.join(map(repr, allowed))}")
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}; allowed: 0 or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature!r}; allowed: more than 0")

    @property
    def task(self) -> Task:
        """What logits are compared with."""
        return TASKS[self.loss]


UPDATES = ("alternating", "joint")
# What `Outcome.losses` holds, by its names in metrics.
LOSSES = ("ce-student", "kl-student", "ce-teacher", "kl-teacher")


@dataclass(frozen=True)
class Outcome:
    """What a step computed, detached; n counts what is told: examples, or positions of a text.

    Attributes
    ----------
    student, dat : Tensor
        Logits that the two losses saw, shape (n, classes).
    teacher : Tensor
        Logits of the teacher branch that taught the student, shape (n, classes).
    losses : Tensor
        CE and KL of the student, then CE and KL of the teacher branch, before the ½; shape (4,).
    """

    student: Tensor
    teacher: Tensor
    dat: Tensor
    losses: Tensor


def losses(logits: Tensor, other: Tensor, targets: Tensor, method: Distillation) -> tuple[Tensor, Tensor]:
    """Return CE(z, y) and KL(other ‖ z)."""
    z, y = method.task.pair(logits, targets)
    z_other, _ = method.task.pair(other, targets)
    return method.task.loss(z, y), divergence(z, z_other, method.temperature)


def reference_step(
    learner: Learner, optimizer: Optimizer, batch: Any, targets: Tensor, method: Distillation
) -> Outcome:
    """Take the published step on one batch: A_s and head, then A_c and head.

    Parameters
    ----------
    learner : Learner
        Holds A_s, Â_s, A_c and the head, such as a `DualAdapter`.
    optimizer : Optimizer
        Over A_s, A_c and the head (`Learner.trained_parameters`). A parameter without a gradient must stay as
        it is.
    batch : Any
        Model inputs.
    targets : Tensor
        What the logits are compared with, see `Distillation.loss`.
    method : Distillation
        Settings; ``update`` is "alternating" here whatever it says.

    Raises
    ------
    ValueError
        Logits and targets do not fit each other; or a loss is not finite (on a GPU, where asking would make
        the host wait, whoever runs the loop has to look).

    Examples
    --------
    >>> optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=1e-4)
    >>> outcome = reference_step(dual, optimizer, batch, targets, Distillation(loss="cross-entropy"))
    >>> outcome.losses.shape
    torch.Size([4])
    """
    with torch.no_grad():
        z_teacher = learner(batch, "teacher")

    z_s = learner(batch, "student")
    ce_s, kl_s = losses(z_s, z_teacher, targets, method)
    descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s))

    z_dat = learner(batch, "teacher")
    ce_dat, kl_dat = losses(z_dat, z_s, targets, method)
    descend(optimizer, 0.5 * (ce_dat + method.beta * kl_dat))
    return _outcome(z_s, z_teacher, z_dat, targets, method, ce_s, kl_s, ce_dat, kl_dat)


def mkd_step(
    learner: Learner, optimizer: Optimizer, batch: Any, targets: Tensor, method: Distillation
) -> Outcome:
    """Take one step on a batch with two forwards over a common trunk, as far as the model can be parted.

    Parameters, result and errors are those of `reference_step`, and so are the numbers.

    Examples
    --------
    >>> optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=1e-4)
    >>> outcome = mkd_step(dual, optimizer, batch, targets, Distillation(loss="cross-entropy"))
    >>> outcome.losses.shape  # CE and KL of the student, CE and KL of the teacher
    torch.Size([4])
    """
    trunk = learner.trunk(batch)
    h_dat = learner.features(trunk, "teacher")
    z_s = learner.classify(learner.features(trunk, "student"))

    if method.update == "joint":
        z_teacher = z_dat = learner.classify(h_dat)
        ce_s, kl_s = losses(z_s, z_dat, targets, method)
        ce_dat, kl_dat = losses(z_dat, z_s, targets, method)
        descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s) + 0.5 * (ce_dat + method.beta * kl_dat))
    else:
        with torch.no_grad():
            z_teacher = learner.classify(h_dat)
        ce_s, kl_s = losses(z_s, z_teacher, targets, method)
        descend(optimizer, 0.5 * (ce_s + method.alpha * kl_s))

        z_dat = learner.classify(h_dat)
        ce_dat, kl_dat = losses(z_dat, z_s, targets, method)
        descend(optimizer, 0.5 * (ce_dat + method.beta * kl_dat))
    return _outcome(z_s, z_teacher, z_dat, targets, method, ce_s, kl_s, ce_dat, kl_dat)


def adapter_step(
    learner: Learner,
    optimizer: Optimizer,
    batch: Any,
    targets: Tensor,
    method: Distillation,
    branch: Branch = "student",
) -> Tensor:
    """Take one step of the baselines, one adapter or all weights, on CE alone; return the loss."""
    loss = branch_loss(learner, learner.trunk(batch), branch, targets, method)
    descend(optimizer, loss)
    return loss.detach()


def branch_loss(
    learner: Learner, trunk: Any, branch: Branch, targets: Tensor, method: Distillation
) -> Tensor:
    """Compute a branch's CE, with gradients, from what all branches have in common."""
    z, y = method.task.pair(learner.classify(learner.features(trunk, branch)), targets)
    return method.task.loss(z, y)


def make_optimizer(
    learner: Learner, learning_rate: float, weight_decay: float, kind: str = "adamw"
) -> Optimizer:
    """Make the published AdamW over what is trained: betas (0.9, 0.98), eps 1e-8.

    As published, no decay on names containing ``bias`` or ``LayerNorm.weight``; the head's own norm weight
    is decayed. `kind` "sgd" makes SGD without momentum, with the same decay.
    """
    named = learner.named_trained()
    spared = [p for name, p in named if "bias" in name or "LayerNorm.weight" in name]
    decayed = [p for name, p in named if "bias" not in name and "LayerNorm.weight" not in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8)


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one optimizer step down a loss, which must be finite (looked at on the CPU alone)."""
    if loss.device.type == "cpu" and not loss.isfinite():
        raise ValueError(f"the loss is {float(loss):g}: the logits or targets are not finite")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _outcome(
    z_s: Tensor, z_teacher: Tensor, z_dat: Tensor, targets: Tensor, method: Distillation, *terms: Tensor
) -> Outcome:
    student, teacher, dat = (method.task.pair(z.detach(), targets)[0] for z in (z_s, z_teacher, z_dat))
    return Outcome(student, teacher, dat, torch.stack([term.detach() for term in terms]))
