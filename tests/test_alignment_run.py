"""Whole runs with alignment on the server, in one process."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from server_app.teachers import teacher

FEW = {"public.examples": 40, "align.steps": 2, "align.batch-size": 8}
LABELS = {**FEW, "align.when": "each-round", "align.beta": 0.0}
MEASURED = {f"align/{name}" for name in ("ce-before", "kl-before", "ce", "kl", "delta-norm", "accepted")}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def aligned_rows(folder):
    return [row for row in rows_of(folder) if row.keys() >= MEASURED]


def arrays_of(federation, way, kind):
    return [
        {name: array.numpy() for name, array in message.content["arrays"].items()}
        for w, message in federation.wire
        if (w, message.metadata.message_type) == (way, kind)
    ]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def mean_of(replies):
    return {
        name: np.mean([reply[name].astype(np.float64) for reply in replies], axis=0) for name in replies[0]
    }


def distance(one, other):
    return np.sqrt(sum(((one[name].astype(np.float64) - other[name]) ** 2).sum() for name in one))


def test_what_was_aligned_is_what_clients_get_next_and_the_result(federation, no_rejection):
    clients = federation(**LABELS, num_rounds=2)
    folder = clients.serve()
    sent = arrays_of(clients, "to client", "train")
    evaluated = arrays_of(clients, "to client", "evaluate")
    replies = arrays_of(clients, "to server", "train")
    results = [evaluated[0], evaluated[2]]
    aligned = aligned_rows(folder)
    assert [(row["round"], row["partition"]) for row in aligned] == [(1, -1), (2, -1)]
    for index, (row, result) in enumerate(zip(aligned, results, strict=True)):
        aggregate = mean_of(replies[2 * index : 2 * index + 2])
        assert row["align/accepted"] == 1
        assert row["align/kl"] == 0
        assert distance(aggregate, result) == pytest.approx(row["align/delta-norm"], rel=1e-3)
        assert row["align/delta-norm"] > 1e-3
    assert all(np.array_equal(sent[2][name], results[0][name]) for name in sent[2])
    assert all(np.array_equal(array, results[1][name]) for name, array in adapter_of(folder).items())


def test_at_the_end_only_the_last_aggregate_is_aligned(federation, no_rejection):
    clients = federation(**{**LABELS, "align.when": "end"}, num_rounds=2)
    folder = clients.serve()
    assert [row["round"] for row in aligned_rows(folder)] == [2]
    replies = arrays_of(clients, "to server", "train")
    second = arrays_of(clients, "to client", "train")[2]
    for name, array in mean_of(replies[:2]).items():
        np.testing.assert_allclose(second[name], array, rtol=1e-6, atol=1e-9)
    assert distance(mean_of(replies[2:]), adapter_of(folder)) > 1e-3


def test_a_rejected_alignment_leaves_the_aggregate(federation):
    clients = federation(**LABELS, align__learning_rate=1e3, align__radius=1e3, num_rounds=1)
    folder = clients.serve()
    (row,) = aligned_rows(folder)
    assert row["align/accepted"] == row["align/delta-norm"] == 0
    for name, array in mean_of(arrays_of(clients, "to server", "train")).items():
        np.testing.assert_allclose(adapter_of(folder)[name], array, rtol=1e-6, atol=1e-9)


INNER = {"fedavg": {}, "fedadam": {}, "fedprox": {"proximal_mu": 0.1}}


@pytest.mark.parametrize("strategy", INNER)
def test_no_steps_give_the_bytes_of_no_alignment(federation, strategy):
    def result(**overrides):
        folder = federation(strategy=strategy, **INNER[strategy], **overrides).serve()
        rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows_of(folder)]
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), rows

    plain = result(run_name="plain")
    assert result(run_name="no-steps", **{**LABELS, "align.steps": 0}) == plain
    assert result(run_name="steps", **LABELS) != plain


@pytest.fixture
def recorded(record, run_config):
    return record(run_config(**FEW))


@pytest.mark.parametrize("labels", ["true", "none"])
def test_a_recorded_teacher_model_supervises(federation, recorded, labels):
    folder = federation(**FEW, align__when="end", teacher__model=recorded, align__labels=labels).serve()
    (row,) = aligned_rows(folder)
    assert row["align/kl"] > 0
    assert (row["align/ce"] > 0) == (labels == "true")


def test_the_teacher_model_moves_the_result(federation, recorded, no_rejection):
    def result(name, **overrides):
        return adapter_of(federation(**{**FEW, "align.when": "end", "run_name": name, **overrides}).serve())

    both = result("both", teacher__model=recorded)
    alone = result("labels", align__beta=0.0)
    assert distance(both, alone) > 1e-4


def test_a_llava_is_asked_once_and_then_not_loaded(federation, home, random_llava, monkeypatch):
    settings = {**FEW, "public.examples": 30, "num_rounds": 1, "align.when": "each-round"}
    settings |= {"teacher.model": str(random_llava), "server_device": "cpu"}
    first = aligned_rows(federation(**settings, run_name="first").serve())
    kept = {path.name for path in (home / "annotations").iterdir()}
    assert kept == {"scenes-train.parquet", "scenes-validation.parquet"}

    monkeypatch.setattr(teacher, "load_model", lambda *_: pytest.fail("the teacher model was loaded"))
    assert aligned_rows(federation(**settings, run_name="second").serve()) == first


def test_the_pooled_target_and_one_head_for_all_weights(long_tailed, record, no_rejection):
    """CIFAR in the published form: ResNet-8, all weights and a head averaged, a pool of five a class."""
    shared = {
        "method": "full",
        "backbone": "resnet8-narrow",
        "backbone_weights": "random",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "public_per_class": 5,
        "public.examples": 20,
        **{key: FEW[key] for key in ("align.steps", "align.batch-size")},
    }
    config = long_tailed(**shared).run_config
    teacher = record(config, answers=["red", "green", "blue", "grey"])
    aligned = long_tailed(
        **shared,
        align__when="each-round",
        align__target="pooled",
        teacher__model=teacher,
    )
    folder = aligned.serve()
    rows = aligned_rows(folder)
    assert [row["round"] for row in rows] == [1, 2]
    # The server's one row of a round holds its evaluation of the aligned model as well.
    assert all({"student", "many", "medium", "few"} < row.keys() for row in rows)
    sent = arrays_of(aligned, "to client", "train")
    assert any("classifier" in name for name in sent[0])
    replies = arrays_of(aligned, "to server", "train")
    aggregate, second = mean_of(replies[:3]), sent[3]
    moved = {name for name in second if not np.allclose(second[name], aggregate[name], rtol=1e-5, atol=1e-7)}
    assert "classifier.weight" in moved
    # Statistics of batch normalisation are averaged, and no gradient reaches them.
    assert not any("running" in name for name in moved)
