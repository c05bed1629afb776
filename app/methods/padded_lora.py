"""Zero padding: adapters of unequal ranks are filled with zeros, and their matrices averaged. The naive way.

So Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
arXiv 2401.06432, but for their weights by sparsity and their pruning of ranks.
"""

from collections.abc import Sequence

import torch

from .adapter import SharedAdapter
from .unequal_ranks import Pair, UnequalRanks


class PaddedLoRA(UnequalRanks, SharedAdapter):
    """A shared LoRA and the head."""

    name = "padded-lora"

    def mean(self, pairs: Sequence[Pair], shares: Sequence[float], sent: Pair) -> Pair:
        """Average B, and average A."""
        new_b, new_a = torch.zeros_like(sent[0]), torch.zeros_like(sent[1])
        for share, (b, a) in zip(shares, pairs, strict=True):
            new_b[:, : b.shape[1]] += share * b
            new_a[: len(a)] += share * a
        return new_b, new_a
