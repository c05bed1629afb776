"""Scores of answers, and views of them over clients."""

from collections.abc import Mapping

from torch import Tensor


def vqa_score(logits: Tensor, scores: Tensor) -> Tensor:
    """Score the first choice of each row: what the given answer is worth, in [0, 1].

    Parameters
    ----------
    logits, scores : Tensor
        Shape (examples, answers). With one-hot scores this is accuracy; a row without any score above 0
        cannot be answered and counts as 0.

    Returns
    -------
    Tensor
        Shape (examples,).
    """
    return scores.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)


def over_clients(scores: Mapping[int, float]) -> dict[str, float]:
    """Return ``mean`` and ``worst`` of the clients' scores, each client counting the same."""
    return {"mean": sum(scores.values()) / len(scores), "worst": min(scores.values())}
