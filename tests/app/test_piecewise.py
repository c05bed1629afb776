"""Logits that are computed some rows at a time: their means and gradients are those of all at once."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from app import piecewise
from app.piecewise import PiecewiseLogits, logits_of
from app.tasks import TASKS, divergence
from benchmarks.step import peak_memory
from tests.app.tiny_models import drawn

TASK = TASKS["next-token"]
WORDS, ROWS, WIDTH = 40, 7, 6


@pytest.fixture
def head():
    head = torch.nn.Linear(WIDTH, WORDS, bias=False).requires_grad_(False)
    head.weight.copy_(drawn(WORDS, WIDTH, seed=9))
    return head


@pytest.fixture(params=[1, 3, 7, 100])
def at_once(request, monkeypatch):
    """Compute so many rows at a time."""
    monkeypatch.setattr(piecewise, "PIECE", request.param * WORDS)
    return request.param


def both(head, seed=0):
    """Return hidden states twice, with their logits by pieces and as a tensor."""
    whole, parts = (drawn(ROWS, WIDTH, seed=seed).requires_grad_() for _ in range(2))
    return whole, head(whole), parts, PiecewiseLogits(parts, head, WORDS)


def test_losses_and_their_gradients_are_those_of_all_logits(head, at_once):
    whole, z, parts, pieces = both(head)
    _, other, _, other_pieces = both(head, seed=5)
    targets = torch.randint(WORDS, (ROWS,), generator=torch.Generator().manual_seed(3))
    expected = 0.7 * TASK.loss(z, targets) + 1.3 * divergence(z, other, 2.0)
    found = 0.7 * TASK.loss(pieces, targets) + 1.3 * divergence(pieces, other_pieces, 2.0)
    torch.testing.assert_close(found, expected)
    (2 * expected).backward()
    (2 * found).backward()
    torch.testing.assert_close(parts.grad, whole.grad)
    assert torch.equal(TASK.score(pieces, targets), TASK.score(z, targets))


def test_the_teacher_of_a_divergence_is_a_constant(head, at_once):
    _, _, student, z = both(head)
    _, _, teacher, other = both(head, seed=5)
    divergence(z, other, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None
    detached = z.detach()
    assert not TASK.loss(detached, torch.zeros(ROWS, dtype=torch.long)).requires_grad


def test_each_row_has_its_logits_made_once(head, monkeypatch):
    """One product forward and one for the gradient."""
    monkeypatch.setattr(piecewise, "PIECE", 2 * WORDS)
    _, _, parts, _ = both(head)
    pieces = PiecewiseLogits(parts, head, WORDS)
    with FlopCounterMode(display=False) as counter:
        pieces.mean(piecewise.cross_entropy, torch.zeros(ROWS, dtype=torch.long)).backward()
    assert counter.get_total_flops() == 2 * (2 * ROWS * WIDTH * WORDS)


def test_memory_is_that_of_a_piece_whatever_the_rows(monkeypatch):
    rows, width, words = 512, 8, 1000
    head = torch.nn.Linear(width, words, bias=False).requires_grad_(False)
    monkeypatch.setattr(piecewise, "PIECE", 8 * words)

    def most(wrap):
        hidden = drawn(rows, width).requires_grad_()
        targets = torch.zeros(rows, dtype=torch.long)
        return peak_memory(lambda: TASK.loss(wrap(hidden), targets).backward(), torch.device("cpu"))[0]

    pieces = most(lambda hidden: logits_of(hidden, head, words))
    whole = most(head)
    assert whole > 2 * 4 * rows * words
    other = drawn(rows, width, seed=1)

    def distil(hidden):
        student, teacher = (logits_of(of, head, words) for of in (hidden, other))
        return divergence(student, teacher, 2.0)

    hidden = drawn(rows, width).requires_grad_()
    distilled = peak_memory(lambda: distil(hidden).backward(), torch.device("cpu"))[0]
    beside = 4 * 4 * rows * width + 2**12
    assert pieces < 2 * 4 * 8 * words + beside
    assert distilled < 3 * 4 * 8 * words + beside


@pytest.mark.parametrize(("rows", "sizes"), [(6, [6]), (8, [4, 4]), (13, [5, 5, 3])])
def test_pieces_are_about_as_large(head, monkeypatch, rows, sizes):
    monkeypatch.setattr(piecewise, "PIECE", 6 * WORDS + 1)
    assert [len(piece) for piece in PiecewiseLogits(drawn(rows, WIDTH), head, WORDS).pieces()] == sizes


def test_logits_wider_than_a_piece_are_one_row_at_a_time(head, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", WORDS - 1)
    assert [len(piece) for piece in PiecewiseLogits(drawn(3, WIDTH), head, WORDS).pieces()] == [1, 1, 1]


def test_few_logits_are_a_tensor(head, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", 4 * 3 * WORDS)
    hidden = drawn(4, WIDTH)
    assert torch.equal(logits_of(hidden[:3], head, WORDS), head(hidden[:3]))
    assert isinstance(logits_of(hidden, head, WORDS), PiecewiseLogits)


class TestTokensAtAnswersAlone:
    targets = torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]])

    def test_rows_are_paired_with_targets_in_the_order_of_the_texts(self):
        logits = drawn(3, WORDS)
        found, told = TASK.pair(logits, self.targets)
        assert found is logits
        assert told.tolist() == [7, 8, 9]

    def test_they_are_those_of_all_positions(self):
        logits = drawn(2, 4, WORDS)
        rows, told = TASK.pair(logits, self.targets)
        assert torch.equal(rows, torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]))
        assert told.tolist() == [7, 8, 9]

    @pytest.mark.parametrize("rows", [2, 4])
    def test_a_row_too_few_or_too_many_is_refused(self, rows):
        with pytest.raises(ValueError, match=rf"loss = 'next-token' with logits of shape \({rows}, 40\)"):
            TASK.pair(drawn(rows, WORDS), self.targets)

    @pytest.mark.parametrize("shape", [(0, 40), (2, 4, 40)])
    def test_targets_that_tell_nothing_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"nothing counts|which are 0"):
            TASK.pair(drawn(*shape), torch.full((2, 4), -100))
