"""Private answer heads: one per client, over the client's own answer list."""

import torch
from torch import Tensor, nn


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


def new_head(width: int, num_answers: int, seed: int) -> AnswerHead:
    """Make a head whose first weights are a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AnswerHead(width, num_answers)
