"""Alignment around any strategy, with an aligner that adds a number."""

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx

from strategies import FedDAT, MLLMAlignment

INNER = {
    "FedDAT": lambda: FedDAT(FedAvg(**ALL), weighting="uniform"),
    "FedAdam": lambda: FedAdam(**ALL),
    "FedProx": lambda: FedProx(**ALL, proximal_mu=0.1),
    "FedDAT of FedMedian": lambda: FedDAT(FedMedian(**ALL)),
}
ALL = {"min_train_nodes": 4, "min_evaluate_nodes": 4, "min_available_nodes": 4}


class Adding:
    """Add `amount` to every array; with 0 it gives back what it got."""

    def __init__(self, amount: float) -> None:
        self.amount, self.calls = amount, []

    def align(self, server_round, arrays):
        self.calls.append(server_round)
        if not self.amount:
            return arrays, {}
        # Other order, other dtype: the wrapper keeps those of the aggregate.
        moved = {name: Array(array.numpy().astype("float64") + self.amount) for name, array in arrays.items()}
        return ArrayRecord(dict(reversed(moved.items()))), {"ce": 0.5, "accepted": 1}


@pytest.mark.parametrize("inner", INNER)
def test_an_aligner_of_no_steps_changes_no_byte(federation, arrays, inner):
    random.seed(0)  # Flower's own strategies sample with it
    alone = INNER[inner]().start(federation(), arrays, num_rounds=3)
    random.seed(0)
    aligned = MLLMAlignment(INNER[inner](), Adding(0)).start(federation(), arrays, num_rounds=3)
    assert list(alone.arrays) == list(aligned.arrays)
    for name, array in alone.arrays.items():
        assert (array.data, array.dtype) == (aligned.arrays[name].data, aligned.arrays[name].dtype)
    assert alone.train_metrics_clientapp == aligned.train_metrics_clientapp


def test_what_was_aligned_is_sent_next_and_is_the_result(federation, arrays, toy):
    grid, aligner = federation(), Adding(10)
    result = MLLMAlignment(INNER["FedDAT"](), aligner).start(grid, arrays, num_rounds=2)
    # The clients add 3.625 in the mean, each round.
    assert toy.value(result) == 2 * (3.625 + 10)
    second = [m for m in grid.sent if m.metadata.message_type == "train"][-1]
    assert np.unique(second.content["arrays"]["x.a"].numpy()).tolist() == [13.625]
    assert aligner.calls == [1, 2]


@pytest.mark.parametrize(("every", "calls"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), ("end", [5])])
def test_it_aligns_when_it_was_told_to(federation, arrays, every, calls):
    aligner = Adding(1)
    MLLMAlignment(FedDAT(FedAvg(**ALL)), aligner, every, 5).start(federation(), arrays, num_rounds=5)
    assert aligner.calls == calls


def test_what_was_measured_joins_the_metrics(federation, arrays):
    result = MLLMAlignment(INNER["FedDAT"](), Adding(1)).start(federation(), arrays, num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["align/ce"] == 0.5
    assert metrics["align/accepted"] == 1
    # The mean of the partitions' scores, 0 to 0.3, is still there.
    assert metrics["score"] == pytest.approx(0.15)


def test_an_aggregate_of_nothing_is_passed_through(arrays):
    class Nothing(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    aligner = Adding(1)
    assert MLLMAlignment(Nothing(), aligner).aggregate_train(1, []) == (None, None)
    assert aligner.calls == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x.b": np.zeros((2, 2))}, "which arrays there are: x.a"),
        ({"x.b": np.zeros((2, 2)), "x.a": np.zeros(3)}, r"the shape of 'x.a' to \(3,\)"),
    ],
)
def test_an_aligner_that_changes_the_layout_is_refused(federation, arrays, changed, message):
    class Changing:
        def align(self, server_round, arrays):
            return ArrayRecord({name: Array(value) for name, value in changed.items()}), {}

    with pytest.raises(ValueError, match=message):
        MLLMAlignment(FedDAT(FedAvg(**ALL)), Changing()).start(federation(), arrays, num_rounds=1)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "never"])
def test_a_senseless_rhythm_is_refused(every):
    with pytest.raises(ValueError, match=r"every is .*; allowed: 1 or more, or 'end'"):
        MLLMAlignment(FedAvg(), Adding(1), every)


def test_at_the_end_of_nobody_knows_when_is_refused():
    with pytest.raises(ValueError, match="last_round is None"):
        MLLMAlignment(FedAvg(), Adding(1), "end")
