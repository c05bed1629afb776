"""Scores of answers."""

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
