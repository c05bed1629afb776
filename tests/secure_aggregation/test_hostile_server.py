"""A server that does not keep to the rules learns no single change."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from app.secure_sum import MASKED, digest
from tests.secure_sites import BOUND, Sites, federate, kind_of, losing, mean_of, refusals
from tests.strategies.conftest import Notes


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
