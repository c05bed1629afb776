"""What a strategy averages: valid replies made alike, and the aggregate made like what was sent."""

from collections.abc import Sequence
from copy import copy
from math import inf

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app import MetricRecordValues as Value

from .checks import in_place


def scalars(reply: Message) -> dict[str, float | int]:
    """Return the metrics of a valid reply, without lists."""
    return {key: value for key, value in _metrics(reply).items() if not isinstance(value, list)}


def bytes_of(reply: Message) -> int:
    """Count the bytes of a reply's arrays, their names included."""
    return sum(record.count_bytes() for record in reply.content.array_records.values())


class _Checked(Array):
    """One that passed the checks, so that reading it needs no parser, which takes longer than the mean."""

    def numpy(self) -> np.ndarray:
        """Return a copy of the values, as `Array` does."""
        return in_place(self).copy(order="K")


def alike(
    replies: Sequence[Message],
    array_names: Sequence[str],
    weight_key: str,
    uniform: bool,
    most_weight: float = inf,
) -> list[Message]:
    """Copy the replies with one order of arrays, one set of metrics and one name for each record.

    Flower's strategies need all three: some pair arrays by position, and one reply with an own metric ends
    the whole run. Clients of different tasks measure different things: what all of them report is averaged.

    Parameters
    ----------
    replies : Sequence[Message]
        Replies that passed the checks. They are left as they are; strategies may change the copies.
    array_names : Sequence[str]
        Names in the order in which they were sent; empty after an evaluation.
    weight_key : str
        The metric that weighs a reply.
    uniform : bool
        Whether every reply gets the weight 1.
    most_weight : float
        Otherwise, what a larger weight is lowered to.

    Returns
    -------
    list[Message]
        One copy per reply, in the same order.
    """
    if not replies:
        return []
    record_names = [*replies[0].content.array_records, *replies[0].content.metric_records]
    common = set.intersection(
        *({(key, _length(value)) for key, value in _metrics(r).items()} for r in replies)
    )
    copies = []
    for reply in replies:
        metrics = {key: value for key, value in _metrics(reply).items() if (key, _length(value)) in common}
        if uniform or metrics[weight_key] > most_weight:  # type: ignore[operator]  # checked: a number
            metrics[weight_key] = 1.0 if uniform else most_weight
        arrays = [_checked(record, array_names) for record in reply.content.array_records.values()]
        content = RecordDict(dict(reply.content.config_records))
        content.update(zip(record_names, [*arrays, MetricRecord(metrics)], strict=True))
        copies.append(copy(reply))
        copies[-1].content = content
    return copies


def as_sent(aggregate: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
    """Give an aggregate the dtypes of what was sent: FedAdam's is float64, twice the bytes to send."""
    return ArrayRecord(
        {
            name: array if array.dtype == sent[name].dtype else Array(array.numpy().astype(sent[name].dtype))
            for name, array in aggregate.items()
        }
    )


def _checked(record: ArrayRecord, names: Sequence[str]) -> ArrayRecord:
    checked = ArrayRecord()
    for name in names:  # an ArrayRecord made of a dict would make its own arrays
        array = copy(record[name])
        array.__class__ = _Checked
        checked[name] = array
    return checked


def _metrics(reply: Message) -> MetricRecord:
    return next(iter(reply.content.metric_records.values()))


def _length(value: Value) -> int | None:
    """Return the length of a list: two lists are averaged only when they are equally long."""
    return len(value) if isinstance(value, list) else None
