"""What a client sends under differential privacy: a clipped change, and under local privacy a blurred one."""

from math import log, sqrt

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

from client_app.privacy import private_training

SIZE = 40_000


@pytest.fixture(autouse=True)
def task_identity(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def send(run_config):
    """Let a client that changes arrays by a norm of 8 reply through the mod; return change and metrics."""

    def reply(before=lambda: None, **settings):
        context = Context(1, 1, {}, RecordDict(), run_config(**{"num-clients": 2, **settings}))
        sent = ArrayRecord({"x": Array(np.full(SIZE, 0.25, np.float32))})
        config = ConfigRecord(
            {"clipping_norm": 2.0} if settings.get("dp__mode", "").startswith("client") else {}
        )
        message = Message(RecordDict({"arrays": sent, "config": config}), 1, MessageType.TRAIN)

        def train(message, context):
            before()
            arrays = ArrayRecord({"x": Array(np.full(SIZE, 0.25 + 8 / sqrt(SIZE), np.float32))})
            metrics = MetricRecord({"num-examples": 3})
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

        content = private_training(message, context, train).content
        return content["arrays"]["x"].numpy().astype(float) - 0.25, dict(content["metrics"])

    return reply


@pytest.mark.parametrize("kind", ["none", "server-fixed", "server-adaptive"])
def test_what_the_server_clips_leaves_as_it_is(send, kind):
    change, metrics = send(dp__mode=kind, dp__clipping_norm=2.0)
    assert np.linalg.norm(change) == pytest.approx(8, rel=1e-4)
    assert metrics == {"num-examples": 3}


@pytest.mark.parametrize(("kind", "said"), [("client-fixed", {}), ("client-adaptive", {"norm_bit": 1})])
def test_the_client_clips_to_the_norm_of_the_message(send, kind, said):
    change, metrics = send(dp__mode=kind, dp__clipping_norm=5.0)
    assert np.linalg.norm(change) == pytest.approx(2, rel=1e-4)
    assert metrics == {"num-examples": 3, **said}


def test_local_noise_has_the_variance_that_it_should(send):
    """Two changes of norm C = 2 are at most 4 apart: σ = 4 √(2 ln 1.25/δ) / ε."""
    clipped = 2 / sqrt(SIZE)
    deviation = 4 * sqrt(2 * log(1.25 / 1e-5)) / 0.5
    change, _ = send(dp__mode="local", dp__clipping_norm=2.0, dp__epsilon=0.5, dp__delta=1e-5)
    # Ten standard errors of variance and mean: it fails by chance once in 10²³ runs.
    assert change.var() == pytest.approx(deviation**2, rel=10 * sqrt(2 / SIZE))
    assert change.mean() == pytest.approx(clipped, abs=10 * deviation / sqrt(SIZE))


def test_local_privacy_clips_before_it_blurs(send, monkeypatch):
    monkeypatch.setattr(np.random, "normal", lambda mean, deviation, shape: np.zeros(shape))
    change, _ = send(dp__mode="local", dp__clipping_norm=2.0)
    assert np.linalg.norm(change) == pytest.approx(2, rel=1e-4)


def test_local_noise_does_not_follow_a_seed_that_training_set(send):
    changes = [send(dp__mode="local", before=lambda: np.random.seed(0))[0] for _ in range(2)]
    assert not np.array_equal(*changes)
