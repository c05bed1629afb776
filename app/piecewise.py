"""Logits over a vocabulary that are never there as a whole.

An answer of eight tokens has logits over 150,000 words; with their softmax and both gradients, for two
branches, they would be most of a step's memory. What is asked of logits is a mean over their rows: it is
computed some rows at a time, together with its gradient, so that no row's logits are made twice (as in
Liger's fused linear cross-entropy: Hsu et al., 2024, arXiv 2410.10989).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Logits at a time: 4 MB of float32.
PIECE = 2**20


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

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.head(self.hidden[rows])

    def detach(self) -> "PiecewiseLogits":
        """Return them as constants."""
        return PiecewiseLogits(self.hidden.detach(), self.head, self.shape[1])

    def pieces(self) -> Sequence[Tensor]:
        """Return which rows are computed at a time."""
        return torch.arange(len(self), device=self.hidden.device).split(max(1, PIECE // self.shape[1]))

    def mean(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Compute the mean over all rows of a function that gives the mean over those it is given.

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
        ctx: Any, hidden: Tensor, logits: PiecewiseLogits, function: Callable[..., Tensor], others: Any
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total, gradient = torch.zeros((), device=hidden.device), torch.zeros_like(hidden) if wanted else None
        for rows in logits.pieces():
            piece = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                # A view, for what hooks modules, such as torch's counter of FLOPs, cannot take a leaf here.
                share = function(logits.head(piece.view_as(piece)), *(other[rows] for other in others))
                share = share * (len(rows) / len(hidden))
            if gradient is not None:
                gradient[rows] = torch.autograd.grad(share, piece)[0]
            total = total + share.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.gradient * grad, None, None, None


def logits_of(hidden: Tensor, head: Callable[[Tensor], Tensor], classes: int) -> Any:
    """Return the logits (n, classes) of hidden states: where they are few, as a tensor."""
    return head(hidden) if len(hidden) * classes <= PIECE else PiecewiseLogits(hidden, head, classes)
