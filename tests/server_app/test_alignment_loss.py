"""What an alignment minimises, by hand."""

import math

import pytest
import torch

from app.piecewise import PiecewiseLogits
from server_app.alignment_loss import Alignment, alignment_loss, text_loss
from tests.app.tiny_models import drawn

# At two tokens, of the words 0 to 3 the teacher model tells of two: they have 1/2 and 1/4, all others 1/4.
SAID = torch.tensor([[0.5, 0.25, 0.25]] * 2).log(), torch.tensor([[2, 0], [1, 3]])


def test_the_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    labels = torch.tensor([1, -1])
    target = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    losses = alignment_loss(logits, labels, target, Alignment(beta=2.0))
    # p = (1/4, 3/4), the second row has no label, and its teacher model abstained.
    ce, kl = -math.log(0.75), 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(torch.stack([losses.ce, losses.kl]), torch.tensor([ce, kl]))
    torch.testing.assert_close(losses.total, torch.tensor(ce + 2 * kl))


def test_temperature_softens_both_and_is_squared():
    logits, target = torch.tensor([[0.0, 2 * math.log(3.0)]]), torch.tensor([[0.9, 0.1]])
    loss = alignment_loss(logits, torch.tensor([-1]), target, Alignment(temperature=2.0))
    # At T = 2: q = (3/4, 1/4) for 0.9 : 0.1 = 3² : 1, p = (1/4, 3/4).
    kl = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    torch.testing.assert_close(loss.kl, torch.tensor(4 * kl))


def test_labels_or_the_teacher_model_can_be_left_out():
    logits, labels, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.full((4, 2), 0.5)
    both, without_labels, without_teacher = (
        alignment_loss(logits, labels, target, Alignment(**settings))
        for settings in ({}, {"labels": "none"}, {"beta": 0.0})
    )
    assert without_labels.ce == 0
    assert without_labels.total == without_labels.kl == both.kl
    assert without_teacher.total == without_teacher.ce == both.ce


def test_the_loss_of_texts_by_hand():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.125], [0.25, 0.25, 0.25, 0.25]]).log()
    losses = text_loss(logits, torch.tensor([0, 1]), SAID, Alignment(beta=2.0))
    # The model gives the told words 1/4, 1/2 and all others 1/4; then 1/4, 1/4, 1/2.
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    second = 0.5 * math.log(2) - 0.25 * math.log(2)
    ce, kl = (math.log(2) + math.log(4)) / 2, (first + second) / 2
    torch.testing.assert_close(torch.stack([losses.ce, losses.kl]), torch.tensor([ce, kl]))
    torch.testing.assert_close(losses.total, torch.tensor(ce + 2 * kl))


def test_temperature_softens_the_models_words_and_is_squared():
    logits = 2 * torch.tensor([[0.25, 0.125, 0.5, 0.125], [0.125, 0.5, 0.125, 0.25]]).log()
    losses = text_loss(logits, torch.tensor([0, 1]), SAID, Alignment(temperature=2.0))
    torch.testing.assert_close(losses.kl, torch.tensor(0.0))
    apart = text_loss(0 * logits, torch.tensor([0, 1]), SAID, Alignment(temperature=2.0))
    # All words alike, at any T: 1/4, 1/4 and 1/2 for 1/2, 1/4 and 1/4.
    torch.testing.assert_close(apart.kl, torch.tensor(4 * 0.25 * math.log(2)))


def test_without_the_teacher_models_words_there_is_no_kl():
    logits, told = drawn(2, 4, seed=0), torch.tensor([3, 1])
    losses = text_loss(logits, told, None, Alignment(beta=2.0))
    torch.testing.assert_close(losses.total, torch.nn.functional.cross_entropy(logits, told))
    assert losses.kl == 0


@pytest.mark.parametrize("words", [2, 4])
def test_pieces_give_the_same_loss_and_gradient(monkeypatch, words):
    """Also where the teacher model tells of all words, and no others are left."""
    monkeypatch.setattr("app.piecewise.PIECE", 4)
    weight, told = drawn(4, 3, seed=1), torch.tensor([0, 3])
    numbers = torch.arange(words).expand(2, -1)
    q = drawn(2, words + 1, seed=2)
    if words == 4:
        q[:, 4] = -1e4

    def head(hidden):
        return hidden @ weight.T

    found = []
    for pieces in (True, False):
        hidden = drawn(2, 3, seed=0).requires_grad_()
        logits = PiecewiseLogits(hidden, head, 4) if pieces else head(hidden)
        losses = text_loss(logits, told, (q.log_softmax(-1), numbers), Alignment(beta=2.0))
        losses.total.backward()
        assert hidden.grad.isfinite().all()
        found.append((*map(torch.Tensor.detach, vars(losses).values()), hidden.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
