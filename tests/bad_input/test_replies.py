"""A bad reply is refused and reported while the run goes on."""

import numpy as np
import pytest
from flwr.app import Array
from safetensors.numpy import load_file

from tests.bad_input.ends import rows_of

NAME = "base_model.model.encoder.layer.0.output.bottleneck_down.bias"


def missing(arrays, metrics):
    del arrays[NAME]


def extra(arrays, metrics):
    arrays["x"] = Array(np.zeros(2, np.float32))


def misshapen(arrays, metrics):
    arrays[NAME] = Array(np.zeros(3, np.float32))


def double(arrays, metrics):
    arrays[NAME] = Array(arrays[NAME].numpy().astype(np.float64))


def not_a_number(arrays, metrics):
    values = arrays[NAME].numpy().copy()
    values[-1] = np.nan
    arrays[NAME] = Array(values)


def infinite(arrays, metrics):
    arrays[NAME] = Array(np.full_like(arrays[NAME].numpy(), np.inf))


def local(arrays, metrics):
    arrays[NAME.replace("bias", "local.bias")] = arrays[NAME]


def head(arrays, metrics):
    arrays["head.clf_fc0.weight"] = Array(np.zeros((2, 2), np.float32))


def weightless(arrays, metrics):
    metrics["num-examples"] = 0


BAD = [
    (missing, f"array '{NAME}' is missing"),
    (extra, "array 'x' was not sent"),
    (misshapen, f"array '{NAME}' has shape (3,), sent as (8,)"),
    (double, f"array '{NAME}' is float64, sent as float32"),
    (not_a_number, f"array '{NAME}' has values that are not finite"),
    (infinite, f"array '{NAME}' has values that are not finite"),
    (local, f"array '{NAME.replace('bias', 'local.bias')}' has a private name"),
    (head, "array 'head.clf_fc0.weight' has a private name"),
    (weightless, "metric 'num-examples' is 0; a positive number is needed"),
]


def altered(change, nodes):
    def alter(node, reply):
        if node in nodes and reply.metadata.message_type == "train":
            change(reply.content["arrays"], reply.content["metrics"])
        return reply

    return alter


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[change.__name__ for change, _ in BAD])
def test_a_bad_reply_is_reported_and_the_others_are_averaged(federation, change, reason):
    clients = federation(3, num_rounds=1, alter=altered(change, {993}))
    folder = clients.serve()
    rows = rows_of(folder)
    assert [row for row in rows if "refused" in row] == [
        {"round": 1, "partition": 1, "phase": "train", "refused": reason}
    ]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 2]

    good = [
        message.content["arrays"]
        for way, message in clients.wire
        if (way, message.metadata.message_type) == ("to server", "train")
        and message.metadata.src_node_id != 993
    ]
    assert len(good) == 2
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert exported.keys() == set(good[0])
    for name, array in exported.items():
        mean = (good[0][name].numpy().astype(np.float64) + good[1][name].numpy()) / 2
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-9)


def test_a_reply_that_leaps_is_refused(federation):
    def leap(arrays, metrics):
        arrays[NAME] = Array(np.full((8,), 1e6, np.float32))

    folder = federation(3, num_rounds=1, alter=altered(leap, {993})).serve()
    rows = rows_of(folder)
    (refused,) = [row for row in rows if "refused" in row]
    assert refused["partition"] == 1
    assert refused["refused"].startswith("changes the arrays by 2.83e+06 in norm, more than ")
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert np.abs(exported[NAME]).max() < 1


def test_a_run_of_bad_replies_alone_fails(federation, home):
    clients = federation(2, alter=altered(missing, {993, 1000}))
    with pytest.raises(RuntimeError) as caught:
        clients.serve()
    assert str(caught.value) == (
        "round 1, tried twice: 0 of 2 clients gave a valid reply, with min_clients = 1,"
        f" max_failure_rate = 0.5: array '{NAME}' is missing"
    )
    assert not (home / "runs" / "test" / "adapter").exists()
    assert not any(message.metadata.message_type == "evaluate" for _, message in clients.wire)


def test_a_bad_evaluation_is_reported_and_the_run_goes_on(federation):
    def alter(node, reply):
        if node == 993 and reply.metadata.message_type == "evaluate":
            reply.content["metrics"]["num-examples"] = float("nan")
        return reply

    folder = federation(3, num_rounds=1, alter=alter).serve()
    rows = rows_of(folder)
    assert [(row["partition"], row["phase"]) for row in rows if "refused" in row] == [(1, "evaluate")]
    assert [row["partition"] for row in rows if "student" in row] == [0, 2]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 1, 2]
