"""Blocks that are computed a second time in the backward pass instead of being remembered.

Only what enters a block is kept (Chen et al., 2016, arXiv 1604.06174): less memory, a third more work. In the
backward pass of one branch another one may be in place; transformers' own switch would compute with that one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .learner import Learner


def recompute_blocks(learner: Learner) -> None:
    """Have each block of a learner's model computed again in the backward pass, under its own branch.

    Raises
    ------
    ValueError
        Its model has no blocks that transformers would treat so.
    """
    blocks = [module for module in learner.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"gradient-checkpointing = true with {type(learner.model).__name__}, which has no blocks to"
            " compute again; allowed: false"
        )
    for block in blocks:
        setattr(block, "forward", _recomputed(block.forward, learner))  # noqa: B010


def _recomputed(forward: Callable[..., Any], learner: Learner) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        branch = learner.branch_in_place
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # branches draw nothing
            context_fn=lambda: (nullcontext(), learner.branch(branch)),
            **kwargs,
        )

    return again
