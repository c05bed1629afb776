"""The pooled target follows whoever is right, class by class."""

import torch
from torch.nn.functional import one_hot

from app.examples import Examples
from server_app.pooled_target import pooled_target
from server_app.public_pool import Pool

# The examples themselves are not looked at.
NO_EXAMPLES = Examples(*(torch.empty(0) for _ in range(5)))


def say(answers: torch.Tensor, sure: float = 0.9) -> torch.Tensor:
    """Return distributions over four classes that favour the given answers."""
    return (1 - sure) / 3 + (sure - (1 - sure) / 3) * one_hot(answers, 4).float()


def pools(num: int = 400):
    """Of classes 0 and 1 the teacher model knows all, of 2 and 3 the clients; the other tosses a coin."""
    made = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(num) % 4
        within_pair = labels // 2 * 2 + torch.randint(0, 2, (num,), generator=generator)
        teacher = torch.where(labels < 2, labels, within_pair)
        clients = torch.where(labels < 2, within_pair, labels)
        made.append((Pool(("a", "b", "c", "d"), NO_EXAMPLES, labels, say(teacher)), say(clients).log()))
    return made


def test_it_is_right_where_either_is_and_better_than_both():
    (train, train_logits), (held_out, held_out_logits) = pools()
    target, _ = pooled_target(train, held_out, train_logits, held_out_logits)
    torch.testing.assert_close(target.sum(1), torch.ones(len(target)))
    right = [(x.argmax(1) == train.labels).float().mean() for x in (train.target, train_logits, target)]
    # Each alone: all of one half, and one in two of the other.
    assert 0.7 < right[0] < 0.8
    assert 0.7 < right[1] < 0.8
    assert right[2] > 0.97


def test_where_the_teacher_model_abstains_the_clients_stand_alone():
    (train, train_logits), (held_out, held_out_logits) = pools()
    silent = Pool(("a", "b", "c", "d"), NO_EXAMPLES, train.labels, torch.zeros_like(train.target))
    target, _ = pooled_target(silent, held_out, train_logits, held_out_logits)
    torch.testing.assert_close(target.sum(1), torch.ones(len(target)))
    sure = train.labels >= 2
    assert (target.argmax(1) == train_logits.argmax(1))[sure].float().mean() > 0.97


def test_a_teacher_model_that_is_too_sure_is_cooled():
    labels = torch.arange(400) % 4
    generator = torch.Generator().manual_seed(0)
    # Right in 70 of 100 cases, and 99.9 % sure of all.
    answers = torch.where(torch.rand(400, generator=generator) < 0.7, labels, (labels + 1) % 4)
    pool = Pool(("a", "b", "c", "d"), NO_EXAMPLES, labels, say(answers, 0.999))
    target, _ = pooled_target(pool, pool, torch.zeros(400, 4), torch.zeros(400, 4))
    assert 0.6 < target.max(1).values.mean() < 0.8
