"""Tensors on the wire: names, order, precision, memory."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from app.records import from_record, to_record

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
def test_float32_is_sent_whatever_is_given(dtype):
    record = to_record({"w": torch.tensor([[1, 2], [3, 4]], dtype=dtype)})
    assert (record["w"].dtype, record["w"].shape) == ("float32", (2, 2))
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
