"""Central differential privacy: what it clips, the noise it adds, and the one order in which it works."""

from math import sqrt

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.differential_privacy import compute_clip_model_update

from strategies import FedDAT, Resumable, StrategyWrapper, central_privacy, privacy
from strategies.privacy import CENTRAL

SIZE = 40_000


def aggregate_changes(strategy, changes, server_round=1, bits=None):
    """Let a strategy that sent zeros average replies of `SIZE` values each, and return the mean."""
    replies = []
    for i, values in enumerate(changes):
        arrays = ArrayRecord({"x": Array(np.asarray(values, np.float32))})
        metrics = MetricRecord({"num-examples": 1.0, "norm_bit": int(bits[i]) if bits else 0})
        asked = Message(RecordDict(), dst_node_id=i + 1, message_type=MessageType.TRAIN)
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked))
    strategy.current_arrays = ArrayRecord({"x": Array(np.zeros(SIZE, np.float32))})
    arrays, _ = strategy.aggregate_train(server_round, replies)
    return arrays["x"].numpy()


def aggregate(strategy, *norms, server_round=1):
    """Let it average changes of those norms, all in one direction."""
    changes = [np.full(SIZE, norm / sqrt(SIZE)) for norm in norms]
    return aggregate_changes(strategy, changes, server_round)


@pytest.fixture
def fixed_seed(monkeypatch):
    """Let the noise repeat: it is drawn from the operating system's entropy otherwise."""
    seed = np.random.seed
    monkeypatch.setattr(privacy.np.random, "seed", lambda *args: seed(*args or (20240607,)))


# What the noise's standard deviation must be, for z = 0.8, a norm of 3 and two replies: z C / n; where the
# norm adapts, 2/√3 times that, since the count of clipped replies is released too (Andrew et al., theorem 1,
# with a noise of z on the count: (z⁻² − (2 z)⁻²)^(−1/2) = 2/√3 z).
STANDARD = 0.8 * 3 / 2
DEVIATIONS = {kind: STANDARD * (2 / sqrt(3) if kind.endswith("adaptive") else 1.0) for kind in CENTRAL}


@pytest.mark.parametrize("kind", CENTRAL)
def test_the_noise_has_the_variance_that_it_should(fixed_seed, kind):
    noise = aggregate(central_privacy(kind, flower.FedAvg(), 0.8, 3.0, 2), 0.0, 0.0).astype(float)
    # The sample variance of n normal values has a relative standard error of √(2/n), the mean one of σ/√n.
    assert noise.var() == pytest.approx(DEVIATIONS[kind] ** 2, rel=5 * sqrt(2 / SIZE))
    assert abs(noise.mean()) < 5 * DEVIATIONS[kind] / sqrt(SIZE)
    # Normal: 68.27 % within one standard deviation, 95.45 % within two.
    for deviations, share in ((1, 0.6827), (2, 0.9545)):
        within = np.mean(np.abs(noise) < deviations * DEVIATIONS[kind])
        assert within == pytest.approx(share, abs=5 * sqrt(share * (1 - share) / SIZE))


@pytest.mark.parametrize("kind", CENTRAL)
@pytest.mark.parametrize("replies", [1, 3])
def test_the_noise_is_made_for_the_clients_that_were_expected(fixed_seed, kind, replies):
    """Whoever replies, one client moves the sum over the expected number by as much."""
    strategy = central_privacy(kind, flower.FedAvg(), 0.8, 3.0, 2)
    noise = aggregate(strategy, *[0.0] * replies).astype(float)
    assert noise.std() == pytest.approx(DEVIATIONS[kind], rel=0.02)


@pytest.mark.parametrize("kind", CENTRAL)
def test_the_sum_is_divided_by_the_clients_that_were_expected(kind):
    mean = aggregate(central_privacy(kind, flower.FedAvg(), 1e-9, 3.0, 4), 1.0, 2.0, 3.0)
    assert np.linalg.norm(mean) == pytest.approx((1 + 2 + 3) / 4, rel=1e-4)


@pytest.mark.parametrize("kind", ["server-fixed", "server-adaptive"])
def test_clipping_clips_what_is_longer_and_nothing_else(kind):
    # A noise too small to see; the changes are parallel, so their norms are averaged.
    mean = aggregate(central_privacy(kind, flower.FedAvg(), 1e-9, 3.0, 3), 30.0, 1.0, 0.0)
    assert np.linalg.norm(mean) == pytest.approx((3 + 1 + 0) / 3, rel=1e-4)


def test_noise_does_not_follow_a_seed_that_somebody_set():
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        drawn.append(aggregate(central_privacy("server-fixed", flower.FedAvg(), 1.0, 1.0, 1), 0.5))
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize(("changes", "factor"), [((9.0, 9.0), 1.1), ((0.1, 0.1), 1 / 1.1)])
def test_an_adaptive_norm_moves_towards_the_changes(changes, factor):
    """All clipped: e^(0.2 (1 − 1/2)) = e^0.1 times as large; none: e^−0.1."""
    strategy = central_privacy("server-adaptive", flower.FedAvg(), 1e-9, 3.0, 2)
    aggregate(strategy, *changes)
    assert strategy.clipping_norm == pytest.approx(3.0 * np.exp(0.1 * np.sign(factor - 1)))


def test_an_adaptive_norm_finds_the_median_of_the_changes():
    strategy = central_privacy("server-adaptive", flower.FedAvg(), 1e-9, 0.1, 3)
    for server_round in range(1, 80):
        aggregate(strategy, 1.0, 2.0, 5.0, server_round=server_round)
    assert 1.5 < strategy.clipping_norm < 2.5


def test_noise_fits_the_norm_that_was_clipped_to(fixed_seed):
    """The norm of the next round is e^−0.1 times as large: a noise made for it would be too small."""
    strategy = central_privacy("server-adaptive", flower.FedAvg(), 0.01, 3.0, 2)
    noise = aggregate(strategy, 0.0, 0.0)
    assert strategy.clipping_norm < 2.8
    assert noise.std() == pytest.approx(0.01 * 3 / 2 * 2 / sqrt(3), rel=0.02)


DP = flower.DifferentialPrivacyServerSideFixedClipping


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: DP(FedDAT(flower.FedAvg()), 1.0, 1.0, 2),
        lambda: central_privacy("client-adaptive", FedDAT(flower.FedAvg()), 1.0, 1.0, 2),
        *(
            lambda name=name: DP(getattr(flower, name)(), 1.0, 1.0, 2)
            for name in ("FedMedian", "FedTrimmedAvg", "Krum", "FedAdam", "FedYogi", "FedAvgM")
        ),
        lambda: DP(DP(flower.FedAvg(), 1.0, 1.0, 2), 1.0, 1.0, 2),
    ],
)
@pytest.mark.parametrize("wrap", [FedDAT, StrategyWrapper, lambda s: Resumable(s, store=None)])
def test_a_wrong_order_is_refused_with_the_right_one(wrong, wrap):
    with pytest.raises(
        ValueError, match=r"must stand around FedAvg's mean.*the right order: FedDAT\(\w+\(FedAvg\(\)\)\)"
    ):
        wrap(wrong())


def test_a_loop_of_its_own_belongs_outermost():
    inner = Resumable(FedDAT(flower.FedAvg()), store=None)
    with pytest.raises(
        ValueError, match=r"Resumable has a `start` of its own.*class Own\(FedDAT\): start = "
    ):
        StrategyWrapper(inner)


def test_what_is_said_of_a_loop_of_its_own_can_be_done(toy, federation, arrays):
    """As FlowerTune's project has it: a FedAvg whose loop does something after every round."""

    class CustomFedAvg(flower.FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, **keywords):
            return flower.Strategy.start(self, grid, initial_arrays, 2 * num_rounds, **keywords)

    with pytest.raises(ValueError, match=r"start = CustomFedAvg\.start"):
        FedDAT(CustomFedAvg())

    class Own(FedDAT):
        start = CustomFedAvg.start

    result = Own(flower.FedAvg(), weighting="uniform").start(federation(), arrays, num_rounds=1)
    assert toy.value(result) == 2 * 3.625


@pytest.mark.parametrize("inner", [flower.FedAvg, lambda: flower.FedProx(proximal_mu=0.1)])
def test_the_right_order_is_taken(inner):
    FedDAT(StrategyWrapper(DP(inner(), 1.0, 1.0, 2)))


def test_weighting_by_examples_is_refused():
    private = central_privacy("server-fixed", flower.FedAvg(), 1.0, 1.0, 2)
    with pytest.raises(ValueError, match="'num-examples'; allowed around differential privacy: 'uniform'"):
        FedDAT(private, weighting="num-examples")


@pytest.mark.parametrize("kind", ["server-fixed", "server-adaptive"])
def test_under_feddat_the_mean_moves_as_far_as_clipping_lets_it(toy, federation, arrays, kind):
    """Steps of 1, 2, 2.5, 9 on six values, clipped to 2.5 √6: the mean is (1 + 2 + 2.5 + 2.5) / 4 = 2."""
    private = central_privacy(kind, flower.FedAvg(), 1e-9, 2.5 * sqrt(6), 4)
    result = FedDAT(private).start(federation(), arrays, num_rounds=1)
    values = np.concatenate([array.numpy().ravel() for array in result.arrays.values()])
    np.testing.assert_allclose(values, 2.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["client-fixed", "client-adaptive"])
def test_what_a_client_clipped_is_averaged_to_the_bit(monkeypatch, kind):
    """Though rounding made it longer than the norm."""
    random = np.random.default_rng(0)
    before = random.normal(size=SIZE).astype(np.float32) * 300
    after = [before + random.normal(size=SIZE).astype(np.float32)]
    compute_clip_model_update(after, [before], 0.01)
    assert np.linalg.norm(after[0].astype(float) - before) > 1.005 * 0.01
    seen = []

    def aggregate_train(self, server_round, replies):
        seen.extend(reply.content["arrays"] for reply in replies)
        return None, None

    monkeypatch.setattr(flower.FedAvg, "aggregate_train", aggregate_train)
    strategy = central_privacy(kind, flower.FedAvg(), 1e-9, 0.01, 1)
    strategy.current_arrays = ArrayRecord({"x": Array(before)})
    asked = Message(RecordDict(), dst_node_id=1, message_type=MessageType.TRAIN)
    arrays, metrics = ArrayRecord({"x": Array(after[0])}), MetricRecord({"num-examples": 1.0, "norm_bit": 1})
    strategy.aggregate_train(1, [Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)])
    assert seen == [arrays]


@pytest.mark.parametrize("kind", CENTRAL)
@pytest.mark.parametrize("length", [31.0, 1e20, 3e40])
def test_a_client_alone_moves_the_mean_by_the_norm(kind, length):
    mean = aggregate(central_privacy(kind, flower.FedAvg(), 1e-9, 3.0, 2), 0.0, length)
    # Of a change that is too long for float32's squares Flower's servers leave nothing.
    most = 3.0 / 2 * (1 + 1e-4)
    assert np.linalg.norm(mean) <= most
    assert length > 31 or np.linalg.norm(mean) == pytest.approx(3.0 / 2, rel=1e-4)
