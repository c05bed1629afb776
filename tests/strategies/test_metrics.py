"""A client's metrics are its own words: few, short and finite, or they do not count."""

import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from strategies import FedDAT, one_line, reason_to_refuse
from strategies.metrics import MAX_CONFIG_BYTES, MAX_LIST, MAX_METRICS, MAX_NAME, kept


def reply(metrics=(), **records):
    return RecordDict({"metrics": MetricRecord({"num-examples": 1, **dict(metrics)}), **records})


TOO_MUCH = {
    "metrics": (
        reply({f"m{i}": 0.0 for i in range(MAX_METRICS)}),
        f"{MAX_METRICS + 1} metrics; allowed: {MAX_METRICS}",
    ),
    "name": (
        reply({"x" * (MAX_NAME + 1): 0.0}),
        f"a metric's name has {MAX_NAME + 1} characters; allowed: {MAX_NAME}",
    ),
    "list": (
        reply({"x": [0.0] * (MAX_LIST + 1)}),
        f"a metric is a list of {MAX_LIST + 1}; allowed: {MAX_LIST}",
    ),
    "weight": (
        reply({"num-examples": [1] * (MAX_LIST + 1)}),
        f"a metric is a list of {MAX_LIST + 1}; allowed: {MAX_LIST}",
    ),
    "config records": (
        reply(**{f"c{i}": ConfigRecord({}) for i in range(11)}),
        "11 config records; allowed: 10",
    ),
    "config keys": (
        reply(c=ConfigRecord({str(i): i for i in range(101)})),
        "a config record has more than 100 keys",
    ),
    "config bytes": (
        reply(c=ConfigRecord({"x": b"0" * MAX_CONFIG_BYTES})),
        f"its config records have more than {MAX_CONFIG_BYTES} bytes",
    ),
}


@pytest.mark.parametrize(("content", "reason"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_reply_with_too_much_is_refused(content, reason):
    assert reason_to_refuse(None, content) == reason


def test_as_much_as_is_allowed_is_let_in():
    metrics = {"x" * (MAX_NAME - 2) + f"{i:02d}": [0.0] * MAX_LIST for i in range(MAX_METRICS - 1)}
    assert reason_to_refuse(None, reply(metrics, c=ConfigRecord({"x": b"0" * 1000}))) is None


def test_a_million_metrics_are_counted_and_not_looked_at():
    class Unread(MetricRecord):
        def __len__(self):
            return 10**6

        def __iter__(self):
            raise AssertionError

        get = items = keys = values = __getitem__ = __iter__

    assert reason_to_refuse(None, RecordDict({"metrics": Unread()})).startswith("1000000 metrics")


def test_words_of_fifty_megabytes_cost_no_more_than_a_page():
    text = "x" * 50_000_000
    started = time.process_time()
    assert one_line(text) == "x" * 199 + "…"
    assert reason_to_refuse(None, reply({text: 0.0})).startswith("a metric's name has 50000000 characters")
    assert time.process_time() - started < 0.5


BAD = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "huge": 1.7e308,
    "integer": -(2**400),
    "in a list": [0.5, float("nan")],
    "bytes-up": 7,
    "metrics-dropped": 7,
}


def test_what_is_not_finite_is_dropped_and_what_is_stays():
    good = {"num-examples": 3, "acc": 0.5, "loss": -1e99, "steps": 2**60, "each": [1.0, 2.0], "none": []}
    metrics, dropped = kept(MetricRecord({**good, **BAD}), "num-examples", None)
    assert dict(metrics) == good
    assert dropped == list(BAD)


def test_of_a_closed_list_only_names_in_their_ranges_count():
    said = {"num-examples": 3, "low": 0.0, "high": 1, "over": 1.0001, "list": [2.0], "free": 0.5}
    ranges = dict.fromkeys(("low", "high", "over", "list"), (0.0, 1.0))
    metrics, dropped = kept(MetricRecord(said), "num-examples", ranges)
    assert dict(metrics) == {"num-examples": 3, "low": 0.0, "high": 1}
    assert dropped == ["over", "list", "free"]


def test_what_a_client_adds_reaches_neither_observer_nor_mean_and_is_said_once(toy, arrays, caplog):
    notes = toy.Notes()

    def alter(content):
        content["metrics"].update({"refused": 1.0, "score": 1.7e308, "loss": float("inf"), "\n#" * 40: 1.0})
        return content

    grid = toy.Grid({7 - p: toy.Client(p, step=1.0, alter=alter if p else lambda c: c) for p in range(3)})
    metrics = {phase: {"score": (0.0, 1.0)} for phase in ("train", "evaluate")}
    result = FedDAT(flower.FedAvg(), observers=[notes], metrics=metrics).start(grid, arrays, 2)
    assert toy.value(result) == 2.0
    clean, traffic = {"num-examples": 1, "score": 0.0}, {"bytes-down", "bytes-up"}
    for _, _, partition, row in notes:
        assert row.keys() - traffic == ({"num-examples", "metrics-dropped"} if partition else set(clean))
        assert row.get("metrics-dropped", 0) == (4 if partition else 0)
    # Two of three do not measure it, so it has no mean.
    assert all(not dict(mean) for mean in result.train_metrics_clientapp.values())
    said = [message for message in caplog.messages if "sent metrics that are not allowed" in message]
    assert len(said) == 2
    assert all("; 4 dropped" in line and line.isprintable() and len(line) < 250 for line in said)


def test_the_mean_of_a_hosts_own_metrics_is_finite(toy, arrays):
    """The sum of two that are let in does not overflow, whatever they weigh."""

    def alter(content):
        content["metrics"].update({"num-examples": 2**53, "own": 1e100})
        return content

    grid = toy.Grid({7 - p: toy.Client(p, alter=alter) for p in range(2)})
    for weighting in ("uniform", "num-examples"):
        result = FedDAT(flower.FedAvg(), weighting=weighting).start(grid, arrays, 1)
        assert np.isfinite(result.train_metrics_clientapp[1]["own"])
