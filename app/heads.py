"""Answer heads: a client's own over its own answer list, or one for all clients that travels.

A head that travels is linear, and goes by the name of ``classifier`` among the shared arrays.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CLASSIFIER = "classifier."


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


def with_classifier(shared: Mapping[str, Tensor], head: nn.Module) -> dict[str, Tensor]:
    """Add a head that travels to the shared arrays."""
    return {**shared, **{CLASSIFIER + name: v.detach().clone() for name, v in head.state_dict().items()}}


def split_classifier(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part the arrays into those without the head, and the head's state (empty if it does not travel)."""
    head = {n.removeprefix(CLASSIFIER): v for n, v in arrays.items() if n.startswith(CLASSIFIER)}
    return {n: v for n, v in arrays.items() if not n.startswith(CLASSIFIER)}, head
