"""Replies that do not count: left out, reported with a reason, and never the end of the others' round."""

from itertools import count

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower

from strategies import FedDAT, Limits


def nan(content):
    content["arrays"]["x.a"] = Array(np.float32([np.nan, 0]))
    return content


def without_weight(content):
    del content["metrics"]["num-examples"]
    return content


BAD = {
    "error": (lambda content: "ValueError:\n no memory", "ValueError: no memory"),
    "silence": (lambda content: None, "no reply in time"),
    "nan": (nan, "array 'x.a' has values that are not finite"),
    "weight": (without_weight, "metric 'num-examples' is None; a positive number is needed"),
}


@pytest.mark.parametrize("inner", [flower.FedAvg, flower.FedMedian, flower.FedAdam])
@pytest.mark.parametrize(("alter", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_left_out_and_reported(toy, federation, arrays, caplog, inner, alter, reason):
    def run(grid, notes):
        strategy = FedDAT(inner(fraction_evaluate=0.0), observers=[notes])
        return strategy.start(grid, arrays, num_rounds=1).arrays, strategy

    notes, grid, honest = toy.Notes(), federation(), federation()
    grid.nodes[10].alter = alter
    del honest.nodes[10]
    assert run(grid, notes)[0] == run(honest, toy.Notes())[0]
    assert (1, "train", 1, reason) in notes
    assert [note[2] for note in notes if isinstance(note[3], dict)] == [0, 2, 3]
    assert f"round 1, train: partition 1 refused: {reason}" in caplog.messages


def test_replies_of_strangers_and_second_replies_are_refused(toy, federation, arrays):
    notes, grid, stranger = toy.Notes(), federation(), toy.Grid({77: toy.Client(9, 1e6)})

    def add_two(replies):
        if replies[0].metadata.message_type != "train":
            return replies
        to_stranger = Message(grid.sent[-1].content, dst_node_id=77, message_type="train")
        twice = next(reply for reply in replies if reply.metadata.src_node_id == 30)
        return [*replies, *stranger.send_and_receive([to_stranger]), twice]

    grid.order = add_two
    result = FedDAT(flower.FedAvg(), weighting="uniform", observers=[notes]).start(grid, arrays, num_rounds=1)
    assert toy.value(result) == 3.625
    refused = [note[2:] for note in notes if isinstance(note[3], str)]
    assert refused == [(-1, "node 77 was not asked"), (2, "second reply")]


def test_what_the_superlink_replies_for_a_node_that_is_gone_is_of_that_node(toy, federation, arrays):
    """As Flower does it: the error comes from node 1, and names the message."""
    notes, grid = toy.Notes(), with_ids(federation())
    grid.nodes[10].alter = lambda content: "Error: Node Unavailable"

    def from_superlink(replies):
        for reply in replies:
            if reply.has_error():
                reply.metadata.__dict__["_src_node_id"] = 1
        return replies

    grid.order = from_superlink
    FedDAT(flower.FedAvg(fraction_evaluate=0.0), observers=[notes]).start(grid, arrays, num_rounds=1)
    refused = [note for note in notes if isinstance(note[3], str)]
    assert refused == [(1, "train", 1, "Error: Node Unavailable")]


def with_ids(grid):
    """Let the grid number messages when it sends them, as a real one does; replies name the number."""
    send = grid.send_and_receive

    def numbered(messages, *, timeout=None):
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message {next(numbers)}"
        return send(messages, timeout=timeout)

    numbers, grid.send_and_receive = count(), numbered
    return grid


def test_a_reply_to_the_round_before_does_not_count_for_this_one(toy, federation, arrays):
    """It has the right names and shapes, and comes before or after the reply that is awaited, or alone."""
    for place in ("before", "after", "alone"):
        notes, grid, late = toy.Notes(), with_ids(federation()), []

        def delay(replies, place=place, late=late):
            if replies[0].metadata.message_type != "train":
                return replies
            own = next(reply for reply in replies if reply.metadata.src_node_id == 30)
            others = [reply for reply in replies if reply is not own]
            late.append(own)
            if len(late) == 1:
                return others
            return others + {"before": [late[0], own], "after": [own, late[0]], "alone": [late[0]]}[place]

        grid.order = delay
        result = FedDAT(flower.FedAvg(), weighting="uniform", observers=[notes]).start(
            grid, arrays, num_rounds=2
        )
        refused = [(note[0], *note[2:]) for note in notes if isinstance(note[3], str)]
        silent = [(2, 2, "no reply in time")] if place == "alone" else []
        assert refused == [(1, 2, "no reply in time"), (2, 2, "late reply"), *silent]
        assert toy.value(result) == pytest.approx(8.0 if place == "alone" else 4 + 3.625)


def test_a_round_without_a_valid_reply_ends_the_run(federation, arrays):
    grid = federation()
    for client in grid.nodes.values():
        client.alter = lambda content: "out of\nmemory"
    with pytest.raises(RuntimeError, match=r"^round 1, tried twice: 0 of 4 clients .*: out of memory$"):
        FedDAT(flower.FedAvg()).start(grid, arrays, num_rounds=3)


def test_an_evaluation_without_a_valid_reply_has_no_result(toy, federation, arrays):
    notes, grid = toy.Notes(), federation()
    for client in grid.nodes.values():
        client.alter = lambda content: content if "arrays" in content else "no test split"
    inner = flower.FedAvg()
    inner.aggregate_evaluate = None  # not to be called with nothing
    result = FedDAT(inner, weighting="uniform", observers=[notes]).start(grid, arrays, num_rounds=1)
    assert result.evaluate_metrics_clientapp == {}
    assert [note[2] for note in notes if note[1] == "evaluate"] == [0, 1, 2, 3]


def test_an_own_metric_does_not_end_the_run(toy, federation, arrays):
    notes, grid = toy.Notes(), federation()

    def alter(content):
        content["mine"] = MetricRecord({**content.pop("metrics"), "accuracy": 0.5, "curve": [1.0, 2.0]})
        return content

    grid.nodes[30].alter = alter
    result = FedDAT(flower.FedAvg(), weighting="uniform", observers=[notes]).start(grid, arrays, num_rounds=1)
    assert toy.value(result) == 3.625
    assert result.train_metrics_clientapp[1] == {"score": pytest.approx(0.15)}
    told = next(note[3] for note in notes if note[1:3] == ("train", 2))
    assert told["accuracy"] == 0.5
    assert "curve" not in told


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 2), (0, 2)])
def test_a_strategy_reads_what_was_sent_and_may_change_it(toy, order, shape):
    values = np.asarray(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape), order=order)
    seen = []

    class Inner(flower.FedAvg):
        def aggregate_train(self, server_round, replies):
            for reply in replies:
                array = reply.content["arrays"]["x"]
                first = array.numpy()
                first += 1
                seen.append((array.numpy(), Array.numpy(array)))
            return super().aggregate_train(server_round, replies)

    def transposed(content):
        if "arrays" in content:
            content["arrays"]["x"] = Array(values)
        return content

    grid = toy.Grid({node: toy.Client(node, alter=transposed) for node in (1, 2)})
    start = ArrayRecord({"x": Array(np.zeros(shape, np.float32))})
    FedDAT(Inner(), limits=Limits(max_change=1e9)).start(grid, start, num_rounds=1)
    assert len(seen) == 2
    for own, numpys in seen:
        np.testing.assert_array_equal(own, values)
        np.testing.assert_array_equal(numpys, values)
        assert own.dtype == numpys.dtype
        assert own.flags.c_contiguous == numpys.flags.c_contiguous
