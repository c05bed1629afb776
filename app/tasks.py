"""What logits are compared with: answers, or the next tokens of a text. A task has a loss and a score.

A new one is a class and a line in `TASKS`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, softmax

from . import piecewise
from .piecewise import PiecewiseLogits

IGNORED = -100  # a class index that counts in nothing, as in PyTorch's cross-entropy


class Task(Protocol):
    """What a method asks of its logits: a tensor, or where a task says so `PiecewiseLogits`."""

    def pair(self, logits: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return the logits that count, shape (n, classes), and their targets, (n,) or (n, classes).

        Logits are in float32 at least, whatever a forward computes in.

        Raises
        ------
        ValueError
            Their shapes or values do not fit each other, or nothing counts.
        """

    def count(self, targets: Tensor) -> int | Tensor:
        """Return n of `pair`: over how many rows a loss is the mean."""

    def loss(self, logits: Any, targets: Tensor) -> Tensor:
        """Return the mean loss of what `pair` returned."""

    def score(self, logits: Any, targets: Tensor) -> Tensor:
        """Return what each first choice is worth, in [0, 1], shape (n,)."""


class Answers:
    """One of a list of answers is chosen, by class index or by scores of all answers in [0, 1].

    Parameters
    ----------
    loss : callable
        Logits and scores, both (n, classes), to the mean loss.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._loss = loss

    def pair(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Flatten all but the classes; class indices of -100 are left out, with their logits."""
        _check_tensors(logits, targets)
        if targets.is_floating_point():
            if targets.shape != logits.shape:
                raise ValueError(
                    f"targets: scores of shape {tuple(targets.shape)} with logits of shape "
                    f"{tuple(logits.shape)}; allowed: the same shape, or class indices"
                )
            _check_scores(targets)
            return _precise(logits.flatten(0, -2)), targets.flatten(0, -2)
        _check_indices(logits, targets)
        return _counted(logits.flatten(0, -2), targets.flatten())

    def count(self, targets: Tensor) -> int | Tensor:
        """Return how many rows of scores there are, or class indices that count."""
        if targets.is_floating_point():
            return targets.shape[:-1].numel()
        return (targets != IGNORED).sum()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the rows."""
        if not targets.is_floating_point():
            targets = torch.nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
        return self._loss(logits, targets)

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the score of each row's first choice; with class indices, whether it is right."""
        chosen = logits.argmax(dim=1)
        if not targets.is_floating_point():
            return (chosen == targets).float()
        return targets.gather(1, chosen[:, None]).squeeze(1)


class Tokens:
    """The next token is told at some positions of a text: logits (batch, length, words) of a causal model.

    Targets are token ids (batch, length), those of the inputs, with -100 where nothing is to be told; the
    logits at one position are compared with the target of the next. A model may give the logits of those
    positions alone, (n, words) in the order of the texts, and as `PiecewiseLogits`.
    """

    def pair(self, logits: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Shift by one position, and leave out those with a target of -100."""
        if not isinstance(logits, PiecewiseLogits):
            _check_tensors(logits, targets)
            if logits.ndim == 3 or targets.is_floating_point():
                _check_indices(logits, targets)
                return _counted(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        told = targets[:, 1:].flatten() if targets.ndim == 2 else targets[:0]
        # A GPU would be waited for.
        number = int((told != IGNORED).sum()) if told.device.type == "cpu" else len(logits)
        if not number or number != len(logits):
            raise ValueError(
                f"loss = 'next-token' with logits of shape {tuple(logits.shape)}; allowed: (batch, length, "
                f"vocabulary), or (n, vocabulary) with n targets, at least one, which are {number}"
            )
        told = told[torch.nonzero_static(told != IGNORED, size=number).squeeze(1)]
        return logits if isinstance(logits, PiecewiseLogits) else _precise(logits), told.long()

    def count(self, targets: Tensor) -> Tensor:
        """Return how many tokens are told."""
        return (targets[:, 1:] != IGNORED).sum()

    def loss(self, logits: Any, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the positions."""
        if isinstance(logits, PiecewiseLogits):
            return logits.mean(piecewise.cross_entropy, targets)
        return cross_entropy(logits, targets)

    def score(self, logits: Any, targets: Tensor) -> Tensor:
        """Return whether each position's likeliest token is right."""
        if isinstance(logits, PiecewiseLogits):
            return logits.each(self.score, targets)
        return (logits.argmax(dim=1) == targets).float()


def binary(logits: Tensor, scores: Tensor) -> Tensor:
    """Compute the VQA form of FedDAT's published code: binary cross-entropy, mean of rows, sum of answers.

    A row without a score above 0 pushes every answer down.
    """
    return binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]


def categorical(logits: Tensor, scores: Tensor) -> Tensor:
    """Compute the cross-entropy with the scores, as they are, for weights; a row without any counts as 0."""
    return cross_entropy(logits, scores)


TASKS: dict[str, Task] = {
    "bce-scores": Answers(binary),
    "cross-entropy": Answers(categorical),
    "next-token": Tokens(),
}


def divergence(student: Any, teacher: Any, temperature: float) -> Tensor:
    """Compute T² · KL(teacher ‖ student) from logits (n, classes), mean over n; the teacher is a constant."""
    if isinstance(student, PiecewiseLogits):
        return student.mean(lambda z, other: piecewise.divergence(z, other, temperature), teacher.detach())
    target = softmax(teacher.detach() / temperature, dim=-1)
    return kl_div(log_softmax(student / temperature, dim=-1), target, reduction="batchmean") * temperature**2


def _precise(logits: Tensor) -> Tensor:
    """Return logits in float32 at least; which losses autocast computes so depends on the device."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_tensors(logits: Tensor, targets: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits: {given}; allowed: a tensor of shape (n, classes)")
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets: {type(targets).__name__}; allowed: a tensor")


def _check_scores(scores: Tensor) -> None:
    # A GPU would be waited for.
    if scores.device.type == "cpu" and scores.numel() and not 0 <= scores.min() <= scores.max() <= 1:
        raise ValueError(f"targets: scores of {scores.min():g} to {scores.max():g}; allowed: 0 to 1")


def _check_indices(logits: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets: {targets.dtype} of shape {tuple(targets.shape)} with logits of shape "
            f"{tuple(logits.shape)}; allowed: class indices of shape {tuple(logits.shape[:-1])}"
        )


def _counted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counted = targets != IGNORED
    logits, targets = _precise(logits[counted]), targets[counted].long()
    if not len(targets):
        raise ValueError(f"targets: all are {IGNORED}, nothing counts; allowed: at least one that does")
    # A GPU would be waited for.
    if targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        wrong = int(targets.max()) if int(targets.min()) >= 0 else int(targets.min())
        raise ValueError(f"targets: class {wrong}; allowed: 0 to {logits.shape[1] - 1}, or {IGNORED}")
    return logits, targets
