"""What replies of a round say of each other: a change or a count far from the rest is refused."""

from math import inf, nan
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from strategies import FedDAT, Resumable
from strategies.outliers import absurd_counts, change, far_changes

SENT = ArrayRecord({"x": Array(np.float32([3, 4])), "y": Array(np.zeros(3, np.float32))})  # norm 5
VALUES = {name: array.numpy() for name, array in SENT.items()}


def test_a_change_is_the_norm_over_all_arrays():
    received = ArrayRecord({"y": Array(np.float32([0, 2, 0])), "x": Array(np.float32([4, 2]))})
    assert change(VALUES, received) == pytest.approx(3)  # 1, -2 and 2
    huge = ArrayRecord({"x": Array(np.float32([3e38, 4])), "y": SENT["y"]})
    assert change(VALUES, huge) == pytest.approx(3e38)
    tiny = ArrayRecord({"x": Array(np.float32([1e-30, 0]))})
    assert change({"x": np.zeros(2, np.float32)}, tiny) == pytest.approx(1e-30)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({0: 1.0, 1: 2.0, 2: 4.0}, set()),  # twice the median is still in
        ({0: 1.0, 1: 2.0, 2: 4.1}, {2}),
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 100.0, 4: 100.0}, {3, 4}),
        ({0: 0.001, 1: 0.001, 2: 0.01}, {2}),  # the median counts, not the norm of what was sent
        ({0: 9.9, 1: 0.1}, set()),  # of two, none is usual: twice what was sent
        ({0: 10.1, 1: 0.1}, {0}),
        ({0: 9.9}, set()),
        ({0: 10.1}, {0}),
        ({0: 0.0, 1: 0.0, 2: 9.9}, set()),  # half of them did nothing
        ({0: 0.0, 1: 0.0, 2: 10.1}, {2}),
        ({0: inf, 1: inf, 2: inf}, {0, 1, 2}),
        ({0: nan}, {0}),
        ({}, set()),
    ],
)
def test_twice_the_median_is_the_limit(changes, refused):
    assert far_changes(changes, SENT, 2.0).keys() == refused
    assert far_changes(changes, SENT, inf) == {}


def test_the_reason_has_both_numbers():
    reasons = far_changes({0: 1.0, 1: 1.5, 2: 1e6}, SENT, 10.0)
    assert reasons == {2: "changes the arrays by 1e+06 in norm, more than 15"}


def test_less_than_a_norm_of_one_was_sent():
    small = ArrayRecord({"x": Array(np.float32([0.3, 0.4]))})
    assert far_changes({0: 1.9}, small, 2.0) == {}
    assert far_changes({0: 2.1}, small, 2.0).keys() == {0}


@pytest.mark.parametrize(
    ("counts", "said", "refused"),
    [
        ({0: 10, 1: 12, 2: 12_000}, {}, {}),
        ({0: 10, 1: 12, 2: 12_001}, {}, {2: "counts 12001 examples, more than 1000 times 12"}),
        ({0: 10, 1: 10**15}, {}, {}),  # of two, none is usual
        ({0: 10, 1: 10**15}, {1: 7}, {1: "counts 1e+15 examples, more than 1000 times 7"}),
        ({0: 10, 1: 12, 2: 90_000}, {2: 100}, {}),  # what it said before counts more than the others
        ({0: 10, 1: 12, 2: 1}, {2: 10**6}, {}),  # less takes nothing from the others
    ],
)
def test_a_count_is_held_to_the_first_or_to_the_others(counts, said, refused):
    assert absurd_counts(counts, said) == refused


def grid_of(toy, steps, examples):
    return toy.Grid(
        {
            9 - p: toy.Client(p, step, count)
            for p, (step, count) in enumerate(zip(steps, examples, strict=True))
        }
    )


@pytest.mark.parametrize("inner", [flower.FedAvg, flower.FedMedian, flower.Krum])
def test_a_poisoning_minority_does_not_reach_any_strategy(toy, arrays, inner):
    """Five honest clients with a step of 1, two with the step of the other sign a hundred times as far."""
    notes = toy.Notes()
    grid = grid_of(toy, [1, -100, 1, 1, -100, 1, 1], [1] * 7)
    result = FedDAT(inner(), max_change=10, observer=notes).start(grid, arrays, num_rounds=2)
    assert toy.value(result) == 2
    refused = [(note[0], note[2]) for note in notes if isinstance(note[3], str)]
    assert refused == [(1, 1), (1, 4), (2, 1), (2, 4)]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_says_it_has_ever_more_examples_is_refused(toy, arrays, resumed):
    """Its first word counts, even if the server did not live to hear the last."""
    notes, grid = toy.Notes(), grid_of(toy, [1, 3], [5, 5])
    liar, counts = grid.nodes[8], iter([5, 4000, 6000])

    def alter(content):
        if "arrays" in content:
            content["metrics"]["num-examples"] = next(counts)
        return content

    liar.alter = alter
    checkpoints = []
    store = SimpleNamespace(save=checkpoints.append)
    for num_rounds in (2, 3) if resumed else (3,):
        strategy = FedDAT(flower.FedAvg(), weighting="num-examples", observer=notes)
        last = checkpoints[-1] if checkpoints else None
        Resumable(strategy, store, last).start(grid, arrays, num_rounds)
    refused = [note for note in notes if isinstance(note[3], str)]
    assert refused == [(3, "train", 1, "counts 6000 examples, more than 1000 times 5")]
