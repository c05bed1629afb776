"""The sum that both sides of secure aggregation come to, whoever of the clients falls out."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvgM

from app.settings.secure import LEAST_PARTIES
from strategies import secure_aggregation as server_side
from tests.secure_sites import BOUND, STEP, Sites, federate, losing, mean_of, refusals
from tests.strategies.conftest import Notes


def test_both_sides_say_the_same():
    assert server_side.LEAST_PARTIES == LEAST_PARTIES
    assert server_side.MESSAGE_TYPE == STEP


class TestSum:
    def test_it_is_the_plain_one_to_the_rounding(self, tmp_path, changes):
        result = federate(Sites(tmp_path, changes), start=3.0)
        exact = 3 + mean_of(changes)
        # And float32's own rounding, of a number below 4.
        assert np.abs(result.arrays["x"].numpy() - exact).max() < BOUND + 2 * 2**-23

    def test_over_rounds_every_round_adds_its_mean(self, tmp_path, changes):
        result = federate(Sites(tmp_path, changes), rounds=3)
        assert np.abs(result.arrays["x"].numpy() - 3 * mean_of(changes)).max() < 3 * (BOUND + 2**-22)

    def test_beyond_the_range_a_change_is_cut_by_the_client(self, tmp_path):
        sites = Sites(tmp_path, [np.array([value]) for value in (5.0, 0.0, -0.5)])
        assert federate(sites).arrays["x"].numpy() == pytest.approx(0.5 / 3, abs=BOUND)

    @pytest.mark.parametrize("step", ["keys", "deal", "train", "open"])
    def test_three_of_ten_may_be_lost_in_any_step(self, tmp_path, changes, step):
        notes, lost = Notes(), (0, 4, 9)
        sites = Sites(tmp_path, changes, losing(step, *lost))
        result = federate(sites, observers=[notes])
        counted = changes if step == "open" else [c for p, c in enumerate(changes) if p not in lost]
        assert np.abs(result.arrays["x"].numpy() - np.mean(counted, axis=0)).max() < BOUND + 2**-23
        assert refusals(notes) == {(party, "no reply in time") for party in lost}

    def test_losses_in_several_steps_add_up(self, tmp_path, changes):
        """Ten have keys, of whom seven must be left in the end: 9 deal, 8 train, 7 open."""

        def lose(step, party, reply):
            return None if (step, party) in {("deal", 1), ("train", 2), ("open", 3)} else reply

        result = federate(Sites(tmp_path, changes, lose))
        assert np.abs(result.arrays["x"].numpy() - mean_of(changes, 1, 2)).max() < BOUND + 2**-23

    def test_two_runs_have_the_same_bytes_whatever_the_masks(self, tmp_path, changes):
        results = [federate(Sites(tmp_path / name, changes), rounds=2) for name in ("one", "other")]
        one, other = (result.arrays["x"].numpy() for result in results)
        assert (one == other).all()

    def test_a_servers_optimizer_goes_on_from_the_mean(self, tmp_path, changes):
        options = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        secure, single = Sites(tmp_path / "secure", changes), Sites(tmp_path / "plain", changes)
        single.run_config["secure.aggregation"] = False
        one = federate(secure, strategy=FedAvgM(**options, server_learning_rate=0.5), rounds=2)
        other = federate(
            single,
            strategy=FedAvgM(**options, server_learning_rate=0.5),
            rounds=2,
            secure=None,
            weighting="uniform",
        )
        np.testing.assert_allclose(one.arrays["x"].numpy(), other.arrays["x"].numpy(), atol=4 * BOUND)


def test_the_bytes_of_the_exchange_are_counted(tmp_path, changes):
    notes = Notes()
    federate(Sites(tmp_path, changes[:3]), observers=[notes])
    (metrics, *_) = [metrics for _, phase, _, metrics in notes if phase == "train"]
    # 50 words up; two keys, two sealed pairs, six digests and three shares besides.
    assert metrics["bytes-up"] > 200 + 2 * 32 + 2 * 60 + 6 * 32 + 3 * 16
    assert metrics["bytes-down"] > 200 + 6 * 32 + 2 * 60
    assert "clipped" not in metrics


def test_without_it_the_clients_mod_changes_nothing(tmp_path, changes):
    sites = Sites(tmp_path, changes)
    sites.run_config["secure.aggregation"] = False
    result = federate(sites, secure=None, weighting="uniform")
    np.testing.assert_allclose(result.arrays["x"].numpy(), mean_of(changes), atol=1e-6)
    assert set(sites.steps) == {"query", "train"}
