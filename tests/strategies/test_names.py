"""What stays with a client: named by the host, or by the names that this project gives."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from strategies import Checked, FedDAT
from strategies.names import is_named

SHARED, HEAD = "model.query.lora_A.weight", "model.classifier.weight"


def initial(*names):
    return ArrayRecord({name: Array(np.zeros(2, np.float32)) for name in names})


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("a.classifier.weight", ["classifier"], True),
        ("classifier", ["classifier"], True),
        ("a.decoder.out.weight", ["decoder.out"], True),
        ("a.decoder.x.out.weight", ["decoder.out"], False),
        ("a.my_classifier.weight", ["classifier"], False),
        ("a.classifier.weight", ["classifier.weight.x"], False),
        ("a.b", [], False),
    ],
)
def test_a_name_is_parts_in_a_row(name, wanted, found):
    assert is_named(name, wanted) == found


def test_what_is_named_is_neither_sent_nor_in_the_result_and_that_is_said_once(federation, caplog):
    grid = federation()
    with caplog.at_level(logging.INFO):
        strategy = FedDAT(flower.FedAvg(), private=["classifier"])
        result = strategy.start(grid, initial(SHARED, HEAD), num_rounds=2)
    assert {tuple(m.content["arrays"]) for m in grid.sent if "arrays" in m.content} == {(SHARED,)}
    assert list(result.arrays) == [SHARED]
    assert [text for text in caplog.messages if "private" in text] == [f"private, and not sent: {HEAD}"]


def test_a_name_that_nothing_has_is_said(federation, caplog):
    FedDAT(flower.FedAvg(), private=["clasifier"]).start(federation(), initial(SHARED), num_rounds=1)
    assert "private: no array is named 'clasifier'" in caplog.messages


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_reply_with_what_is_named_is_refused_and_others_count(toy, federation, phase):
    notes, grid = toy.Notes(), federation()

    def leak(content):
        if ("arrays" in content) == (phase == "train"):
            arrays = dict(content.array_records.get("arrays", {}))
            content["arrays"] = ArrayRecord({**arrays, HEAD: Array(np.ones(2, np.float32))})
        return content

    grid.nodes[30].alter = leak
    strategy = FedDAT(flower.FedAvg(), private=["classifier"], observers=[notes])
    result = strategy.start(grid, initial(SHARED, HEAD), num_rounds=1)
    refused = [note for note in notes if isinstance(note[3], str)]
    assert refused == [(1, phase, 2, f"array '{HEAD}' has a private name")]
    assert list(result.arrays) == [SHARED]
    assert result.train_metrics_clientapp[1]
    assert result.evaluate_metrics_clientapp[1]


def test_a_strategy_that_sends_what_is_named_all_the_same_is_stopped(federation):
    class Keeps(flower.FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            return super().configure_train(server_round, initial(*arrays, HEAD), config, grid)

    grid = federation()
    with pytest.raises(ValueError, match=f"array '{HEAD}' is private, and may not be sent"):
        FedDAT(Keeps(), private=["classifier"]).start(grid, initial(SHARED, HEAD), num_rounds=1)
    assert grid.asked("train") == []


def test_a_host_that_trains_a_head_alone_says_so(federation):
    """The heads of timm and torchvision are named ``head``; nothing private is an empty list."""
    with pytest.raises(ValueError, match=r"array 'head\.weight' is private"):
        FedDAT(flower.FedAvg()).start(federation(), initial("head.weight"), num_rounds=1)
    result = FedDAT(flower.FedAvg(), private=()).start(federation(), initial("head.weight"), num_rounds=1)
    assert list(result.arrays) == ["head.weight"]
    assert result.evaluate_metrics_clientapp[1]


@pytest.mark.parametrize("name", ["a.local.b", "frozen.a"])
def test_adapters_of_ones_own_never_travel(federation, name):
    with pytest.raises(ValueError, match=f"array '{name}' is private"):
        FedDAT(flower.FedAvg(), private=()).start(federation(), initial(SHARED, name), num_rounds=1)


@pytest.mark.parametrize("private", ["classifier", [""], [".head"], [3], [None]])
def test_names_that_are_none_are_refused(private):
    with pytest.raises(ValueError, match=r"private is .*; allowed: parts of names in a list"):
        FedDAT(flower.FedAvg(), private=private)


@pytest.mark.parametrize("weighting", [None, "num-examples"])
def test_evaluations_that_carry_arrays_count_as_in_flower(toy, federation, weighting):
    def with_arrays(content):
        if "arrays" not in content:
            content["weights"] = initial("anything", "of.any", "name")
            content["more"] = initial("x")
        return content

    grid, plain = federation(), federation()
    for client in grid.nodes.values():
        client.alter = with_arrays
    result = FedDAT(flower.FedAvg(), weighting=weighting).start(grid, initial(SHARED), num_rounds=1)
    expected = flower.FedAvg(min_available_nodes=4).start(plain, initial(SHARED), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1] == pytest.approx(dict(expected.evaluate_metrics_clientapp[1]))


def test_a_federation_without_the_papers_rule_lets_every_name_travel(federation):
    names = ("head.weight", "a.local.b", SHARED)
    assert list(Checked(flower.FedAvg()).start(federation(), initial(*names), 1).arrays) == list(names)


@pytest.mark.parametrize("kind", [flower.FedXgbBagging, flower.FedXgbCyclic])
def test_trees_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} collects trees, not arrays of one shape"):
        FedDAT(kind())
