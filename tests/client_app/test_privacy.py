"""What a client sends under differential privacy: a clipped change, and under local privacy a blurred one."""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
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

from app.settings import read_settings
from client_app import privacy
from client_app.privacy import blurred, private_training

SIZE = 40_000


@dataclass
class Still:
    """A generator whose noise is one number."""

    noise: float

    def normal(self, mean, deviation, shape):
        return np.full(shape, self.noise)


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
    monkeypatch.setattr(privacy, "default_rng", lambda: Still(0.0))
    change, _ = send(dp__mode="local", dp__clipping_norm=2.0)
    assert np.linalg.norm(change) == pytest.approx(2, rel=1e-4)


def test_local_noise_does_not_follow_a_seed_that_training_set(send):
    changes = [send(dp__mode="local", before=lambda: np.random.seed(0))[0] for _ in range(2)]
    assert not np.array_equal(*changes)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (0.99, 1e-5), (0.1, 1e-3)])
def test_local_noise_hides_what_it_says(run_config, epsilon, delta):
    settings = read_settings(
        run_config(**{"dp.epsilon": epsilon, "dp.delta": delta, "dp.clipping-norm": 3.0})
    )
    exact = PLDAccountant().compose(GaussianDpEvent(settings.dp.local_deviation / (2 * 3.0)))
    assert exact.get_delta(epsilon) <= delta


def blur(monkeypatch, sent, change, noise):
    """Return what leaves a client that changes one float32 value, under C = 1 and a noise of that number."""
    monkeypatch.setattr(privacy, "default_rng", lambda: Still(noise))
    before, after = (
        ArrayRecord({"x": Array(np.array([value], np.float32))}) for value in (sent, float(sent) + change)
    )
    return blurred(before, after, 1.0, 1.0)["x"]


@pytest.mark.parametrize("exponent", range(18, 31))
@pytest.mark.parametrize("steps", range(4))
def test_a_large_value_of_the_servers_makes_no_change_count_more(monkeypatch, exponent, steps):
    """What leaves is a function of the sum of clipped change and noise: of 1 − 1 as of 0 + 0, and so on.

    Rounded to float32 before the noise, a change of 1 beside 2²⁴ + 2 is one of 2.
    """
    spacing = 2.0 ** (exponent - 23)
    sent, change = np.float32(2.0**exponent + steps * spacing), max(1.0, spacing)
    for noise in (-1.0, -0.3, 0.0, 0.7, spacing / 2, 2 * spacing):
        moved, still = (blur(monkeypatch, sent, *case) for case in ((change, noise), (0.0, noise + 1.0)))
        assert moved.data == still.data
        assert moved.numpy() == np.float32(float(sent) + 1.0 + noise)


@pytest.mark.parametrize("change", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_no_change_and_one_that_is_no_number_are_noise_alone(monkeypatch, change):
    assert blur(monkeypatch, 0.25, change, 0.5).numpy() == 0.75
    assert blur(monkeypatch, 0.25, 3e38, 0.5).numpy() == 1.75
