"""Encoded arrays: the strategy inside never sees them, and a malformed one never reaches it."""

import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import strategy as flower

from app.records import WireCodec, from_record, to_reply
from app.wire_precision import ENCODINGS
from strategies import FedDAT, Limits, Quorum
from strategies.inbox import _decoded

SENT = {"x.a": np.float32([[1.03, -2.0, 0.25], [0.5, 0.125, 0.0]]), "y": np.float32([0.3, 4.0])}
STEPS = (1.0, 2.0, 2.5)  # each a code times a scale in every precision: mean 11/6


@pytest.fixture(params=ENCODINGS)
def precision(request) -> str:
    return request.param


@pytest.fixture
def clients(toy):
    """Make three clients that add a step to what they receive, and send it in a precision."""

    def build(precision, alter=lambda content: content):
        def encoding(step):
            def reply(good):
                if "arrays" not in good:
                    return good
                received = from_record(sent_last(grid))
                state = {name: value + step for name, value in received.items()}
                owed = {name: value * 0 for name, value in state.items()}
                good["arrays"], _ = to_reply(state, received, owed, precision)
                return alter(good) if step == STEPS[1] else good

            return reply

        # The toy's own step would read encoded arrays as NumPy's.
        grid = toy.Grid({7 - p: Silent(toy, p, encoding(step)) for p, step in enumerate(STEPS)})
        return grid

    return build


def Silent(toy, partition, reply):  # noqa: N802
    """Make a toy client whose reply's arrays are what `reply` puts there."""

    class Client(toy.Client):
        def reply(self, message):
            given = message.content.array_records.pop("arrays", None)
            if message.metadata.message_type == "train":
                message.content["arrays"] = ArrayRecord()
                self.received = given
            return super().reply(message)

    client = Client(partition)
    client.alter = reply
    return client


def sent_last(grid):
    return grid.sent[-1].content["arrays"]


def run(grid, precision, notes, inner=flower.FedAvg):
    arrays = ArrayRecord({name: Array(value) for name, value in SENT.items()})
    strategy = FedDAT(inner(), limits=Limits(max_change=10), observers=[notes], codec=WireCodec(precision))
    return strategy.start(grid, arrays, num_rounds=1)


@pytest.mark.parametrize("inner", [flower.FedAvg, flower.FedMedian, flower.FedAdam])
def test_a_strategy_averages_what_clients_changed_added_to_what_it_sent_unrounded(
    toy, clients, precision, inner
):
    seen = []

    class Inner(inner):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.extend({k: a.numpy() for k, a in reply.content["arrays"].items()} for reply in replies)
            return super().aggregate_train(server_round, replies)

    run(clients(precision), precision, toy.Notes(), Inner)
    assert len(seen) == 3
    for reply, step in zip(seen, STEPS, strict=True):
        for name, value in SENT.items():
            # The client began at the rounded value: rounding it is no change.
            np.testing.assert_allclose(reply[name], value + step, rtol=0, atol=2e-2)


def test_what_was_decoded_is_clipped(toy, clients, precision):
    """Each array's values all change by the step, so the median step is the usual change."""
    notes = toy.Notes()
    arrays = ArrayRecord({name: Array(value) for name, value in SENT.items()})
    strategy = FedDAT(
        flower.FedAvg(), limits=Limits(clip_change=1.0), observers=[notes], codec=WireCodec(precision)
    )
    result = strategy.start(clients(precision), arrays, num_rounds=1)
    usual = sorted(STEPS)[1]
    for name, value in SENT.items():
        mean = value + np.mean(np.minimum(STEPS, usual))
        np.testing.assert_allclose(result.arrays[name].numpy(), mean, rtol=0, atol=2e-2)
    kept = [note[3]["clipped"] for note in notes if note[1] == "train"]
    np.testing.assert_allclose(kept, np.minimum(1, usual / np.array(STEPS)), atol=2e-2)


def test_what_goes_down_is_encoded_once_and_counted(toy, clients, precision):
    notes, grid = toy.Notes(), clients(precision)
    result = run(grid, precision, notes)
    trained = [message for message in grid.sent if message.metadata.message_type == "train"]
    records = [message.content["arrays"] for message in trained]
    assert all(record is records[0] for record in records)
    assert {array.stype for array in records[0].values()} == {f"feddat.{precision}"}
    # Names are 3 and 1 bytes; 8 values in 2 rows and 1; two sums of 4 bytes.
    size = {"bfloat16": 16, "int8": 6 + 8, "int4": 6 + 3 + 1}[precision] + 4 + 8
    rows = [note[3] for note in notes if note[1] == "train"]
    assert [(row["bytes-down"], row["bytes-up"]) for row in rows] == [(size, size)] * 3
    assert {array.stype for array in result.arrays.values()} == {"numpy.ndarray"}


def again(grid, precision):
    """Let the second client answer at its second call alone."""
    client, calls = grid.nodes[6], []

    def reply(good, usual=client.alter):
        if "arrays" in good:
            calls.append(1)
            if len(calls) == 1:
                return "no memory"
        return usual(good)

    client.alter = reply


def test_a_round_that_is_tried_again_sends_the_same(toy, clients, precision):
    notes, grid = toy.Notes(), clients(precision)
    again(grid, precision)
    arrays = ArrayRecord({name: Array(value) for name, value in SENT.items()})
    FedDAT(
        flower.FedAvg(), quorum=Quorum(min_clients=3), observers=[notes], codec=WireCodec(precision)
    ).start(grid, arrays, 1)
    records = [m.content["arrays"] for m in grid.sent if m.metadata.message_type == "train"]
    assert len(records) == 6
    assert {name: array.data for name, array in records[-1].items()} == {
        name: array.data for name, array in records[0].items()
    }


def changed(name, **fields):
    def alter(content):
        good = content["arrays"][name]
        own = {key: getattr(good, key) for key in ("dtype", "shape", "stype", "data")}
        content["arrays"][name] = Array(**{**own, **{k: v(own[k]) for k, v in fields.items()}})
        return content

    return alter


def resealed(data):
    """Flip the first bits of the first scale or value, and make the sum right again."""
    body = bytes([data[0], 0x7F | data[1] & 0x80, *data[2:-4]])
    body = bytes([0xFF]) + body[1:]
    return body + zlib.crc32(b"x.a" + body).to_bytes(4, "little")


def swapped(content):
    arrays = content["arrays"]
    content["arrays"] = ArrayRecord({"x.a": arrays["x.a"], "y": arrays["x.a"]})
    return content


def plain(content):
    content["arrays"]["x.a"] = Array(SENT["x.a"])
    return content


def missing(content):
    del content["arrays"]["y"]
    return content


FAULTS = {
    "a flipped bit": (
        changed("x.a", data=lambda d: d[:3] + bytes([d[3] ^ 1]) + d[4:]),
        "a checksum that is not",
    ),
    "cut": (changed("x.a", data=lambda d: d[:-1]), "array 'x.a' holds "),
    "longer": (changed("x.a", data=lambda d: d + b"\0"), "array 'x.a' holds "),
    "nothing": (changed("x.a", data=lambda d: b""), "array 'x.a' holds 0 bytes instead of "),
    "a NaN": (changed("x.a", data=resealed), "array 'x.a' "),
    "another shape": (changed("x.a", shape=lambda s: (3, 2)), "has shape (3, 2), sent as (2, 3)"),
    "another dtype": (changed("x.a", dtype=lambda d: "float64"), "is float64, sent as float32"),
    "another precision": (changed("x.a", stype=lambda s: "feddat.int2"), "is written as 'feddat.int2'"),
    "no encoding": (plain, "array 'x.a' is written as 'numpy.ndarray', sent as 'feddat."),
    "an array in another's place": (swapped, "array 'y' has shape (2, 3), sent as (2,)"),
    "one less": (missing, "array 'y' is missing"),
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_malformed_encoding_is_refused_with_a_reason(toy, clients, precision, fault, reason):
    notes = toy.Notes()
    result = run(clients(precision, fault), precision, notes)
    told = [note[3] for note in notes if note[1:3] == ("train", 1)]
    assert len(told) == 1
    assert reason in told[0]
    assert told[0].isprintable()
    for name, value in SENT.items():
        expected = value + (STEPS[0] + STEPS[2]) / 2
        np.testing.assert_allclose(result.arrays[name].numpy(), expected, rtol=0, atol=2e-2)


def test_two_arrays_of_one_shape_cannot_change_places(toy, clients):
    """Names, shapes and lengths are right: the checksum tells."""
    notes = toy.Notes()
    grid = clients("int8", lambda good: good)
    arrays = ArrayRecord({name: Array(np.float32([1, 2])) for name in ("a", "b")})

    def swap(content):
        record = content["arrays"]
        content["arrays"] = ArrayRecord({"a": record["b"], "b": record["a"]})
        return content

    usual = grid.nodes[6].alter
    grid.nodes[6].alter = lambda good: swap(usual(good)) if "arrays" in good else good
    FedDAT(flower.FedAvg(), observers=[notes], codec=WireCodec("int8")).start(grid, arrays, 1)
    assert (1, "train", 1, "array 'a' has a checksum that is not that of its bytes") in notes


def test_a_change_that_is_too_large_is_refused_by_its_decoded_size(toy, clients, precision):
    """Changes of 1, 2000 and 2.5 on each of 8 values: norms √8 times that, of which ten medians are 70.7."""

    def thousandfold(content):
        received = from_record(sent_last(grid))
        state = {name: value + 2000 for name, value in received.items()}
        owed = {name: value * 0 for name, value in state.items()}
        return RecordDict({**content, "arrays": to_reply(state, received, owed, precision)[0]})

    notes, grid = toy.Notes(), clients(precision, thousandfold)
    run(grid, precision, notes)
    (told,) = [note[3] for note in notes if note[1:3] == ("train", 1)]
    assert re.fullmatch(r"changes the arrays by 5\.6\de\+03 in norm, more than 7[01]\.?\d?", told)


@pytest.mark.parametrize(("variance", "counts"), [(-0.5, False), (0.5, True)])
def test_a_variance_below_zero_is_refused_when_it_is_decoded(precision, variance, counts):
    """It travels as a difference, which may well be below zero."""
    codec = WireCodec(precision)
    sent = ArrayRecord({"norm.running_var": Array(np.float32([0.25, 0.25]))})
    wanted = {"norm.running_var": from_record(sent)["norm.running_var"] * 0 + variance}
    travelling = from_record(codec.encode(sent))
    reply, _ = to_reply(wanted, travelling, {"norm.running_var": wanted["norm.running_var"] * 0}, precision)
    message = toy_reply(reply)
    if counts:
        assert (_decoded(sent, message, codec).content["arrays"]["norm.running_var"].numpy() > 0).all()
    else:
        with pytest.raises(ValueError, match=r"^array 'norm.running_var' has variances below 0$"):
            _decoded(sent, message, codec)


def toy_reply(arrays: ArrayRecord) -> SimpleNamespace:
    """Return what of a reply the decoding reads."""
    return SimpleNamespace(content=RecordDict({"arrays": arrays}))
