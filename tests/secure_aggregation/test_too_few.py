"""Fewer clients than a sum needs: the round is tried again, or fails and says why."""

import numpy as np
import pytest

from app.secure_sum import MASKED, Codes, MaskedSum
from strategies import SecureAggregation
from strategies import secure_aggregation as server_side
from tests.secure_sites import BOUND, Sites, federate, losing, mean_of


class TestTooFew:
    @pytest.mark.parametrize(
        ("step", "lost", "line"),
        [
            ("keys", range(8), "too few clients exchanged keys and shares"),
            ("deal", range(4), "too few clients exchanged keys and shares"),
            ("train", range(4), "6 masked changes came, 7 are needed"),
        ],
    )
    def test_the_round_is_tried_again_and_then_fails(self, tmp_path, changes, step, lost, line):
        sites = Sites(tmp_path, changes, losing(step, *lost))
        with pytest.raises(RuntimeError) as caught:
            federate(sites)
        assert str(caught.value).startswith(f"round 1, tried twice: {server_side.NO_SUM}: {line}")
        assert sites.steps.count("keys") == 20
        assert "open" not in sites.steps

    def test_without_enough_shares_it_fails_at_once_and_says_why(self, tmp_path, changes):
        """What some have opened must not be opened again over others."""
        sites = Sites(tmp_path, changes, losing("open", 0, 1, 2, 3))
        line = (
            "^round 1: secure aggregation opens no sum: 6 shares of partition 0's secret came, 7 are needed:"
            " no reply in time$"
        )
        with pytest.raises(RuntimeError, match=line):
            federate(sites)
        assert sites.steps.count("train") == 10

    def test_a_second_try_has_other_masks_and_the_same_sum(self, tmp_path, changes):
        lost = iter([True] * 4)
        sites = Sites(tmp_path, changes, lambda s, p, r: None if s == "train" and next(lost, False) else r)
        result = federate(sites)
        assert np.abs(result.arrays["x"].numpy() - mean_of(changes)).max() < BOUND + 2**-23
        first, second = sites.sent("train")[-10:], sites.sent("keys")
        assert len({reply.content["secure"]["mask-key"] for reply in second}) == 20
        assert all(reply.content["arrays"]["x"].stype == MASKED for reply in first)

    def test_two_clients_are_too_few(self, tmp_path, changes):
        with pytest.raises(RuntimeError, match="opens no sum: too few clients exchanged keys and shares"):
            federate(Sites(tmp_path, changes[:2]))

    def test_more_than_can_be_added_up_are_too_many(self, tmp_path, changes):
        secure = SecureAggregation(MaskedSum(Codes(30, 1.0)))
        with pytest.raises(RuntimeError, match=r"^10 clients, of whom 4 can be added up; allowed: fewer, or"):
            federate(Sites(tmp_path, changes), secure=secure)
