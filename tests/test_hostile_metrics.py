"""Whole runs in which clients measure what they like: no number ends a run, none is kept."""

import json
import math

import pytest
from safetensors.numpy import load_file

from app.measurements import EPOCH, MEASURED
from server_app.rows import RESERVED, TEST_EXAMPLES

HUGE = 1.7e308
HOSTILE = {
    "a word of the server": {"refused": 1.0, "phase": 2.0, "round": 7, "partition": 1, "name": 3.0},
    "huge": {"student": HUGE, "ce-student": HUGE, "bytes-up": HUGE, "metrics-dropped": -HUGE},
    "infinite": {"student": math.inf, "teacher": -math.inf, "ce-student": math.inf, "delta-shared": math.nan},
    "just outside": {"student": 1.0001, "local": -0.0001, "ce-student": -1.0, "train-seconds": -1},
    "lists": {"student": [0.5], "ce-student": [HUGE, HUGE], "refused": [1, 2]},
    "names": {"![x](https://example.org)": 1.0, "\n{}\n": 2.0, "": 3.0, "text-only": 0.9},
    "of the other phase": {"student": 0.5, "ce-student": 0.5, "evaluate-seconds": 1.0, "train-seconds": 1.0},
}


def adding(said, nodes):
    """Return what adds metrics to every reply of some nodes."""

    def alter(node, reply):
        if node in nodes and "metrics" in reply.content:
            phase = reply.metadata.message_type
            of_both = said is HOSTILE["of the other phase"]
            reply.content["metrics"].update(
                {key: value for key, value in said.items() if not (of_both and key in MEASURED[phase])}
            )
        return reply

    return alter


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_metric_ends_a_run_or_is_kept(federation, finished, said, caplog):
    clients = federation(3, alter=adding(said, {993, 986}))
    folder = clients.serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    allowed = MEASURED["train"].keys() | MEASURED["evaluate"].keys()
    allowed |= {"round", "partition", "name", "text-only", "unanswerable", "bytes-up", "bytes-down"}
    allowed |= {TEST_EXAMPLES}
    assert len(rows) == 6
    for row, honest in zip(rows, finished.rows, strict=True):
        assert row.keys() - {"metrics-dropped"} <= allowed
        assert row.keys() - {"metrics-dropped"} <= honest.keys()
        same = row.keys() - {"metrics-dropped", "train-seconds", "evaluate-seconds"}
        assert {key: row[key] for key in same} == {key: honest[key] for key in same}
        assert ("metrics-dropped" in row) == (row["partition"] > 0)
    assert sum("sent metrics that are not allowed" in message for message in caplog.messages) == 2
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (finished.folder / adapter).read_bytes()

    clients.run_config |= {"resume": "test", "num-rounds": 3}
    clients.serve()
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["round"] == 3


def test_what_clients_measure_is_what_counts(finished):
    """Otherwise it would be dropped: a metric that is new must be named in `app.measurements`."""
    assert not any("metrics-dropped" in row for row in finished.rows)
    assert not MEASURED["train"].keys() & set(RESERVED)
    sent = {
        (message.metadata.message_type, key)
        for way, message in finished.federation.wire
        if way == "to server" and "metrics" in message.content
        for key in message.content["metrics"]
    }
    named = {(phase, key) for phase, ranges in MEASURED.items() for key in ranges}
    assert sent <= named
    # After a loss, under adaptive clipping, of several epochs, and what other methods measure.
    of_others = {"ce-local", "ce-mixed", "mixed"}
    assert {key for _, key in named - sent if EPOCH not in key} == {"state-recovered", "norm_bit", *of_others}


def test_a_reply_of_too_many_metrics_is_refused_and_the_rest_is_averaged(federation):
    def alter(node, reply):
        if node == 993 and reply.metadata.message_type == "train":
            reply.content["metrics"].update({f"m{i}": 0.0 for i in range(10_000)})
        return reply

    folder = federation(3, num_rounds=1, alter=alter).serve()
    text = (folder / "metrics.jsonl").read_text()
    refused = [row for line in text.splitlines() if "refused" in (row := json.loads(line))]
    assert [row["partition"] for row in refused] == [1]
    assert refused[0]["refused"].endswith("metrics; allowed: 100")
    assert len(text) < 5000
    assert load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("bit", [7, [0], None, 0.5], ids=str)
def test_a_bit_that_the_strategy_needs_is_the_clients_own_affair(federation, bit):
    """Flower's adaptive clipping ends a run in which one reply has none."""

    def alter(node, reply):
        if node == 993 and reply.metadata.message_type == "train":
            del reply.content["metrics"]["norm_bit"]
            if bit is not None:
                reply.content["metrics"]["norm_bit"] = bit
        return reply

    clients = federation(3, alter=alter, dp__mode="client-adaptive", num_rounds=1, **{"num-clients": 3})
    folder = clients.serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    refused = [(row["partition"], row["refused"]) for row in rows if "refused" in row]
    assert [partition for partition, _ in refused] == [1]
    assert refused[0][1].endswith("0 or 1 is needed")
