"""Under local privacy: nothing that a site answers depends on its data but for noise, and that is counted."""

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from client_app import budget, local_training, messages, privacy
from tests.bad_input.given import domain, png
from tests.client_app.policy.replies import BROKEN, KINDS, SECRET, refusal, with_column


@pytest.mark.parametrize(("key", "asks", "most"), [("delta", 0.99, "0.0001"), ("epsilon", 0.6, "0.5")])
def test_a_server_cannot_make_local_noise_small(asked, key, asks, most):
    node = {"require-dp": "local", "max-epsilon": 0.5}
    replies = asked(node, test_examples=12, dp__mode="local", **{f"dp.{key}": asks})
    for reply in replies.values():
        assert refusal(reply) == f"a site has max-{key} = {most}; the run has dp.{key} = {asks}"


@pytest.fixture
def still_noise(monkeypatch):
    """Draw the same noise every time."""
    monkeypatch.setattr(privacy, "default_rng", lambda: np.random.Generator(np.random.PCG64(7)))


@pytest.mark.parametrize("policy", ["open", "closed"])
def test_under_local_privacy_only_the_noised_arrays_depend_on_the_data(vqa, still_noise, monkeypatch, policy):
    """All rows are others, there are more, some cannot be answered; all else of a reply is the same."""
    clock = iter(range(10**6))  # as if the one took longer
    monkeypatch.setattr(local_training.time, "perf_counter", lambda: float(next(clock) ** 2))
    others = [
        {**row, "question": "is it?", "answer": f"{n % 5}", "image": {"bytes": png(99 + n), "path": None}}
        for n, row in enumerate(domain(train=25, val=3, test=13, name="other"))
    ]
    one, other = (
        vqa(rows, dp__mode="local", node={"policy": policy, "site-name": "x"}) for rows in (None, others)
    )
    for kind in KINDS:
        assert not one[kind].has_error(), one[kind].error
        records, same = ({**reply[kind].content} for reply in (one, other))
        arrays, moved = records.pop("arrays", None), same.pop("arrays", None)
        assert {name: dict(record) for name, record in records.items()} == {
            name: dict(record) for name, record in same.items()
        }
        assert not {"text-only", "unanswerable", "skipped"} & set(dict(records.get("handshake", {})))
        if kind == "train":
            assert dict(records["metrics"]) == {"num-examples": 1}
            assert any(arrays[name].data != moved[name].data for name in arrays)


def damaged_data(monkeypatch, vqa):
    return vqa(with_column("image", BROKEN), dp__mode="local")


def few_examples(monkeypatch, vqa):
    return vqa(domain(train=9, test=9), dp__mode="local")


def overflow(monkeypatch, vqa):
    return vqa(dp__mode="local", learning_rate=1e30)


def breaks(monkeypatch, vqa):
    def fail(*_, **__):
        raise RuntimeError(SECRET)

    for work in ("train_round", "evaluate"):
        monkeypatch.setattr(messages, work, fail)
    return vqa(dp__mode="local")


@pytest.mark.parametrize("failing", [damaged_data, few_examples, overflow, breaks])
def test_under_local_privacy_a_failure_is_a_reply_of_noise(
    vqa, first, still_noise, monkeypatch, failing, caplog
):
    replies = failing(monkeypatch, vqa)
    assert not any(reply.has_error() for reply in replies.values())
    for kind in ("train", "evaluate"):
        assert dict(replies[kind].content["metrics"]) == {"num-examples": 1}
    handshake = dict(replies["query"].content["handshake"])
    assert handshake["name"] == "partition 0"
    assert not {"natural-partitions", "skipped", "unanswerable", "text-only"} & set(handshake)
    # σ = 2 √(2 ln 1.25/δ) / ε
    noise, deviation = np.random.Generator(np.random.PCG64(7)), 4 * np.sqrt(2 * np.log(1.25e5))
    for name, array in replies["train"].content["arrays"].items():
        before = first[name].numpy()
        expected = before + noise.normal(0.0, deviation, before.shape)
        np.testing.assert_allclose(array.numpy(), expected, rtol=1e-5)
    assert "this failed" in caplog.text


def test_under_local_privacy_a_lost_state_is_not_told(asked, home):
    """A round that failed has left none: it would tell of that one."""
    replies = asked(dp__mode="local", test_examples=12, state_round=1)
    assert "state-recovered" not in replies["train"].content["metrics"]
    assert dict(replies["evaluate"].content["metrics"]) == {"num-examples": 1}


def test_all_that_a_site_answers_costs_no_more_than_its_budget(asked, home):
    """However often a round is asked for, in whatever run. Of ε = 0.5, δ = 1e-5 three answers cost 0.530."""
    node = {"require-dp": "local", "max-epsilon": 0.54}
    settings = {"dp__mode": "local", "test_examples": 12}
    spent = "a site has spent its max-epsilon = 0.54 at max-delta = 0.0001"
    for run in ("a", "b", "a"):
        assert not asked(node, run=run, **settings)["train"].has_error()
    for run in ("a", "c"):
        assert refusal(asked(node, run=run, **settings)["train"]) == spent
    lines = (home / "clients" / "released-0.txt").read_text().splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        f"{run}-0123456789abcdef round 1" for run in ("a", "b", "a")
    ]
    squares = sum(float(line.split()[0]) for line in lines)
    event = SelfComposedDpEvent(GaussianDpEvent(np.sqrt(2 * np.log(1.25e5)) / 0.5), 3)
    exact = PLDAccountant().compose(event)
    assert budget.least_delta(squares, 0.54) == pytest.approx(exact.get_delta(0.54), rel=1e-5)
    assert exact.get_epsilon(1e-4) == pytest.approx(0.530, abs=5e-4)
    # Another site's are its own affair, and one that sets no bound has no such file.
    assert not asked({**node, "partition-id": 1}, run="a", **settings)["train"].has_error()


def test_what_was_spent_is_not_forgotten_by_damage(asked, home, caplog):
    node, settings = {"require-dp": "local"}, {"dp__mode": "local", "test_examples": 12}
    assert not asked(node, **settings)["train"].has_error()
    ledger = home / "clients" / "released-0.txt"
    for text in (ledger.read_text()[:-1], "", "-1 test\n", "a lot test\n", "\n"):
        ledger.write_text(text)
        assert (
            refusal(asked(node, **settings)["train"])
            == "train failed on partition 0: the site's log says why"
        )
        assert f"{ledger} is damaged" in caplog.text
        caplog.clear()


def test_a_run_whose_clients_send_no_scores_has_a_report(federation, monkeypatch):
    from server_app import federation as room
    from server_app.report import write_report

    monkeypatch.setattr(room, "write_report", write_report)
    folder = federation(2, dp__mode="local", max_change=1e9).serve()
    report = (folder / "report.md").read_text()
    assert "Scores were not measured" in report
    assert "nan" not in report
    assert "local, ε = " in report
    assert not (folder / "adapter-best").exists()
