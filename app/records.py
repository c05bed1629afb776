"""Tensors as Flower's records, and back. Of the core, this file and `federated_client` alone know Flower.

A record below float32 has the names, shapes and dtypes of what it stands for. Its `stype`, which is what
Flower calls the way in which an array is written, is one of our own: nobody takes its bytes for NumPy's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from .wire_precision import ENCODINGS, decode, encode

# Goes up with every change of what messages hold; server and clients must have the same.
SCHEMA = 2

_PRECISION_OF = {f"feddat.{precision}": precision for precision in ENCODINGS}


def to_record(state: Mapping[str, Tensor], precision: str = "float32") -> ArrayRecord:
    """Pack tensors by name, in the order of their names.

    Raises
    ------
    ValueError
        Below float32 a value is not finite.
    """
    arrays = {name: _writable(state[name]) for name in sorted(state)}
    if precision == "float32":
        return ArrayRecord(arrays)
    return ArrayRecord({name: _written(name, value.numpy(), precision) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Unpack to tensors on the CPU, whatever precision they came in."""
    return {name: torch.from_numpy(_read(name, array)) for name, array in record.items()}


def to_reply(
    state: Mapping[str, Tensor], received: Mapping[str, Tensor], owed: Mapping[str, Tensor], precision: str
) -> tuple[ArrayRecord, dict[str, Tensor]]:
    """Pack what a client made of what it received: in float32 as it is, below it the difference.

    What rounding takes from a difference is owed to the next one, so that nothing is lost for good (error
    feedback: Karimireddy et al., 2019, https://arxiv.org/abs/1901.09847).

    Parameters
    ----------
    state : Mapping[str, Tensor]
        What it made of it.
    received : Mapping[str, Tensor]
        That, unpacked; nothing is needed in float32.
    owed : Mapping[str, Tensor]
        What is owed of earlier rounds; nothing in float32.
    precision : str
        The setting `wire-precision`.

    Returns
    -------
    ArrayRecord
        To be sent.
    dict
        What is owed now.
    """
    if precision == "float32":
        return to_record(state), {}
    wanted = {name: state[name].float().cpu() - received[name] + owed[name] for name in state}
    record = to_record(wanted, precision)
    return record, {name: wanted[name] - sent for name, sent in from_record(record).items()}


@dataclass(frozen=True)
class WireCodec:
    """The server's side of a precision below float32, see `strategies.Codec`."""

    precision: str

    def encode(self, arrays: ArrayRecord) -> ArrayRecord:
        """Write arrays as they travel; ValueError if one is not finite."""
        precision = self.precision
        return ArrayRecord({name: _written(name, array.numpy(), precision) for name, array in arrays.items()})

    def decode(self, arrays: ArrayRecord, reply: ArrayRecord) -> ArrayRecord:
        """Add the difference that a client sent to `arrays`; ValueError says what is wrong with it.

        Clients began at `arrays` rounded, and the sum begins at them unrounded: so the rounding of what goes
        down disturbs a round and does not add up (Philippenko & Dieuleveut, 2021, arXiv 2102.12528).
        """
        return ArrayRecord({name: Array(_sum(name, arrays[name], reply[name])) for name in arrays})


def _writable(value: Tensor) -> Tensor:
    """Return what Flower can write: it knows neither bfloat16 nor a GPU; counts stay whole numbers."""
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def _written(name: str, values: np.ndarray, precision: str) -> Array:
    return Array("float32", values.shape, f"feddat.{precision}", encode(values, precision, name))


def _read(name: str, array: Array) -> np.ndarray:
    precision = _PRECISION_OF.get(array.stype)
    return decode(array.data, tuple(array.shape), precision, name) if precision else array.numpy()


def _sum(name: str, before: Array, difference: Array) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.asarray(before.numpy() + _read(name, difference))
    if not np.isfinite(values).all():
        raise ValueError(f"array '{name}' has values that are not finite")
    return values
