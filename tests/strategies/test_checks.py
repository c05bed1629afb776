"""What a reply may be: every malformed one is refused, with a reason that names what is wrong."""

import io
import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from strategies import is_private
from strategies.checks import cause, one_line, reason_to_refuse

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1, 2])


def content(arrays=None, metrics=None, **records):
    arrays = {"x.a": Array(A), "x.b": Array(B), **(arrays or {})}
    kept = {name: array for name, array in arrays.items() if array is not None}
    numbers = {"num-examples": 3} if metrics is None else metrics
    return RecordDict({"arrays": ArrayRecord(kept), "metrics": MetricRecord(numbers), **records})


SENT = content()["arrays"]


def raw(data, dtype="float32", shape=(2,), stype="numpy.ndarray"):
    return Array(dtype, shape, stype, data)


def archive():
    stream = io.BytesIO()
    np.savez(stream, B)
    return stream.getvalue()


def objects():
    stream = io.BytesIO()
    np.save(stream, np.array([1, {}], dtype=object), allow_pickle=True)
    return stream.getvalue()


GOOD = Array(B).data
BAD_ARRAYS = {
    "missing": ({"x.b": None}, "array 'x.b' is missing"),
    "extra": ({"x.c": Array(B)}, "array 'x.c' was not sent"),
    "private": ({"x.local.b": Array(B)}, "array 'x.local.b' has a private name"),
    "head": ({"head.weight": Array(B)}, "array 'head.weight' has a private name"),
    "shape": ({"x.b": Array(np.float32([1, 2, 3]))}, "array 'x.b' has shape (3,), sent as (2,)"),
    "transposed": ({"x.a": Array(A.T.copy())}, "array 'x.a' has shape (3, 2), sent as (2, 3)"),
    "float64": ({"x.b": Array(B.astype(np.float64))}, "array 'x.b' is float64, sent as float32"),
    "nan": ({"x.b": Array(np.float32([1, np.nan]))}, "array 'x.b' has values that are not finite"),
    "inf": ({"x.b": Array(np.float32([-np.inf, 1]))}, "array 'x.b' has values that are not finite"),
    "stype": (
        {"x.b": raw(GOOD, stype="pickle")},
        "array 'x.b' is written as 'pickle', sent as 'numpy.ndarray'",
    ),
    "empty": ({"x.b": raw(b"")}, "array 'x.b' holds 0 bytes that are not float32 values of shape (2,)"),
    "cut": ({"x.b": raw(GOOD[:-1])}, "array 'x.b' holds 135 bytes that are not float32 values of shape (2,)"),
    "long": (
        {"x.b": raw(GOOD + b"\0")},
        "array 'x.b' holds 137 bytes that are not float32 values of shape (2,)",
    ),
    "lies": (
        {"x.b": raw(Array(B.astype(np.int32)).data)},
        "array 'x.b' holds 136 bytes that are not float32",
    ),
    "archive": ({"x.b": raw(archive())}, "bytes that are not float32 values"),
    "pickle": ({"x.b": raw(pickle.dumps(B))}, "bytes that are not float32 values"),
    "objects": ({"x.b": raw(objects())}, "bytes that are not float32 values"),
    "declared": ({"x.b": raw(GOOD, shape=(1 << 28,))}, "array 'x.b' has shape (268435456,), sent as (2,)"),
}


@pytest.mark.parametrize(("arrays", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_arrays_that_are_not_what_was_sent_are_refused(arrays, reason):
    assert reason in reason_to_refuse(SENT, content(arrays))


@pytest.mark.parametrize("weight", [0, -1, 0.0, float("nan"), float("inf"), 2**53 + 1, [1, 2], None])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    metrics = {} if weight is None else {"num-examples": weight}
    reason = reason_to_refuse(SENT, content(metrics=metrics))
    assert reason == f"metric 'num-examples' is {weight}; a positive number is needed"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (RecordDict({"metrics": MetricRecord({"num-examples": 1})}), "0 array records instead of 1"),
        (content(more=ArrayRecord({})), "2 array records instead of 1"),
        (RecordDict({"arrays": SENT}), "0 metric records instead of 1"),
        (content(more=MetricRecord({})), "2 metric records instead of 1"),
    ],
)
def test_records_are_counted(reply, reason):
    assert reason_to_refuse(SENT, reply) == reason


def test_good_replies_pass():
    fortran = {"x.a": Array(np.asfortranarray(A))}
    assert reason_to_refuse(SENT, content()) is None
    assert reason_to_refuse(SENT, content(fortran, note=ConfigRecord({"a": 1}))) is None
    assert reason_to_refuse(SENT, content(metrics={"tokens": 0.5}), "tokens") is None


@pytest.mark.parametrize(
    "value", [np.float32(2.5), np.zeros((0, 3), np.float16), np.int64([7]), np.ones(3, bool)]
)
def test_scalars_empty_arrays_and_whole_numbers_pass(value):
    record = ArrayRecord({"x": Array(np.asarray(value))})
    assert reason_to_refuse(record, RecordDict({"a": record, "m": MetricRecord({"num-examples": 1})})) is None


def test_half_precision_is_looked_at_too():
    sent, received = (ArrayRecord({"x": Array(np.array([v], np.float16))}) for v in (1, np.inf))
    reply = RecordDict({"a": received, "m": MetricRecord({"num-examples": 1})})
    assert reason_to_refuse(sent, reply) == "array 'x' has values that are not finite"


def test_a_variance_is_not_below_zero():
    """Of one such value the square root in batch normalisation is no number, at every client."""
    metrics = MetricRecord({"num-examples": 1})
    for name in ("norm.running_var", "running_var", "norm.weight"):
        sent = ArrayRecord({name: Array(np.ones(3, np.float32))})
        for low in (0.0, -1e-9):
            arrays = ArrayRecord({name: Array(np.float32([1, 2, low]))})
            reason = reason_to_refuse(sent, RecordDict({"arrays": arrays, "metrics": metrics}))
            is_bad = low < 0 and name != "norm.weight"
            assert reason == (f"array '{name}' has variances below 0" if is_bad else None)


def test_an_evaluations_arrays_are_not_looked_at_but_for_their_names():
    """Flower ignores them, and some of its own examples send them."""
    assert reason_to_refuse(None, RecordDict({"m": MetricRecord({"num-examples": 1})})) is None
    assert reason_to_refuse(None, content({"any": Array(B)})) is None
    refused = reason_to_refuse(None, content({"any": Array(B)}), "num-examples", "any".__eq__)
    assert refused == "array 'any' has a private name"


@pytest.mark.parametrize(
    "name", ["a.local.b", "frozen.a", "head", "a.heads.0", "head_norm.weight", "a.local"]
)
def test_private_names(name):
    assert is_private(name)
    assert is_private(name, ["other"]) == bool({"local", "frozen"} & set(name.split(".")))


@pytest.mark.parametrize(
    "name", ["a.localised.b", "shared.a", "attention.num_heads", "lm_head.weight", "ahead"]
)
def test_public_names(name):
    assert not is_private(name)


def test_a_clients_text_becomes_one_short_line():
    assert one_line("\x1b[31mTraceback:\n  File\n\tValueError: x") == "[31mTraceback: File ValueError: x"
    assert one_line("a" * 300) == "a" * 199 + "…"
    assert "\n" not in reason_to_refuse(SENT, content({"bad\nname": Array(B)}))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "<class 'ray.Error'>:<'ray::run()\n pid=6\nException E occurred. Message: out of\nmemory'>",
            "out of memory",
        ),
        ("<class 'ValueError'>:<'rank is 0'>", "<class 'ValueError'>:<'rank is 0'>"),
        ("Exception E occurred. Message: '>", "error 3 without a message"),
        (None, "error 3 without a message"),
    ],
)
def test_the_cause_of_an_error_is_found_behind_the_traceback(reason, expected):
    assert cause(Error(3, reason)) == expected
