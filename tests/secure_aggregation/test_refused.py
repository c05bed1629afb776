"""What secure aggregation does not go with."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from strategies import Combined, Limits, Quorum, SecureAggregation, central_privacy
from tests.secure_sites import BOUND, Sites, federate, losing, mean_of, plain


class TestRefused:
    """What needs more than a mean."""

    @pytest.mark.parametrize("strategy", [FedMedian(), FedTrimmedAvg(), Krum(), MultiKrum()])
    def test_strategies_that_look_at_single_replies(self, strategy, tmp_path, changes):
        name = type(strategy).__name__
        with pytest.raises(
            ValueError, match=f"^{name} looks at single replies, and secure aggregation tells"
        ):
            federate(Sites(tmp_path, changes), strategy=strategy)

    @pytest.mark.parametrize(
        ("strategy", "options", "line"),
        [
            (Combined(plain(), lambda *_: None), {}, "Combined looks at single replies"),
            (
                central_privacy("client-fixed", plain(), 1.0, 1.0, 10),
                {},
                "central differential privacy clips",
            ),
            (
                plain(),
                {"weighting": "num-examples"},
                "weighting is 'num-examples'; allowed under secure aggr",
            ),
            (plain(), {"handshake": False}, "handshake is False; allowed under secure aggregation: True"),
            (plain(), {"layout": dict}, "under secure aggregation a reply has one whole number for each"),
        ],
    )
    def test_other_combinations(self, tmp_path, changes, strategy, options, line):
        with pytest.raises(ValueError, match=f"^{line}"):
            federate(Sites(tmp_path, changes), strategy=strategy, **options)

    def test_other_arrays_for_some_clients(self, tmp_path, changes):
        class Personal(FedAvg):
            def configure_train(self, server_round, arrays, config, grid):
                messages = list(super().configure_train(server_round, arrays, config, grid))
                other = ArrayRecord({"x": Array(np.ones(50, np.float32))})
                messages[3].content = RecordDict({**messages[3].content, "arrays": other})
                return messages

        strategy = Personal(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        with pytest.raises(ValueError, match=r"^the strategy sends different arrays to clients of a round"):
            federate(Sites(tmp_path, changes), strategy=strategy)

    @pytest.mark.parametrize("threshold", [0.5, 0, 1.1])
    def test_a_threshold_of_half_or_less(self, threshold):
        with pytest.raises(ValueError, match=r"^threshold is .*; allowed: more than 0\.5, at most 1$"):
            SecureAggregation(None, threshold)

    @pytest.mark.parametrize(
        ("parties", "threshold", "needed"),
        [(3, 0.66, 3), (4, 0.66, 3), (5, 0.66, 4), (10, 0.66, 7), (100, 0.66, 66), (4, 0.51, 3), (5, 1.0, 5)],
    )
    def test_how_many_are_needed(self, parties, threshold, needed):
        assert SecureAggregation(None, threshold).needed(parties) == needed

    def test_limits_have_no_effect_and_the_log_says_so(self, tmp_path, changes, caplog):
        caplog.set_level("INFO", "flwr")
        result = federate(Sites(tmp_path, changes), limits=Limits(max_change=1e-9, clip_change=1e-9))
        assert np.abs(result.arrays["x"].numpy() - mean_of(changes)).max() < BOUND + 2**-23
        assert any("not held to each other (max_change, clip_change): secure" in m for m in caplog.messages)

    def test_the_quorum_counts_all_that_were_asked(self, tmp_path, changes):
        sites = Sites(tmp_path, changes, losing("keys", 0, 1, 2))
        with pytest.raises(RuntimeError, match=r"^round 1: 7 of 10 clients gave a valid reply, with min_cl"):
            federate(sites, quorum=Quorum(min_clients=8, try_again=False))
