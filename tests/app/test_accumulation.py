"""One step for several batches, by hand."""

import pytest
import torch

from app.accumulation import Accumulation
from app.tasks import TASKS


def test_a_step_is_on_the_weighted_mean_and_only_on_what_had_gradients():
    first, second, third = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(3))
    gathering = Accumulation(torch.optim.SGD([first, second, third], lr=1.0))
    for weight, gradient in ((1, 2.0), (3, 6.0)):
        gathering.weigh(weight)
        # Two updates, each of a weight of its own.
        for parameter, factor in ((first, 1.0), (second, 10.0)):
            gathering.zero_grad()
            (factor * gradient * parameter).backward()
            gathering.step()
            assert [p.item() for p in (first, second, third)] == [1, 1, 1]
    gathering.finish()
    # (1 · 2 + 3 · 6) / 4 = 5
    assert [p.item() for p in (first, second, third)] == [1 - 5, 1 - 50, 1]
    assert third.grad is None


@pytest.mark.parametrize(
    ("loss", "targets", "rows"),
    [
        ("bce-scores", torch.rand(5, 3), 5),
        ("bce-scores", torch.rand(2, 4, 3), 8),
        ("cross-entropy", torch.tensor([1, -100, 0, -100]), 2),
        (
            "next-token",
            torch.tensor([[7, -100, 5, 6], [-100, 9, -100, -100]]),
            3,
        ),  # the first of a text is not told
    ],
)
def test_a_batch_counts_what_its_loss_is_the_mean_of(loss, targets, rows):
    task = TASKS[loss]
    assert task.count(targets) == rows
    shape = targets.shape if targets.is_floating_point() else (*targets.shape, 10)
    assert len(task.pair(torch.rand(shape), targets)[1]) == rows
