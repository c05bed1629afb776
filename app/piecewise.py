"""Logits over a vocabulary that are never there as a whole.

An answer of eight tokens has logits over 150,000 words; with their softmax and both gradients, for two
branches, they would be most of a step's memory. What is asked of logits is a mean over their rows: it is
computed some rows at a time, together with its gradient, in as few tensors as it can be (as in Liger's fused
linear cross-entropy: Hsu et al., 2024, arXiv 2410.10989).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

# Logits at a time: 4 MB of float32.
PIECE = 2**20
# Takes logits (rows, classes), which it may write over, and what belongs to them; gives its mean over the
# rows, and that mean's gradient.
MeanWithGradient = Callable[..., tuple[Tensor, Tensor]]


class PiecewiseLogits:
    """Logits (n, classes) by what they are made of.

    Parameters
    ----------
    hidden : Tensor
        Shape (n, width).
    head : callable
        Makes logits (rows, classes) of some of its rows. Its own weights get no gradient.
    classes : int
        Logits a row.
    """

    def __init__(self, hidden: Tensor, head: Callable[[Tensor], Tensor], classes: int) -> None:
        self.hidden, self.head, self.shape = hidden, head, (len(hidden), classes)

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        return self.hidden.device

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.head(self.hidden[rows])

    def detach(self) -> "PiecewiseLogits":
        """Return them as constants."""
        return PiecewiseLogits(self.hidden.detach(), self.head, self.shape[1])

    def pieces(self) -> Sequence[Tensor]:
        """Return which rows are computed at a time."""
        most = max(1, PIECE // self.shape[1])
        return torch.arange(len(self), device=self.hidden.device).chunk(-(-len(self) // most))

    def mean(self, function: MeanWithGradient, *others: Any) -> Tensor:
        """Compute the mean over all rows of a function, given with its gradient.

        Parameters
        ----------
        function : callable
            Takes logits (rows, classes) and those rows of each of `others`, which are constants.
        """
        return _Mean.apply(self.hidden, self, function, others)  # type: ignore[no-any-return]

    def each(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Compute what a function gives for each row, (n,); no gradient passes."""
        with torch.no_grad():
            found = (function(self[rows], *(other[rows] for other in others)) for rows in self.pieces())
            return torch.cat(list(found))


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, logits: PiecewiseLogits, function: MeanWithGradient, others: Any
    ) -> Tensor:
        total, gradient = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for rows in logits.pieces():
            piece = hidden[rows].detach().requires_grad_()
            with torch.enable_grad():
                # A view, for what hooks modules, such as torch's counter of FLOPs, cannot take a leaf here.
                made = logits.head(piece.view_as(piece))
            share, slope = function(made.detach(), *(other[rows] for other in others))
            part = len(rows) / len(hidden)
            total = total + share * part
            if ctx.needs_input_grad[0]:
                gradient[rows] = torch.autograd.grad(made, piece, slope)[0] * part
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.gradient * grad, None, None, None


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy with class indices (rows,), mean over the rows, and its gradient."""
    logs = log_softmax(logits, dim=1)
    loss = nll_loss(logs, targets)
    slope = logs.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1
    return loss, slope.div_(len(targets))


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute T² · KL(teacher ‖ student) as `tasks.divergence`, and its gradient; both are written over."""
    for logits in (student, teacher):
        logits.copy_(log_softmax(logits.div_(temperature), dim=1))
    shares = teacher.exp()
    scale = temperature / len(student)
    loss = teacher.sub_(student).mul_(shares).sum() * (temperature * scale)
    return loss, student.exp_().sub_(shares).mul_(scale)


def logits_of(hidden: Tensor, head: Callable[[Tensor], Tensor], classes: int) -> Any:
    """Return the logits (n, classes) of hidden states: where they are few, as a tensor."""
    return head(hidden) if len(hidden) * classes <= PIECE // 4 else PiecewiseLogits(hidden, head, classes)
