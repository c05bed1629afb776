"""A target in which what the teacher model says and what the clients know count by measured reliability.

Ours, not published: alignment to the teacher model alone makes the global model forget what its clients know
better. A log-linear pool (Genest & Zidek, 1986, section 4.2) of both,

    q ∝ exp(a_c · log t_c + b_c · log p_c + d_c)    for each class c,

t the teacher model's distribution and p the aggregated model's before it is aligned, has a weight of each and
an offset per class. They are fitted on labelled held-out examples, which neither was trained on: a class that
the teacher model confuses gets a small a_c, one that the clients hardly have a small b_c, and the offsets
correct what both do too rarely.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from .public_pool import Pool

# How strongly the weights are held at one half each and the offsets at zero: few held-out examples a class.
_PRIOR = 0.02
_FLOOR = 1e-4


def pooled_target(
    train: Pool, held_out: Pool, train_logits: Tensor, held_out_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit the pool on held-out examples and return q for both parts.

    Parameters
    ----------
    train, held_out : Pool
        Public examples with the teacher model's distributions; `held_out` has labels.
    train_logits, held_out_logits : Tensor
        What the aggregated model says of each, shape (examples, answers).

    Returns
    -------
    tuple
        Two distributions (examples, answers). Where the teacher model abstained the clients' stands alone.
    """
    classes = held_out.target.shape[1]
    weights = torch.full((2, classes), 0.5, requires_grad=True)
    offsets = torch.zeros(classes, requires_grad=True)
    labelled = held_out.labels >= 0
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=100, line_search_fn="strong_wolfe")

    def pool(part: Pool, logits: Tensor) -> Tensor:
        own = logits.log_softmax(1).clamp_min(torch.tensor(_FLOOR).log())
        # A teacher model that abstained says nothing: no class is more likely than another.
        said = part.target.clamp_min(_FLOOR).log() * (part.target.sum(1, keepdim=True) > 0)
        return weights[0] * said + weights[1] * own + offsets

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = cross_entropy(pool(held_out, held_out_logits)[labelled], held_out.labels[labelled])
        held = fit + _PRIOR * ((weights - 0.5).square().sum() + offsets.square().sum())
        held.backward()
        return held

    optimizer.step(loss)
    with torch.no_grad():
        return softmax(pool(train, train_logits), 1), softmax(pool(held_out, held_out_logits), 1)
