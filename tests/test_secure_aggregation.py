"""Both sides of secure aggregation together: drop-outs, attempts, and who does not keep to the rules."""

import json
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from flwr.supercore.task_identity import TaskIdentity

from app.secure_sum import MASKED, Codes, MaskedSum, digest
from app.settings.secure import LEAST_PARTIES
from strategies import Combined, Limits, Quorum, SecureAggregation, central_privacy
from strategies import secure_aggregation as server_side
from tests.secure_sites import STEP, Sites, federate, kind_of, plain
from tests.strategies.conftest import Notes

BOUND = 2 / (2**20 - 1)  # of a mean: one step of the codes


@pytest.fixture(autouse=True)
def task(monkeypatch):
    """Messages can only be made inside a Flower task; and no machine here loses its power."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def changes():
    random = np.random.default_rng(0)
    return [random.uniform(-1, 1, 50) for _ in range(10)]


def mean_of(changes, *left):
    return np.mean([change for party, change in enumerate(changes) if party not in left], axis=0)


def losing(step, *parties):
    """Lose the answers of some parties to a step."""
    return lambda now, party, reply: None if now == step and party in parties else reply


def refusals(notes):
    return {(party, reason) for _, _, party, reason in notes if isinstance(reason, str)}


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


def saying(**said):
    """Change an answer of the exchange."""

    def change(reply):
        reply.content["secure"] = ConfigRecord({**reply.content["secure"], **said})
        return reply

    return change


def with_array(array):
    def change(reply):
        reply.content["arrays"] = ArrayRecord({"x": array})
        return reply

    return change


def with_share(reply):
    given = list(reply.content["secure"]["shares"])
    given[5] = bytes(16)
    return saying(shares=given)(reply)


def with_sealed(reply):
    return saying(sealed=[b"1" * 59 if sealed else b"" for sealed in reply.content["secure"]["sealed"]])(
        reply
    )


HOSTILE = {
    "a short key": ("keys", saying(**{"mask-key": b"1" * 31}), "a public key is no 32 bytes"),
    "no key": ("keys", saying(**{"channel-key": 3}), "a public key is no 32 bytes"),
    "a key with which all have one secret": (
        "keys",
        saying(**{"channel-key": bytes(32)}),
        "a public key is one with which all have the same secret",
    ),
    "no shares": ("deal", saying(sealed="x"), "what it deals are no shares"),
    "shares of another length": ("deal", with_sealed, "what it deals are not the shares of 10 parties"),
    "digests of another number": (
        "deal",
        saying(digests=[b"1" * 32]),
        "what it deals are not the shares of 10 parties",
    ),
    "another shape": (
        "train",
        with_array(Array("float32", (49,), MASKED, bytes(196))),
        "array 'x' has shape (49,), sent as (50,)",
    ),
    "another modulus": (
        "train",
        with_array(Array("float32", (50,), MASKED, bytes(400))),
        "array 'x' holds 400 bytes instead of 200",
    ),
    "another type": (
        "train",
        with_array(Array("uint64", (50,), MASKED, bytes(400))),
        "array 'x' is uint64, sent as float32",
    ),
    "no mask": (
        "train",
        with_array(Array(np.zeros(50, np.float32))),
        f"array 'x' is written as 'numpy.ndarray', sent as '{MASKED}'",
    ),
    "a share that was not dealt": (
        "open",
        with_share,
        "its share of partition 5's secret is not the one that was dealt",
    ),
    "a share too few": ("open", saying(shares=[b"1" * 16]), "it gives no 10 shares"),
}


@pytest.mark.parametrize(("step", "change", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_malformed_is_refused_and_the_others_go_on(tmp_path, changes, step, change, reason):
    notes = Notes()
    sites = Sites(tmp_path, changes, lambda s, p, reply: change(reply) if (s, p) == (step, 3) else reply)
    result = federate(sites, observers=[notes])
    counted = mean_of(changes) if step == "open" else mean_of(changes, 3)
    assert np.abs(result.arrays["x"].numpy() - counted).max() < BOUND + 2**-23
    assert refusals(notes) == {(3, reason)}


def test_shares_that_cannot_be_read_cost_their_dealer_alone(tmp_path, changes):
    """Partition 3 seals nothing that partition 4 can read; nine others can."""

    def spoil(step, party, reply):
        if (step, party) == ("deal", 3):
            sealed = list(reply.content["secure"]["sealed"])
            sealed[4] = bytes(60)
            return saying(sealed=sealed)(reply)
        return reply

    notes = Notes()
    result = federate(Sites(tmp_path, changes, spoil), observers=[notes])
    assert np.abs(result.arrays["x"].numpy() - mean_of(changes)).max() < BOUND + 2**-23
    assert refusals(notes) == set()


def test_a_vector_that_is_no_masked_change_ends_the_run_with_a_line(tmp_path, changes):
    """Nobody can tell whose it is."""
    random = np.random.default_rng(1).integers(0, 2**32, 50, np.uint32)
    hostile = with_array(Array("float32", (50,), MASKED, random.tobytes()))
    sites = Sites(tmp_path, changes, lambda s, p, r: hostile(r) if (s, p) == ("train", 3) else r)
    with pytest.raises(
        RuntimeError, match="the sum of 10 clients is not one of numbers from -1 to 1: one of"
    ):
        federate(sites)


class TestHostileServer:
    """What a client does not do, whoever asks."""

    @pytest.fixture
    def sites(self, tmp_path, changes):
        return Sites(tmp_path, changes[:5])

    @pytest.fixture
    def asked(self, sites):
        """Run a round and return the messages to partition 2, by step, and its context."""
        federate(sites)
        node = sites.node_id(2)
        told = {
            kind_of(m): m for way, m in sites.wire if way == "to client" and m.metadata.dst_node_id == node
        }
        return told, sites.contexts[node]

    def ask(self, sites, message, context, **said):
        message = deepcopy(message)
        message.content["config"] = ConfigRecord({**message.content["config"], **said})
        return sites.client_app(message, context)

    def again(self, sites, told, context, *steps):
        """Go through a round again up to a step, with keys of now."""
        answers = {}
        for step in steps:
            said = {}
            if step == "deal":
                own = list(told["deal"].content["config"]["parties"]).index(2)
                for kind in ("mask-key", "channel-key"):
                    keys = list(told["deal"].content["config"][f"{kind}s"])
                    keys[own] = answers["keys"].content["secure"][kind]
                    said[f"{kind}s"] = keys
            answers[step] = self.ask(sites, told[step], context, **said)
        return answers

    def test_the_sum_of_a_round_is_opened_once(self, sites, asked):
        told, context = asked
        with pytest.raises(ValueError, match="no attempt at a sum waits here for what follows 'train'"):
            self.ask(sites, told["open"], context)

    def test_a_round_that_is_run_again_is_opened_over_the_same_clients_alone(self, sites, asked):
        """So that no difference of two sums is one client's change."""
        told, context = asked
        self.again(sites, told, context, "keys", "deal", "train", "open")
        self.again(sites, told, context, "keys", "deal", "train")
        with pytest.raises(
            ValueError, match=r"^round 1 was summed over partitions 0 1 2 3 4 before; allowed"
        ):
            self.ask(sites, told["open"], context, came=[0, 1, 2, 3])

    def test_never_both_secrets_of_one(self, tmp_path, changes):
        """Of whom came, the share of its own mask; of partition 4, who did not, of its key; and no more."""
        answers = {}

        def note(step, party, reply):
            answers[step, party] = reply.content.config_records.get("secure")
            return None if (step, party) == ("train", 4) else reply

        sites = Sites(tmp_path, changes[:5], note)
        federate(sites)
        digests = [answers["deal", dealer]["digests"] for dealer in range(5)]
        given = [digest(share) for share in answers["open", 2]["shares"]]
        assert given == [*(digests[dealer][2] for dealer in range(4)), digests[4][5 + 2]]
        node = sites.node_id(2)
        (asked,) = (
            message
            for way, message in sites.wire
            if way == "to client" and message.metadata.dst_node_id == node and kind_of(message) == "open"
        )
        for came in ([0, 1, 2, 4], [1, 2, 3, 4]):
            with pytest.raises(ValueError, match="waits here for what follows 'train'"):
                self.ask(sites, asked, sites.contexts[node], came=came)

    def test_after_a_refusal_nothing_more_is_answered(self, sites, asked):
        told, context = asked
        self.again(sites, told, context, "keys", "deal", "train")
        with pytest.raises(ValueError, match=r"^came = "):
            self.ask(sites, told["open"], context, came=[0, 1, 3, 4])
        with pytest.raises(ValueError, match="waits here for what follows 'train'"):
            self.ask(sites, told["open"], context)

    def test_of_two_processes_with_a_message_each_one_alone_answers(self, sites, asked, monkeypatch):
        told, context = asked
        self.again(sites, told, context, "keys", "deal")
        rename, others = Path.rename, []

        def renaming(path, target):
            """Let the other process be quicker."""
            if not others:
                others.append(None)
                others.append(self.ask(sites, told["train"], context))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", renaming)
        with pytest.raises(ValueError, match="waits here for what follows 'deal'"):
            self.ask(sites, told["train"], context)
        assert others[1].content["arrays"]["x"].stype == MASKED

    def test_no_mask_is_used_twice(self, sites, asked):
        told, context = asked
        self.again(sites, told, context, "keys", "deal", "train")
        with pytest.raises(ValueError, match="waits here for what follows 'deal'"):
            self.ask(sites, told["train"], context)

    def test_shares_are_dealt_once(self, sites, asked):
        told, context = asked
        self.again(sites, told, context, "keys", "deal")
        with pytest.raises(ValueError, match="waits here for what follows 'keys'"):
            self.ask(sites, told["deal"], context)

    @pytest.mark.parametrize("step", ["deal", "train", "open"])
    @pytest.mark.parametrize(
        "said",
        [{"server-round": 2}, {"attempt": "00"}, {"run-token": "abd"}],
        ids=lambda said: next(iter(said)),
    )
    def test_what_is_of_another_round_attempt_or_run_is_refused(self, sites, asked, step, said):
        told, context = asked
        steps = ["keys", "deal", "train", "open"]
        self.again(sites, told, context, *steps[: steps.index(step)])
        with pytest.raises(ValueError, match="no attempt at a sum waits here"):
            self.ask(sites, told[step], context, **said)

    def test_keys_are_new_in_every_attempt(self, sites, asked):
        told, context = asked
        answers = [self.ask(sites, told["keys"], context).content["secure"] for _ in range(20)]
        assert len({answer[kind] for answer in answers for kind in ("mask-key", "channel-key")}) == 40

    @pytest.mark.parametrize(
        ("step", "said", "line"),
        [
            ("deal", {"threshold": 2}, "threshold = 2 of 5 parties; allowed: 3 to 5"),
            ("deal", {"parties": [0, 1, 2, 3, 3]}, "5 parties; allowed: at least 3, each once"),
            ("deal", {"mask-keys": [b"1" * 32] * 5}, "this site's own keys are not among the parties'"),
            ("deal", {"parties": [0, 1, 3, 4, 5]}, "this site's own keys are not among the parties'"),
            ("train", {"dealers": [0, 1, 3, 4]}, r"dealers = \[0, 1, 3, 4\]; allowed: this site and as many"),
            (
                "train",
                {"dealers": [0, 1, 2]},
                r"dealers = \[0, 1, 2\]; allowed: this site and as many others",
            ),
            ("train", {"dealers": [0, 1, 2, 3, 9]}, "the message names clients that are not parties"),
            ("train", {"sealed": [b""]}, "5 dealers, but not as many sealed shares"),
            ("open", {"came": [2]}, r"came = \[2\]; allowed: this site and others that dealt, 4 or more"),
            ("open", {"came": [0, 1, 3, 4]}, r"came = \[0, 1, 3, 4\]; allowed: this site and others that"),
            ("open", {"came": [0, 1, 2, 3, 9]}, "the message names clients that are not parties"),
            ("open", {"step": "all"}, "step = 'all'; allowed: 'keys', 'deal', 'open'"),
        ],
    )
    def test_what_no_honest_server_says_is_refused(self, sites, asked, step, said, line):
        told, context = asked
        steps = ["keys", "deal", "train", "open"]
        self.again(sites, told, context, *steps[: steps.index(step)])
        with pytest.raises(ValueError, match=f"^{line}"):
            self.ask(sites, told[step], context, **said)

    def test_a_site_may_want_more_in_a_sum(self, tmp_path, changes):
        notes = Notes()
        sites = Sites(tmp_path, changes[:5])
        sites.contexts[sites.node_id(2)].node_config["require-secure-aggregation"] = 6
        result = federate(sites, observers=[notes])
        line = "a site has require-secure-aggregation = 6; a sum would be of 5"
        assert refusals(notes) == {(2, line)}
        assert np.abs(result.arrays["x"].numpy() - mean_of(changes[:5], 2)).max() < BOUND + 2**-23

    def test_a_site_that_wants_more_opens_no_smaller_sum(self, tmp_path, changes):
        """Five exchange shares, one falls out: the sum of four is opened without the site that wants five."""
        notes = Notes()
        sites = Sites(tmp_path, changes[:5], losing("train", 4))
        sites.contexts[sites.node_id(2)].node_config["require-secure-aggregation"] = 5
        line = "opens no sum: 3 shares of partition 0's secret came, 4 are needed: a site has require-sec"
        with pytest.raises(RuntimeError, match=line):
            federate(sites, observers=[notes])

    def test_a_run_without_it_asks_for_nothing(self, sites, asked):
        told, context = asked
        sites.run_config["secure.aggregation"] = False
        with pytest.raises(ValueError, match=r"^the run has secure\.aggregation = false$"):
            self.ask(sites, told["keys"], context)

    def test_clients_who_are_told_different_things_share_no_secret(self, tmp_path, changes):
        """A key of its own in a party's place gives a server no sum: the shares cannot be read."""

        def lie(step, party, message):
            if (step, party) == ("deal", 2):
                keys = list(message.content["config"]["channel-keys"])
                keys[0] = b"9" * 32
                message.content["config"]["channel-keys"] = keys
            return message

        with pytest.raises(RuntimeError, match=r"\d shares of partition \d's secret came, 4 are needed"):
            federate(Sites(tmp_path, changes[:5], before=lie))


class TestFiles:
    def test_of_an_attempt_nothing_is_left_but_whose_sum_was_opened(self, tmp_path, changes):
        federate(Sites(tmp_path, changes), rounds=2)
        files = sorted(path.name for path in (tmp_path / "3").iterdir())
        assert files == ["summed-3.txt"]
        lines = (tmp_path / "3" / "summed-3.txt").read_text().splitlines()
        assert [line.split(" ", 1)[1] for line in lines] == [f"{r} 0 1 2 3 4 5 6 7 8 9" for r in (1, 2)]

    def test_what_is_kept_meanwhile_is_the_sites_alone(self, tmp_path, changes):
        modes = set()

        def look(step, party, reply):
            modes.update(path.stat().st_mode & 0o777 for path in (tmp_path / str(party)).glob("secure-*"))
            return reply

        federate(Sites(tmp_path, changes, look))
        assert modes == {0o600}

    def test_after_training_its_own_secrets_are_gone(self, tmp_path, changes):
        def look(step, party, reply):
            if step == "train":
                (file,) = (tmp_path / str(party)).glob("secure-*")
                assert not {"own", "mask", "channel"} & json.loads(file.read_text()).keys()
            return reply

        federate(Sites(tmp_path, changes, look))

    def test_what_is_left_of_a_run_that_ended_in_between_is_deleted(self, tmp_path, changes):
        (tmp_path / "3").mkdir(mode=0o700)
        old, young = (tmp_path / "3" / f"secure-3-{name}.json" for name in ("old", "young"))
        for path in (old, young):
            path.touch(0o600)
        os.utime(old, (1, 1))
        federate(Sites(tmp_path, changes))
        assert (old.exists(), young.exists()) == (False, True)

    def test_no_secret_is_in_any_log_or_message(self, tmp_path, changes, caplog):
        caplog.set_level(0)
        secrets = []

        def look(step, party, reply):
            for file in (tmp_path / str(party)).glob("secure-*"):
                kept = json.loads(file.read_text())
                secrets.extend(kept[name]["hex"] for name in ("own", "mask", "channel") if name in kept)
            return reply

        sites = Sites(tmp_path, changes, look)
        federate(sites)
        assert len(set(secrets)) == 30
        sent = b"".join(str(message.content).encode() for _, message in sites.wire)
        for secret in secrets:
            assert secret not in caplog.text
            assert repr(bytes.fromhex(secret)).encode() not in sent


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
