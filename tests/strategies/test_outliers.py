"""What replies of a round say of each other: what is larger than usual is clipped, what is absurd refused."""

from math import inf, nan, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import strategy as flower

from strategies import FedDAT, Limits, Resumable, central_privacy
from strategies.outliers import absurd_counts, changes, clipped, far_changes, most_counted, usual_norms
from strategies.privacy import CENTRAL

SENT = ArrayRecord({"x": Array(np.float32([3, 4])), "y": Array(np.zeros(3, np.float32))})  # norm 5
VALUES = {name: array.numpy() for name, array in SENT.items()}


def test_a_change_has_a_norm_for_each_array():
    received = ArrayRecord({"y": Array(np.float32([0, 2, 0])), "x": Array(np.float32([4, 2]))})
    assert changes(VALUES, received) == pytest.approx({"x": sqrt(5), "y": 2})  # 1 and -2; 2
    huge = ArrayRecord({"x": Array(np.float32([3e38, 4])), "y": SENT["y"]})
    assert changes(VALUES, huge) == pytest.approx({"x": 3e38, "y": 0})
    tiny = ArrayRecord({"x": Array(np.float32([1e-30, 0]))})
    assert changes({"x": np.zeros(2, np.float32)}, tiny) == pytest.approx({"x": 1e-30})


@pytest.mark.parametrize(
    ("sizes", "refused"),
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
def test_twice_the_median_is_the_limit(sizes, refused):
    assert far_changes(sizes, SENT, 2.0).keys() == refused
    assert far_changes(sizes, SENT, inf) == {}


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
    result = FedDAT(inner(), limits=Limits(max_change=10), observers=[notes]).start(
        grid, arrays, num_rounds=2
    )
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
        strategy = FedDAT(flower.FedAvg(), weighting="num-examples", observers=[notes])
        last = checkpoints[-1] if checkpoints else None
        Resumable(strategy, store, last).start(grid, arrays, num_rounds)
    refused = [note for note in notes if isinstance(note[3], str)]
    assert refused == [(3, "train", 1, "counts 6000 examples, more than 1000 times 5")]


# --- Clipping ---


@pytest.mark.parametrize(
    ("norms", "usual"),
    [
        ([1.0, 2.0, 4.0], 2.0),
        ([4.0, 1.0], 1.0),  # of two the smaller
        ([3.0], 3.0),
        ([1.0, 2.0, 1e6, 1e6], 2.0),  # half of them cannot raise it
        ([1e-6, 1.0, 2.0, 3.0, 4.0, 5.0, 1e6], 3.0),
        ([1e-6, 1e-6, 1.0, 2.0, 3.0, 4.0, 5.0], 2.0),  # two of seven that lower it leave it an honest one's
        ([0.0, 0.0, 0.0, 2.0, 3.0], 2.0),  # who changes nothing has no say
        ([1.0, 1.0, inf], 1.0),
    ],
)
def test_usual_is_the_lower_median_of_those_that_change_something(norms, usual):
    assert usual_norms([{"x": norm} for norm in norms]) == {"x": usual}


@pytest.mark.parametrize(
    ("norms", "missing", "usual"),
    [
        ([1.0, 9.0, 9.0], 1, 1.0),  # of four asked two attack, and one of the honest is gone
        ([1.0, 2.0, 3.0, 4.0, 9.0, 9.0], 1, 3.0),
        ([1.0, 2.0, 9.0, 9.0], 3, 1.0),
        ([1.0, 9.0, 9.0], 4, 1.0),  # the median is of one that is gone: the least there is
        ([0.0, 1.0, 9.0, 9.0], 0, 1.0),  # who changes nothing is as good as gone
        ([2.0], 1, 2.0),
    ],
)
def test_who_is_missing_counts_as_one_that_changes_nothing(norms, missing, usual):
    assert usual_norms([{"x": norm} for norm in norms], missing) == {"x": usual}


def test_an_array_that_most_leave_as_it_is_does_not_change():
    assert usual_norms([{"x": 1.0, "y": 0.0}, {"x": 2.0, "y": 0.0}, {"x": 3.0, "y": 9.0}]) == {
        "x": 2.0,
        "y": 0.0,
    }
    assert usual_norms([{"x": 0.0}, {"x": 0.0}]) == {"x": 0.0}
    assert usual_norms([]) == {}


def clip(sent, received, **limits):
    values = {name: np.asarray(value) for name, value in sent.items()}
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in received.items()})
    return clipped(values, record, changes(values, record), limits), record


def test_a_change_is_scaled_down_to_its_limit_by_hand():
    sent = {"x": np.float32([3, 4]), "y": np.float32([1])}
    # x changes by (3, 4), of norm 5, y by 1: √26 together; (1.5, 2) and 1 are left, √7.25.
    (kept, factor), record = clip(sent, {"x": np.float32([6, 8]), "y": np.float32([2])}, x=2.5, y=1.0)
    assert kept["x"].numpy().tolist() == [4.5, 6.0]
    assert kept["y"] is record["y"]
    assert factor == pytest.approx(sqrt(7.25 / 26))
    assert record["x"].numpy().tolist() == [6, 8]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "complex64"])
def test_what_is_clipped_has_the_dtype_that_was_sent(dtype):
    (kept, factor), _ = clip({"x": np.array([1, 1], dtype)}, {"x": np.array([1, 9], dtype)}, x=2.0)
    assert (kept["x"].dtype, kept["x"].numpy().tolist()) == (dtype, [1, 3])
    assert factor == pytest.approx(0.25)


def test_a_single_value_and_none_at_all_are_arrays_too():
    (kept, _), _ = clip({"x": np.float32(1)}, {"x": np.float32(5)}, x=2.0)
    assert (kept["x"].shape, kept["x"].numpy()) == ((), 3)
    (kept, factor), _ = clip({"x": np.zeros(0)}, {"x": np.zeros(0)}, x=0.0)
    assert (kept["x"].shape, factor) == ((0,), 1)


@pytest.mark.parametrize("huge", [1e308, -1e308])
def test_nothing_is_left_of_a_change_that_has_no_norm(huge):
    (kept, factor), _ = clip({"x": np.array([-huge, 2.0])}, {"x": np.array([huge, 2.0])}, x=1.0)
    assert kept["x"].numpy().tolist() == [-huge, 2]
    assert factor == 0


def clipping(inner=flower.FedAvg, **keywords):
    return FedDAT(inner(), limits=Limits(clip_change=1.0), **keywords)


HONEST = [1, 2, 3, 4, 5]


def assert_value(result, value):
    """Check that all values are one number, but for rounding."""
    for array in result.arrays.values():
        np.testing.assert_allclose(array.numpy(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [-1.0, -1.9, -3.5, -9.0, -1e6, 1e6])
def test_two_of_seven_count_as_much_as_is_usual_however_far_they_go(toy, arrays, factor):
    """Sorted by size the honest steps are 1 to 5 and two are above them: 4 is usual, by hand."""
    steps = [*HONEST, 5 * factor, 5 * factor]
    result = clipping().start(grid_of(toy, steps, [1] * 7), arrays, num_rounds=1)
    assert_value(result, (1 + 2 + 3 + 4 + 4 + 2 * np.sign(factor) * 4) / 7)


@pytest.mark.parametrize(
    "fails", [lambda content: "an error", lambda content: None, lambda content: RecordDict()]
)
@pytest.mark.parametrize("lost", range(3))
def test_half_of_those_asked_move_no_array_further_than_the_honest_whoever_fails(toy, arrays, lost, fails):
    """Honest steps of 1, 2 and 3, of which `lost` fail, the largest first, and three far ones."""
    grid = grid_of(toy, [1, 2, 3, 1e3, 1e3, 1e3], [1] * 6)
    for partition in range(3 - lost, 3):
        grid.nodes[9 - partition].alter = fails
    limits = Limits(max_change=10.0, clip_change=1.0)
    result = FedDAT(flower.FedAvg(), limits=limits).start(grid, arrays, num_rounds=1)
    left = range(1, 4 - lost)
    assert toy.value(result) <= (sum(left) + 3 * max(left)) / (6 - lost) * (1 + 1e-6)


def test_an_honest_reply_that_is_refused_as_far_from_small_ones_still_bounds_them(toy, arrays):
    """Two of four keep small, and put it all where the honest one that is left changes least; one failed."""
    grid = grid_of(toy, [1.0, 1.0, 0.01, 0.01], [1] * 4)
    grid.nodes[9].alter = lambda content: None

    def alter(content):
        if "arrays" in content:
            content["arrays"]["x.a"] = Array(np.full(2, 1e-4, np.float32))
        return content

    grid.nodes[8].alter = alter
    limits = Limits(max_change=10.0, clip_change=1.0)
    result = FedDAT(flower.FedAvg(), limits=limits).start(grid, arrays, num_rounds=1)
    np.testing.assert_allclose(result.arrays["x.a"].numpy(), 1e-4, rtol=1e-4)


def test_a_lowered_median_lowers_what_an_attacker_can_do(toy, arrays):
    result = clipping().start(grid_of(toy, [*HONEST, 1e-6, -100], [1] * 7), arrays, num_rounds=1)
    assert_value(result, (1 + 2 + 3 + 3 + 3 - 3) / 7)


@pytest.mark.parametrize(("steps", "mean"), [([1, 2, -100, -100], -0.25), ([1, -100], 0.0)])
def test_half_of_a_round_cannot_go_further_than_the_honest(toy, arrays, steps, mean):
    """1 + 2 − 2 − 2 over four; of two, one step each."""
    result = clipping().start(grid_of(toy, steps, [1] * len(steps)), arrays, num_rounds=1)
    assert_value(result, mean)


def test_the_norm_of_all_arrays_cannot_be_spent_in_one(toy, arrays):
    """Of norm √6 in both arrays of four and two values, an honest step; all of it in the second here."""
    grid = grid_of(toy, [1] * 7, [1] * 7)

    def alter(content):
        if "arrays" in content:
            content["arrays"]["x.b"] = Array(np.zeros((2, 2), np.float32))
            content["arrays"]["x.a"] = Array(np.full(2, -sqrt(3), np.float32))
        return content

    for node in (3, 4):
        grid.nodes[node].alter = alter
    result = clipping().start(grid, arrays, num_rounds=1)
    np.testing.assert_allclose(result.arrays["x.b"].numpy(), 5 / 7, rtol=1e-6)
    np.testing.assert_allclose(result.arrays["x.a"].numpy(), 3 / 7, rtol=1e-6)


def test_replies_that_change_nothing_have_no_say(toy, arrays):
    """Nor does a reply that changes nothing at all keep the others from moving."""
    assert_value(clipping().start(grid_of(toy, [0, 0, 0], [1] * 3), arrays, num_rounds=1), 0)
    assert_value(clipping().start(grid_of(toy, [0, 0, 3], [1] * 3), arrays, num_rounds=1), 1)


def test_what_was_clipped_is_said_and_no_client_says_it_itself(toy, arrays):
    notes, grid = toy.Notes(), grid_of(toy, [1, 4, 1], [1] * 3)
    grid.nodes[9].alter = lambda content: content["metrics"].update({"clipped": 0.5}) or content
    clipping(observers=[notes]).start(grid, arrays, num_rounds=1)
    said = {note[2]: note[3].get("clipped") for note in notes if note[1] == "train"}
    assert said == {0: 1, 1: pytest.approx(0.25), 2: 1}


def test_a_count_of_examples_weighs_at_most_twice_what_is_usual(toy, arrays):
    """Counts 10, 20, 30 and 900 of one that pushes: 40 of it count, by hand."""
    assert most_counted([10, 20, 30, 900]) == 40
    grid = grid_of(toy, [1, 1, 1, -1], [10, 20, 30, 900])
    result = clipping(weighting="num-examples").start(grid, arrays, num_rounds=1)
    assert_value(result, (10 + 20 + 30 - 40) / 100)
    # Of a host that clips nothing, the weights are its own.
    result = FedDAT(flower.FedAvg(), weighting="num-examples").start(grid, arrays, num_rounds=1)
    assert_value(result, (10 + 20 + 30 - 900) / 960)


def test_a_host_that_does_not_ask_for_it_has_its_own_result(toy, arrays):
    grid = grid_of(toy, [1, 2, 300], [1] * 3)
    assert toy.value(FedDAT(flower.FedAvg()).start(grid, arrays, num_rounds=1)) == 101


@pytest.mark.parametrize(
    ("inner", "value"), [(flower.FedMedian, 4.0), (flower.FedTrimmedAvg, (2 + 3 + 4 + 4 + 4) / 5)]
)
def test_other_means_see_clipped_changes_too(toy, arrays, inner, value):
    result = clipping(inner).start(grid_of(toy, [*HONEST, 1e3, 1e3], [1] * 7), arrays, num_rounds=1)
    assert_value(result, value)


@pytest.mark.parametrize("kind", CENTRAL)
def test_under_central_privacy_no_reply_depends_on_another(toy, arrays, kind):
    """What one client changes in the others' fate is hidden by no noise: none is refused or clipped."""
    notes = toy.Notes()
    grid = grid_of(toy, [1, 1, 1, 1e6], [1, 1, 1, 10**9])
    for client in grid.nodes.values():
        client.alter = lambda content: content["metrics"].update({"norm_bit": 0}) or content
    private = central_privacy(kind, flower.FedAvg(), 1e-9, 1.0, 4)
    FedDAT(private, limits=Limits(max_change=2, clip_change=1.0), observers=[notes]).start(
        grid, arrays, num_rounds=1
    )
    trained = [note for note in notes if note[1] == "train"]
    assert [note[2] for note in trained] == [0, 1, 2, 3]
    assert not any(isinstance(note[3], str) or "clipped" in note[3] for note in trained)
