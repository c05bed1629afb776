"""Answer heads: a client's own over its own answer list, or one for all clients that travels.

Of other kinds nothing is trained: a family that answers by the answers' texts has no head, see
`families.Family.answering_by`.
"""

import torch
from torch import Tensor, nn

from .learner import Learner

# Kinds of heads that are trained, as the setting `head` names them.
TRAINED_HEADS = ("private", "shared")


class AnswerHead(nn.Module):
    """Linear d → 2d, LayerNorm, GELU, Linear 2d → answers (FedDAT, Chen et al., AAAI 2024, published code).

    Parameters
    ----------
    width : int
        Width d of the backbone's features.
    num_answers : int
        Number of answers.
    """

    def __init__(self, width: int, num_answers: int) -> None:
        super().__init__()
        self.clf_fc0 = nn.Linear(width, 2 * width)
        self.clf_norm0 = nn.LayerNorm(2 * width)
        self.clf_fc1 = nn.Linear(2 * width, num_answers)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, width) to logits (batch, answers)."""
        return self.clf_fc1(nn.functional.gelu(self.clf_norm0(self.clf_fc0(features))))


def new_head(width: int, num_answers: int, seed: int, kind: str = "private") -> nn.Module:
    """Make a head, `"private"` or `"shared"`, whose first weights are a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, num_answers) if kind == "shared" else AnswerHead(width, num_answers)


def answer_with_new_head(
    learner: Learner, width: int, num_answers: int, seed: int, kind: str
) -> nn.Module | None:
    """Give a learner a new head, and return it; one of the kind `"shared"` travels.

    None of a kind that is not trained: then the learner's features are the logits.
    """
    head = new_head(width, num_answers, seed, kind) if kind in TRAINED_HEADS else None
    learner.answer_with(head, travels=kind == "shared")
    return head
