"""What a method's replies may be, and what becomes of those that are not alike."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies import Checked, Combined, central_privacy, reason_to_refuse
from strategies.outliers import changes, clipped, like_received

SENT = ArrayRecord({"a": Array(np.ones((4, 3), np.float32)), "b": Array(np.ones((2, 4), np.float32))})
LAYOUT = {"a": (("rank", 4), 3), "b": (2, ("rank", 4)), "c": (2,)}


def reply(**shapes):
    arrays = {name: Array(np.full(shape, 2, np.float32)) for name, shape in shapes.items()}
    return RecordDict({"x": ArrayRecord(arrays), "m": MetricRecord({"num-examples": 1})})


@pytest.mark.parametrize("rank", [1, 4])
def test_a_named_axis_has_one_length_of_many(rank):
    assert reason_to_refuse(SENT, reply(a=(rank, 3), b=(2, rank), c=(2,)), layout=LAYOUT) is None


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"a": (3, 3), "b": (2, 2)}, "array 'b' has shape (2, 2), allowed: (2, 3)"),
        ({"a": (5, 3), "b": (2, 5)}, "array 'a' has shape (5, 3), allowed: (1..4, 3)"),
        ({"a": (0, 3), "b": (2, 0)}, "array 'a' has shape (0, 3), allowed: (1..4, 3)"),
        ({"a": (4, 3)}, "array 'b' is missing"),
        ({"a": (4, 3), "b": (2, 4), "c": (3,)}, "array 'c' has shape (3,), allowed: (2,)"),
        ({"a": (4, 3), "b": (2, 4), "d": (1,)}, "array 'd' was not sent"),
        ({"a": (4, 3), "b": (2, 4), "head.d": (1,)}, "array 'head.d' has a private name"),
    ],
)
def test_what_is_not_as_declared_is_refused(shapes, reason):
    assert reason_to_refuse(SENT, reply(**{"c": (2,), **shapes}), layout=LAYOUT) == reason


def test_what_was_sent_and_is_not_declared_is_refused():
    reason = reason_to_refuse(SENT, reply(a=(4, 3), b=(2, 4)), layout={"a": (4, 3)})
    assert reason == "array 'b' was sent, and has no place in a reply"


def test_a_change_is_from_the_part_that_a_reply_covers():
    received = reply(a=(5, 2), c=(4,))["x"]
    began = like_received({"a": np.ones((4, 3), np.float32)}, received)
    np.testing.assert_array_equal(began["a"], [[1, 1]] * 4 + [[0, 0]])
    assert changes(began, received) == pytest.approx({"a": (8 + 8) ** 0.5, "c": 4})
    kept, left = clipped(began, received, {"a": 4.0, "c": 4.0}, {"a": 2.0, "c": 4.0})
    np.testing.assert_array_equal(kept["a"].numpy(), [[1.5, 1.5]] * 4 + [[1, 1]])
    assert left == pytest.approx((20 / 32) ** 0.5)


def first_reply(sent, replies, weights):
    return replies[0]


def test_the_strategy_gets_the_combination_and_averages_the_metrics(federation, arrays, toy):
    def combine(sent, replies, weights):
        most = replies[int(np.argmax(weights))]
        return ArrayRecord({name: Array(10 + most[name].numpy()) for name in sorted(sent)})

    grid = federation()
    result = Checked(Combined(FedAvg(), combine)).start(grid, arrays, num_rounds=1)
    assert toy.value(result) == 19  # of the client that counts five examples, and adds 9
    assert result.train_metrics_clientapp[1]["score"] == pytest.approx((0 + 0.1 + 0.2 + 5 * 0.3) / 8)


def test_a_combination_unlike_what_was_sent_ends_the_run(federation, arrays):
    strategy = Checked(Combined(FedAvg(), lambda sent, replies, weights: ArrayRecord()))
    with pytest.raises(
        RuntimeError, match="round 1: the combined replies have other names or shapes than what was sent"
    ):
        strategy.start(federation(), arrays, num_rounds=1)


def test_it_does_not_go_with_central_privacy():
    private = central_privacy("server-fixed", FedAvg(), 1.0, 1.0, 4)
    with pytest.raises(ValueError, match="made for a plain mean"):
        Combined(private, first_reply)
    with pytest.raises(ValueError, match="must stand around FedAvg's mean, not around Combined"):
        Checked(central_privacy("server-fixed", Combined(FedAvg(), first_reply), 1.0, 1.0, 4))


def test_a_codec_writes_what_was_sent_alone(federation, arrays):
    class Plain:
        def encode(self, arrays):
            return arrays

        def decode(self, arrays, reply):
            return reply

    layout = dict.fromkeys(["x.b"], (1,))
    with pytest.raises(ValueError, match="a codec writes replies that are like what was sent"):
        Checked(FedAvg(), codec=Plain(), layout=lambda sent: layout).start(federation(), arrays, num_rounds=1)
