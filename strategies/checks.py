"""What a reply may hold. Nothing a client sent is parsed here, only compared."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from math import prod

import numpy as np
from flwr.app import Array, ArrayRecord, Error, RecordDict
from flwr.common.constant import SType

from .layout import Axis, Layout, fits, shapes_of, written
from .metrics import excess
from .names import is_private

MAX_WEIGHT = 2**53  # beyond it a float no longer counts one by one, and a sum of weights may overflow


def one_line(text: object, limit: int = 200) -> str:
    """Squeeze a client's text into one printable line of at most `limit` characters."""
    start = str(text)[: 100 * limit]  # a text of any length costs no more than its first page
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def cause(error: Error) -> str:
    """Return what a client's error says, without the traceback that Flower's simulation puts before it."""
    _, wrapped, text = (error.reason or "").rpartition("occurred. Message: ")
    return one_line(text.removesuffix("'>") if wrapped else text) or f"error {error.code} without a message"


def reason_to_refuse(
    sent: ArrayRecord | None,
    content: RecordDict,
    weight_key: str = "num-examples",
    is_private: Callable[[str], bool] = is_private,
    layout: Layout | None = None,
) -> str | None:
    """Say why a reply must not reach the aggregate.

    What costs nothing comes first: counts, names, declared dtypes and shapes, lengths in bytes. Only then are
    the values looked at, in place. The bytes are compared with NumPy's header for the array that is wanted,
    never given to `numpy.load`, which would open an archive as well.

    Parameters
    ----------
    sent : ArrayRecord or None
        What the client was sent to train, as it travelled. None: the reply is to an evaluation, of which
        the metrics count; what arrays it has are not looked at, but none may be private.
    content : RecordDict
        The reply: one ArrayRecord (any number after an evaluation), one MetricRecord and some ConfigRecords,
        of which none is too large (`metrics.excess`).
    weight_key : str
        The metric that weighs the reply; a positive number.
    is_private : Callable[[str], bool]
        Which arrays no reply may hold, by name.
    layout : Layout, optional
        What the reply must hold instead of what was sent: by name, each axis. Arrays with a name that was
        sent have the dtype of those, others are float32.

    Returns
    -------
    str or None
        One line; None for a good reply.
    """
    records, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if sent is not None and len(records) != 1:
        return f"{len(records)} array records instead of 1"
    if len(metrics) != 1:
        return f"{len(metrics)} metric records instead of 1"
    if much := excess(content):
        return much
    weight = metrics[0].get(weight_key)
    if not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT:
        return f"metric '{weight_key}' is {one_line(weight, 40)}; a positive number is needed"
    if sent is None:
        layout = None
    elif layout is None:
        layout = shapes_of(sent)
    for name in (name for record in records for name in record if sent is None or name not in sent):
        if is_private(name):
            return f"array {one_line(name, 100)!r} has a private name"
        if layout is not None and name not in layout:
            return f"array {one_line(name, 100)!r} was not sent"
    return None if sent is None or layout is None else _reason_in_arrays(sent, layout, records[0])


def in_place(array: Array) -> np.ndarray:
    """Return the values of an array that passed the checks, read-only, where they lie.

    Its header is NumPy's for C or for Fortran order, and nothing else.
    """
    start = len(array.data) - _num_bytes(array)
    fortran_order = b"'fortran_order': True" in array.data[:start]
    values = np.frombuffer(array.data, array.dtype, offset=start)
    return values.reshape(array.shape, order="F" if fortran_order else "C")


def _reason_in_arrays(sent: ArrayRecord, layout: Layout, received: ArrayRecord) -> str | None:
    if over := next((name for name in received if name not in layout), None):
        return f"array '{over}' was sent, and has no place in a reply"
    lengths: dict[str, int] = {}
    for name, axes in layout.items():
        if name not in received:
            return f"array '{name}' is missing"
        if reason := _reason_in_layout(sent.get(name), axes, lengths, received[name]):
            return f"array '{name}' {reason}"
    return reason_in_values(received)


def reason_in_values(received: ArrayRecord) -> str | None:
    """Say which array of the right layout has values that must not reach the aggregate; None if none has."""
    for name, array in received.items():
        if array.stype != SType.NUMPY:
            continue  # the codec that reads them looks at the values
        values = in_place(array)
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return f"array '{name}' has values that are not finite"
        # PyTorch's name in batch normalisation: below 0 one value makes the whole model's output no number.
        if name.split(".")[-1] == "running_var" and (values < 0).any():
            return f"array '{name}' has variances below 0"
    return None


def _reason_in_layout(
    sent: Array | None, axes: tuple[Axis, ...], lengths: dict[str, int], received: Array
) -> str | None:
    dtype, stype = (sent.dtype, sent.stype) if sent else ("float32", SType.NUMPY)
    as_sent = sent is not None and axes == tuple(sent.shape)
    wanted, shape = "sent as" if as_sent else "allowed:", tuple(received.shape)
    if received.dtype != dtype:
        return f"is {one_line(received.dtype, 40)}, {wanted} {dtype}"
    if not fits(shape, axes, lengths):
        return f"has shape {one_line(shape, 40)}, {wanted} {written(axes, lengths)}"
    if received.stype != stype:
        return f"is written as {one_line(received.stype, 40)!r}, {wanted} '{stype}'"
    if sent is not None and stype != SType.NUMPY:
        size, right = len(received.data), len(sent.data)
        return None if size == right else f"holds {size} bytes instead of {right}"
    num_bytes = _num_bytes(received)
    for fortran_order in (False, True):
        header = _header(dtype, shape, fortran_order)
        if len(received.data) == len(header) + num_bytes and received.data.startswith(header):
            return None
    return f"holds {len(received.data)} bytes that are not {dtype} values of shape {shape}"


def _num_bytes(array: Array) -> int:
    return prod(array.shape) * np.dtype(array.dtype).itemsize


@lru_cache(maxsize=1024)  # what is sent has few shapes, and writing a header takes longer than all checks
def _header(dtype: str, shape: tuple[int, ...], fortran_order: bool) -> bytes:
    stream = BytesIO()
    layout = {"descr": np.dtype(dtype).str, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, layout)
    return stream.getvalue()
