"""FlexLoRA: the mean of what clients' adapters add to a weight is exact, whatever their ranks.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv 2402.11505. The mean of the matrices A and that of the matrices B make no mean
of B·A. Here the server takes Σ wₖ BₖAₖ / Σ wₖ, and of its singular value decomposition U S Vᵀ what the run's
``lora-rank`` holds: B = U S, A = Vᵀ. Nothing is cut off where that is the sum of the clients' ranks or more.
A client takes the first of it: the best approximation of its rank.
"""

from collections.abc import Sequence

import torch

from .adapter import SharedAdapter
from .feddat import FedDAT
from .unequal_ranks import Pair, UnequalRanks


class MeanOfUpdates(UnequalRanks):
    """The mean of B·A, decomposed again."""

    def mean(self, pairs: Sequence[Pair], shares: Sequence[float], sent: Pair) -> Pair:
        """Return B and A whose product is closest to Σ share · B·A.

        What the product does not need of the rank stays as A was, beside zeros in B: were both zero, no
        client could train it.
        """
        # Products side by side are one of factors with few columns: no (out, in) matrix is ever made.
        tall = torch.cat([share * b.double() for share, (b, _) in zip(shares, pairs, strict=True)], dim=1)
        wide = torch.cat([a.double() for _, a in pairs], dim=0)
        q_out, r_out = torch.linalg.qr(tall)
        q_in, r_in = torch.linalg.qr(wide.T)
        u, s, vt = torch.linalg.svd(r_out @ r_in.T)
        new_b, new_a = torch.zeros_like(sent[0]), sent[1].clone()
        kept = min(len(new_a), len(s))
        new_b[:, :kept] = (q_out @ u[:, :kept] * s[:kept]).to(new_b.dtype)
        new_a[:kept] = (vt[:kept] @ q_in.T).to(new_a.dtype)
        return new_b, new_a


class FlexLoRA(MeanOfUpdates, SharedAdapter):
    """A shared LoRA and the head."""

    name = "flexlora"


class FedDATFlexLoRA(MeanOfUpdates, FedDAT):
    """FedDAT, of LoRA."""

    name = "feddat-flexlora"
