"""Thousands of malformed replies: each is refused in one line, none is an error of ours."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import FedDAT, Limits, reason_to_refuse
from strategies.checks import MAX_WEIGHT

SENT = {
    "x.a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "x.b": np.ones(2, np.float32),
    "y": np.float32([[0.5]]),
}
RECORD = ArrayRecord({name: Array(values) for name, values in SENT.items()})

names = st.sampled_from(sorted(SENT))
texts = st.text(max_size=20)
others = texts.filter(lambda name: name not in SENT)
private = st.sampled_from(["x.local.a", "frozen", "head.weight", "clf_fc0.bias"]) | texts.map(
    "local.{}".format
)
dtypes = st.sampled_from(
    ["float64", "float16", "int32", "uint8", "bool", "complex64", "<f8", "O", "nonsense"]
)
shapes = st.lists(st.integers(-3, 2**31), max_size=4).map(tuple)
bad_values = st.sampled_from([np.nan, np.inf, -np.inf])
bad_weights = (
    st.floats(max_value=0)
    | st.sampled_from([float("nan"), float("inf"), MAX_WEIGHT + 1, 1e300])
    | st.integers(max_value=0)
    | st.integers(min_value=MAX_WEIGHT + 1)
    | st.lists(st.integers(), max_size=3)
    | st.none()
)


@st.composite
def bad_array(draw, name):
    """Return an array that is not one like `SENT[name]` in any way that counts."""
    values, good = SENT[name], RECORD[name]
    size = len(good.data)
    match draw(
        st.sampled_from(["dtype", "shape", "stype", "cut", "longer", "noise", "header", "value", "cast"])
    ):
        case "dtype":
            return Array(draw(dtypes | others.filter("float32".__ne__)), good.shape, good.stype, good.data)
        case "shape":
            shape = draw(shapes.filter(lambda shape: shape != values.shape))
            return Array(good.dtype, shape, good.stype, good.data)
        case "stype":
            return Array(good.dtype, good.shape, draw(texts), good.data)
        case "cut":
            return Array(good.dtype, good.shape, good.stype, good.data[: draw(st.integers(0, size - 1))])
        case "longer":
            return Array(
                good.dtype, good.shape, good.stype, good.data + draw(st.binary(min_size=1, max_size=64))
            )
        case "noise":
            return Array(good.dtype, good.shape, good.stype, draw(st.binary(max_size=300)))
        case "header":
            data = bytearray(good.data)
            data[draw(st.integers(0, 127))] ^= draw(st.integers(1, 255))
            return Array(good.dtype, good.shape, good.stype, bytes(data))
        case "value":
            changed = values.copy()
            changed.flat[draw(st.integers(0, values.size - 1))] = draw(bad_values)
            return Array(changed)
        case _:
            other = draw(st.sampled_from([np.float64, np.float16, np.int64, np.complex64, np.bool_]))
            return Array(values.astype(other))


@st.composite
def malformed(draw):
    """Return a training reply with one to three faults."""
    arrays, metrics, more = dict(RECORD), {"num-examples": 3, "loss": 0.5}, {}
    without_arrays = False
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["array", "missing", "extra", "private", "weight", "records"])):
            case "array":
                name = draw(names)
                arrays[name] = draw(bad_array(name))
            case "missing":
                arrays.pop(draw(names), None)
            case "extra":
                arrays[draw(others)] = RECORD["y"]
            case "private":
                arrays[draw(private)] = RECORD["y"]
            case "weight":
                weight = draw(bad_weights)
                metrics = {**metrics, "num-examples": weight} if weight is not None else {"loss": 0.5}
            case "records":
                kind = draw(st.sampled_from(["none", "arrays", "metrics"]))
                without_arrays |= kind == "none"
                if kind != "none":
                    more[f"more {kind}"] = ArrayRecord(dict(RECORD)) if kind == "arrays" else MetricRecord({})
    content = {"metrics": MetricRecord(metrics), **more}
    if not without_arrays or "more arrays" in more:  # two faults must not make a whole
        content["arrays"] = ArrayRecord(arrays)
    return RecordDict(content)


def is_refused_in_one_line(content):
    reason = reason_to_refuse(RECORD, content)
    assert reason
    assert reason.isprintable()
    assert len(reason) < 250


test_malformed_replies_are_refused = settings(max_examples=300)(given(malformed())(is_refused_in_one_line))

test_ten_thousand_malformed_replies_are_refused = pytest.mark.slow(
    settings(max_examples=10_000)(given(malformed())(is_refused_in_one_line))
)


@settings(max_examples=60)
@given(content=malformed())
def test_a_malformed_reply_changes_no_aggregate_and_is_reported(toy, content):
    notes = toy.Notes()
    grid = toy.Grid({7 - p: toy.Client(p, step=1.0 + p) for p in range(3)})
    grid.nodes[6].alter = lambda good: content if "arrays" in good else good
    result = FedDAT(flower.FedAvg(), limits=Limits(max_change=10), observers=[notes]).start(
        grid, ArrayRecord(dict(RECORD)), 1
    )
    for name, values in SENT.items():
        np.testing.assert_allclose(result.arrays[name].numpy(), values + 2)
    assert [note[2] for note in notes if note[1] == "train" and isinstance(note[3], str)] == [1]
    assert [note[2] for note in notes if note[1] == "train" and isinstance(note[3], dict)] == [0, 2]


def declared_huge(content):
    """Declare a gigabyte of float32 in a message of a few bytes."""
    content["arrays"]["x.a"] = Array("float32", (2**28,), "numpy.ndarray", RECORD["x.a"].data)
    return content


def times_a_thousand(content):
    arrays = {n: Array(SENT[n] + 1000 * (a.numpy() - SENT[n])) for n, a in content["arrays"].items()}
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": content["metrics"]})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (declared_huge, "array 'x.a' has shape (268435456,), sent as (2, 3)"),
        (
            times_a_thousand,
            "changes the arrays by 6e+03 in norm, more than 60",
        ),  # 2 times the root of 9 values
    ],
)
def test_replies_that_are_too_large_are_refused(toy, fault, reason):
    notes = toy.Notes()
    grid = toy.Grid({7 - p: toy.Client(p, step=2.0) for p in range(3)})
    grid.nodes[6].alter = lambda good: fault(good) if "arrays" in good else good
    result = FedDAT(flower.FedAvg(), limits=Limits(max_change=10), observers=[notes]).start(
        grid, ArrayRecord(dict(RECORD)), 1
    )
    assert result.arrays["y"].numpy().item() == 2.5
    assert (1, "train", 1, reason) in notes
