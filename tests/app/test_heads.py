"""The answer head: the published layers, and weights that are a function of the seed."""

import math

import pytest
import torch

from app.heads import AnswerHead, answer_with_new_head, new_head


def test_parameters_have_the_published_names_and_shapes():
    assert {name: tuple(p.shape) for name, p in AnswerHead(6, 5).named_parameters()} == {
        "clf_fc0.weight": (12, 6),
        "clf_fc0.bias": (12,),
        "clf_norm0.weight": (12,),
        "clf_norm0.bias": (12,),
        "clf_fc1.weight": (5, 12),
        "clf_fc1.bias": (5,),
    }


def test_logits_by_hand():
    head = AnswerHead(1, 2)
    with torch.no_grad():
        head.clf_fc0.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.clf_fc0.bias.zero_()
        head.clf_fc1.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
        head.clf_fc1.bias.copy_(torch.tensor([0.0, 10.0]))
    # 3 → (3, -3) → normed (1, -1) → GELU x·Φ(x): (Φ(1), -Φ(-1)).
    phi = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    expected = [[phi, 2 * phi + (1 - phi) + 10]]
    assert head(torch.tensor([[3.0]])).tolist() == [pytest.approx(expected[0], abs=1e-5)]


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first, drawn = new_head(4, 3, seed=5), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the caller's generator is left alone
    again, other = new_head(4, 3, seed=5), new_head(4, 3, seed=6)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.clf_fc0.weight, other.clf_fc0.weight)


def test_a_shared_head_is_linear_and_a_function_of_the_seed():
    heads = [new_head(6, 5, seed, "shared") for seed in (0, 0, 1)]
    assert {name: tuple(p.shape) for name, p in heads[0].named_parameters()} == {
        "weight": (5, 6),
        "bias": (5,),
    }
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_a_head_travels_by_the_name_of_classifier_and_a_private_one_stays(dual):
    adapter = dual()
    names = set(adapter.state("shared"))
    head = answer_with_new_head(adapter, 32, 3, 0, "shared")
    arrays = adapter.shared()
    assert set(arrays) - names == {"classifier.weight", "classifier.bias"}
    assert not any(name.startswith("head.") for name in adapter.private())
    with torch.no_grad():
        head.weight += 1  # what was sent stays as it was
    assert not torch.equal(arrays["classifier.weight"], head.weight)
    adapter.receive(arrays)
    assert torch.equal(arrays["classifier.weight"], head.weight)
    answer_with_new_head(adapter, 32, 3, 0, "private")
    assert set(adapter.shared()) == names
    assert "head.clf_fc1.weight" in adapter.private()
