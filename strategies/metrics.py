"""Which numbers of a reply count: finite ones, few, and where the host names them, those alone.

A metric is a client's word under a name of the client's choice. It is averaged, logged and kept, so its size
is bounded before anybody reads it, and its value before anybody adds it up.
"""

from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict
from flwr.app import MetricRecordValues as Value

MAX_METRICS = 100
MAX_NAME = 100
MAX_LIST = 1000
LARGEST = 1e100  # a sum of so large values, weighted, is finite
MAX_CONFIG_RECORDS = 10
MAX_CONFIG_KEYS = 100
MAX_CONFIG_BYTES = 2**16

# Name → smallest and largest value, both allowed.
Ranges = Mapping[str, tuple[float, float]]

# What the server counts itself, and tells the observer among the metrics.
OF_THE_SERVER: Ranges = {
    **dict.fromkeys(("bytes-down", "bytes-up", "metrics-dropped"), (0, 2**63)),
    "clipped": (0, 1),
}


def excess(content: RecordDict) -> str | None:
    """Say what a reply has too much of beside its arrays, in one line; None if nothing.

    It counts before it looks into anything, so that saying no to much costs no more than to little.
    """
    for metrics in content.metric_records.values():
        if len(metrics) > MAX_METRICS:
            return f"{len(metrics)} metrics; allowed: {MAX_METRICS}"
        for name, value in metrics.items():
            if len(name) > MAX_NAME:
                return f"a metric's name has {len(name)} characters; allowed: {MAX_NAME}"
            if isinstance(value, list) and len(value) > MAX_LIST:
                return f"a metric is a list of {len(value)}; allowed: {MAX_LIST}"
    configs = content.config_records
    if len(configs) > MAX_CONFIG_RECORDS:
        return f"{len(configs)} config records; allowed: {MAX_CONFIG_RECORDS}"
    if any(len(config) > MAX_CONFIG_KEYS for config in configs.values()):
        return f"a config record has more than {MAX_CONFIG_KEYS} keys"
    if sum(config.count_bytes() for config in configs.values()) > MAX_CONFIG_BYTES:
        return f"its config records have more than {MAX_CONFIG_BYTES} bytes"
    return None


def kept(metrics: MetricRecord, weight_key: str, ranges: Ranges | None) -> tuple[MetricRecord, list[str]]:
    """Tell the metrics that count from those that do not.

    Parameters
    ----------
    metrics : MetricRecord
        Of a reply without `excess`.
    weight_key : str
        The metric that weighs the reply, which was checked by itself and stays.
    ranges : Ranges or None
        The only names there may be, and the range of each. None: any but those `OF_THE_SERVER`, and any
        value up to ±10^100.

    Returns
    -------
    MetricRecord
        Those that count, in their order.
    list[str]
        Names of the others.
    """
    good = {
        name: value
        for name, value in metrics.items()
        if name == weight_key or _is_within(value, _bounds(name, ranges))
    }
    return MetricRecord(good), [name for name in metrics if name not in good]


def _bounds(name: str, ranges: Ranges | None) -> tuple[float, float] | None:
    if ranges is not None:
        return ranges.get(name)
    return None if name in OF_THE_SERVER else (-LARGEST, LARGEST)


def _is_within(value: Value, bounds: tuple[float, float] | None) -> bool:
    if bounds is None:
        return False
    low, high = bounds
    return all(low <= number <= high for number in (value if isinstance(value, list) else [value]))
