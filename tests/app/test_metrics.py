"""Scores by hand."""

import torch

from app.metrics import vqa_score


def test_the_first_choice_earns_its_score():
    logits = torch.tensor([[0.1, 2.0, -1.0], [5.0, -5.0, 4.9], [-3.0, -2.0, -1.0], [0.0, 1.0, 0.0]])
    scores = torch.tensor([[1.0, 0.3, 0.0], [0.6, 0.0, 1.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.0]])
    assert torch.equal(vqa_score(logits, scores), torch.tensor([0.3, 0.6, 0.9, 0.0]))


def test_one_hot_scores_give_accuracy():
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    one_hot = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert vqa_score(logits, one_hot).mean() == 0.75


def test_one_row_keeps_its_dimension():
    assert vqa_score(torch.tensor([[1.0]]), torch.tensor([[0.9]])).shape == (1,)
