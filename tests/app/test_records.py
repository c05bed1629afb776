"""Tensors on the wire: names, order, precision, memory."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from app.records import WireCodec, from_record, to_record, to_reply

STATE = {
    "b.weight": torch.tensor([[1.0, -2.5], [3e-38, 65504.0]]),
    "a.bias": torch.tensor([0.1]),
    "c": torch.tensor(7.0),
    "a.empty": torch.zeros(0, 3),
}


def test_a_round_trip_changes_nothing():
    back = from_record(to_record(STATE))
    assert list(back) == ["a.bias", "a.empty", "b.weight", "c"]
    for name, tensor in STATE.items():
        assert back[name].dtype == torch.float32
        assert back[name].device.type == "cpu"
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_float32_is_sent_whatever_float_is_given_and_counts_stay_counts(dtype):
    record = to_record({"w": torch.tensor([[1, 2], [3, 4]], dtype=dtype)})
    sent = "float32" if dtype.is_floating_point else "int64"
    assert (record["w"].dtype, record["w"].shape) == (sent, (2, 2))
    assert record["w"].numpy().tolist() == [[1, 2], [3, 4]]


def test_parameters_and_views_can_be_sent():
    record = to_record({"p": nn.Parameter(torch.ones(2)), "t": torch.arange(6.0).view(2, 3).t()})
    assert record["p"].numpy().tolist() == [1, 1]
    assert record["t"].numpy().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_records_and_tensors_share_no_memory():
    tensor = torch.ones(3)
    record = to_record({"w": tensor})
    tensor.zero_()
    back = from_record(record)
    back["w"] += 1
    assert record["w"].numpy().tolist() == [1, 1, 1]


def test_numpy_arrays_of_others_are_read():
    back = from_record(ArrayRecord([np.float32([1.5])]))
    assert [tensor.tolist() for tensor in back.values()] == [[1.5]]


PRECISIONS = {"bfloat16": 2.0**-8, "int8": 1 / 254 * (1 + 2**-7), "int4": 1 / 14 * (1 + 2**-7)}
SMALL = {"b.weight": torch.tensor([[1.0, -2.5], [0.3, 0.1]]), "a.bias": torch.tensor([0.1])}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lower_precision_keeps_names_shapes_and_dtypes(precision):
    record = to_record(SMALL, precision)
    assert [(n, a.shape, a.dtype) for n, a in record.items()] == [
        ("a.bias", (1,), "float32"),
        ("b.weight", (2, 2), "float32"),
    ]
    with pytest.raises(TypeError):
        record["a.bias"].numpy()
    for name, value in from_record(record).items():
        assert value.dtype == torch.float32
        assert (value - SMALL[name]).abs().max() <= PRECISIONS[precision] * SMALL[name].abs().max()


def test_a_float32_reply_is_the_weights_and_owes_nothing():
    record, owed = to_reply(SMALL, {}, {}, "float32")
    assert record == to_record(SMALL)
    assert owed == {}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_reply_is_the_difference_and_what_rounding_takes_is_owed(precision):
    """Over many rounds of one small change nothing is lost but what is owed at last."""
    start = {name: torch.zeros_like(value) for name, value in SMALL.items()}
    received = from_record(to_record(start, precision))
    change = {"b.weight": torch.tensor([[1.0, 0.01], [0.02, 0.3]]), "a.bias": torch.tensor([0.7])}
    owed, arrived = start, start
    for _ in range(50):
        record, owed = to_reply(change, received, owed, precision)
        arrived = {name: arrived[name] + value for name, value in from_record(record).items()}
    for name, value in change.items():
        torch.testing.assert_close(arrived[name] + owed[name], 50 * value, rtol=1e-5, atol=1e-5)
        assert owed[name].abs().max() <= 2 * PRECISIONS[precision] * value.abs().max()
    if precision == "int4":  # alone, 0.01 beside 1 is rounded to 0 for ever
        assert arrived["b.weight"][0, 1] > 0.3


def test_the_server_adds_a_difference_to_what_it_sent_unrounded():
    codec = WireCodec("int4")
    arrays = ArrayRecord({"w": Array(np.float32([7.0, 3.3]))})
    sent = codec.encode(arrays)
    assert from_record(sent)["w"].tolist() == [7, 3]
    reply, _ = to_reply({"w": torch.tensor([8.0, 10.0])}, from_record(sent), {"w": torch.zeros(2)}, "int4")
    assert codec.decode(arrays, reply)["w"].numpy().tolist() == [8.0, np.float32(3.3) + 7]


def test_a_sum_that_is_not_finite_is_refused():
    codec, large = WireCodec("bfloat16"), np.float32([3e38])
    arrays = ArrayRecord({"w": Array(large)})
    with pytest.raises(ValueError, match="array 'w' has values that are not finite"):
        codec.decode(arrays, codec.encode(arrays))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_flower_carries_it_as_it_is(precision):
    """As its grid does: taken apart into objects, and put together again."""
    record = to_record(SMALL, precision)
    for array in record.values():
        back = Array.inflate(array.deflate(), array.children)
        assert (back.dtype, back.shape, back.stype, back.data) == (
            array.dtype,
            array.shape,
            array.stype,
            array.data,
        )
