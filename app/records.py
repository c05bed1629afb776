"""Tensors as Flower's records, and back. The only file of the core that knows Flower."""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

# Goes up with every change of what messages hold; server and clients must have the same.
SCHEMA = 1


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack float32 tensors by name, in the order of their names."""
    return ArrayRecord({name: state[name].detach().float().cpu() for name in sorted(state)})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Unpack to tensors on the CPU."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
