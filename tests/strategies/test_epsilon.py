"""The ε that a run reports: against Google's accountants, and against what one client can really move."""

from math import exp, sqrt

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from flwr.serverapp.strategy import FedAvg
from scipy.stats import norm as normal

from strategies import FedDAT, Limits, Quorum, central_privacy, privacy
from strategies.privacy import CENTRAL, epsilon, gaussian_delta
from tests.strategies.test_privacy import SIZE, aggregate_changes

C, Z, CLIENTS, DELTA = 3.0, 1.0, 5, 1e-5


@pytest.mark.parametrize(
    ("multiplier", "releases", "delta"),
    [(1.0, 1, 1e-5), (1.0, 6, 1e-5), (2.0, 8, 1e-5), (4.0, 50, 1e-6), (10.0, 3, 1e-3), (0.7, 2, 1e-8)],
)
def test_epsilon_is_that_of_dp_accounting(multiplier, releases, delta):
    """Its distribution of the privacy loss is exact but for a discretisation of 1e-7 at most here."""
    event = SelfComposedDpEvent(GaussianDpEvent(multiplier), releases)
    exact = PLDAccountant().compose(event).get_epsilon(delta)
    renyi = RdpAccountant().compose(event).get_epsilon(delta)
    spent = epsilon(multiplier, releases, delta)
    assert spent == pytest.approx(exact, rel=1e-6)
    assert 0.8 * renyi < spent < renyi


@pytest.mark.parametrize(("multiplier", "releases"), [(0.05, 100), (1.0, 1), (1e6, 1), (1e-3, 1000)])
def test_epsilon_keeps_its_delta_at_the_ends_too(multiplier, releases):
    spent = epsilon(multiplier, releases, DELTA)
    shift = sqrt(releases) / multiplier
    assert 0 <= spent < np.inf
    assert gaussian_delta(shift, spent) <= DELTA
    assert spent == 0 or gaussian_delta(shift, 0.999 * spent) > DELTA


@pytest.fixture
def mechanism(monkeypatch):
    """Leave the noise out, and write down its standard deviations."""
    deviations = []

    def mean_only(mean, deviation, shape=None):
        deviations.append(float(deviation))
        return np.full(shape, mean) if shape is not None else mean

    monkeypatch.setattr(privacy.np.random, "normal", mean_only)
    return deviations


def change(norm, place=0):
    """Make a change of a norm along one axis."""
    values = np.zeros(SIZE)
    values[place] = norm
    return values


WORST = {
    "against all others": [change(C)] * (CLIENTS - 1) + [change(-C)],
    "across all others": [change(C)] * (CLIENTS - 1) + [change(C, 1)],
    "alone": [change(0.0)] * (CLIENTS - 1) + [change(C)],
    "clipped": [change(C)] * (CLIENTS - 1) + [change(-1e6 * C)],
    "with one missing anyway": [change(C)] * (CLIENTS - 2) + [change(-C)],
    "with more than were expected": [change(C)] * (CLIENTS + 3) + [change(-C)],
}


@pytest.mark.parametrize("changes", WORST.values(), ids=WORST)
@pytest.mark.parametrize("kind", CENTRAL)
def test_one_client_more_or_less_is_hidden_as_claimed(mechanism, kind, changes):
    """All that a round releases is normal, so the worst δ at the claimed ε is known exactly."""
    if kind.startswith("client"):  # where the server does not clip
        changes = [values * min(1, C / max(C, np.linalg.norm(values))) for values in changes]
    released = []
    for replies in (changes, changes[:-1]):
        mechanism.clear()
        strategy = central_privacy(kind, FedAvg(), Z, C, CLIENTS)
        bits = [float(np.linalg.norm(values) > C) for values in replies]
        arrays = aggregate_changes(strategy, replies, bits=bits)
        # The next norm is e^(0.2 (share − 1/2)) times this one: it tells the noisy share.
        share = 5 * np.log(float(strategy.clipping_norm) / C) if kind.endswith("adaptive") else 0.0
        released.append((arrays.astype(float), share, sorted(mechanism)))
    (one, one_share, deviations), (other, other_share, others) = released
    assert deviations == others  # the noise itself tells nothing
    if kind.endswith("adaptive"):
        deviation, of_count = deviations
        squares = ((one_share - other_share) * CLIENTS / of_count) ** 2
    else:
        (deviation,), squares = deviations, 0.0
    squares += (np.linalg.norm(one - other) / deviation) ** 2
    for rounds in (1, 6):
        shift, claimed = sqrt(rounds * squares), epsilon(Z, rounds, DELTA)
        delta = normal.cdf(shift / 2 - claimed / shift) - exp(claimed) * normal.cdf(
            -shift / 2 - claimed / shift
        )
        assert delta <= DELTA * 1.001  # values are float32


def test_one_client_at_its_worst_reaches_the_bound(mechanism):
    """Otherwise there is more noise than there need be."""
    one, other = (
        aggregate_changes(central_privacy("server-fixed", FedAvg(), Z, C, CLIENTS), replies)
        for replies in (WORST["alone"], WORST["alone"][:-1])
    )
    assert np.linalg.norm(one - other) / mechanism[0] == pytest.approx(1 / Z, rel=1e-5)


@pytest.mark.parametrize("kind", ["server-fixed", "server-adaptive"])
@pytest.mark.parametrize("answer", ["an error", None])
def test_one_client_that_fails_is_hidden_in_a_whole_round(toy, arrays, mechanism, kind, answer):
    """No bound that looks at the others, and no second try, makes its absence change more than its share."""

    def run(alter):
        # With the last the median is 10, without it 5.5: what is let in would be less than the two tens.
        nodes = {i: toy.Client(i, step) for i, step in enumerate((1.0, 1.0, 10.0, 10.0, 10.0))}
        nodes[4].alter = alter
        private = central_privacy(kind, FedAvg(), Z, C, CLIENTS)
        federation = FedDAT(private, limits=Limits(max_change=1.5), quorum=Quorum(max_failure_rate=1.0))
        result = federation.start(toy.Grid(nodes), arrays, num_rounds=1)
        return np.concatenate([array.numpy().ravel() for array in result.arrays.values()])

    moved = np.linalg.norm(run(lambda content: content) - run(lambda content: answer))
    assert moved <= C / CLIENTS * (1 + 1e-5)


def test_a_round_is_not_tried_again_under_central_privacy(toy, arrays):
    nodes = {i: toy.Client(i, alter=(lambda content: "no") if i else None) for i in range(3)}
    grid = toy.Grid(nodes)
    private = central_privacy("server-fixed", FedAvg(), Z, C, 3)
    with pytest.raises(RuntimeError, match=r"^round 1: 1 of 3 clients gave a valid reply"):
        FedDAT(private, quorum=Quorum(max_failure_rate=0.5)).start(grid, arrays, num_rounds=1)
    assert sorted(grid.asked("train")) == [0, 1, 2]
