"""What leaves a site, against a server that wants more and data with a secret in every place."""

import shutil

import pytest

from app.methods import METHODS
from client_app import messages
from client_app.policy import Policy
from tests.bad_input.given import domain, write
from tests.client_app.policy.replies import BROKEN, KINDS, SECRET, everything, refusal, with_column
from tests.conftest import ROOT


def without(column):
    return [{k: v for k, v in row.items() if k != column} for row in domain(name=SECRET)]


def not_parquet(folder):
    (folder / f"{SECRET}.parquet").write_bytes(b"PAR1 and then " + SECRET.encode())


def a_second_file(folder):
    write(folder, domain(name=f"second {SECRET}"), f"second {SECRET}")


def no_file(folder):
    (folder / f"{SECRET}.parquet").unlink()


def no_folder(folder):
    shutil.rmtree(folder)


FAILURES = {
    "a broken image": {"rows": with_column("image", BROKEN)},
    "a broken test image": {"rows": with_column("image", BROKEN, row=-1)},
    "an unknown split": {"rows": with_column("split", SECRET)},
    "no question": {"rows": with_column("question", None)},
    "no answer": {"rows": with_column("answer", None)},
    "a column is missing": {"rows": without("answer")},
    "a column of another type": {"rows": [{**row, "image": SECRET} for row in domain(name=SECRET)]},
    "no training rows": {"rows": domain(train=0, name=SECRET)},
    "no parquet": {"damage": not_parquet},
    "two files": {"damage": a_second_file},
    "no file": {"damage": no_file},
    "no folder": {"damage": no_folder},
    "a backbone that is not there": {"node": {"backbone": f"/{SECRET}"}},
    "a device that is not there": {"node": {"device": SECRET}},
    "a relative state-dir": {"node": {"state-dir": SECRET}},
    "a relative data-dir": {"node": {"data-dir": SECRET}},
    "a policy that is none": {"node": {"min-examples": SECRET}},
    "a partition that is none": {"node": {"partition-id": SECRET}},
    "an alias that is none": {"node": {"site-name": SECRET * 9}},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_goes_wrong_is_told_to_the_sites_log_alone(vqa, failure, caplog):
    replies = vqa(**failure)
    assert any(reply.has_error() for reply in replies.values())
    for kind, reply in replies.items():
        assert SECRET.encode() not in everything(reply), kind
        if reply.has_error():
            assert refusal(reply).startswith(f"{kind} failed on ") or "min-examples" in refusal(reply)
    assert SECRET in caplog.text


def test_an_open_site_says_what_is_wrong(vqa):
    reply = vqa(**FAILURES["a broken image"], node={"policy": "open"})["query"]
    assert f"{SECRET}.parquet row 3" in refusal(reply)


def test_nothing_of_good_data_is_in_a_reply(vqa):
    rows = [
        {**row, **dict.fromkeys(("question", "subdomain", "source", "image_id"), SECRET)}
        for row in domain(train=12, val=2, test=10, name=SECRET)
    ]
    rows = [{**row, "answer": f"{SECRET} {row['answer']}"} for row in rows]
    replies = vqa(rows)
    for reply in replies.values():
        assert not reply.has_error(), reply.error
        assert SECRET.encode() not in everything(reply)
    assert replies["query"].content["handshake"]["name"] == "partition 0"


def test_an_exceptions_own_words_do_not_leave(asked, monkeypatch, caplog):
    class SpecialError(Exception):
        pass

    def fail(*_, **__):
        try:
            raise KeyError(SECRET)
        except KeyError:
            raise SpecialError(f"in {SECRET}") from None

    monkeypatch.setattr(messages, "train_round", fail)
    monkeypatch.setattr(messages, "evaluate", fail)
    replies = asked()
    for kind in ("train", "evaluate"):
        text = everything(replies[kind]).decode()
        assert SECRET not in text
        assert "SpecialError" not in text
    assert SECRET in caplog.text


def test_what_both_sides_must_have_the_same_of_is_told(asked, monkeypatch):
    monkeypatch.setattr(messages, "source_hash", lambda: "f" * 64)
    assert refusal(asked()["train"]).startswith("source is ffffffffffff on partition 0 but ")


def test_a_server_cannot_ask_for_one_example(asked):
    """Its exact loss, on arrays of the server's choice, would tell its label."""
    for cut in ({"train_examples": 1}, {"train_examples": 9}):
        assert refusal(asked(**cut)["train"]) == "a site has fewer examples than its min-examples = 10"
    assert (
        refusal(asked(test_examples=1)["evaluate"]) == "a site has fewer examples than its min-examples = 10"
    )
    assert not asked(train_examples=10)["train"].has_error()
    assert not asked({"min-examples": 1}, train_examples=1)["train"].has_error()


@pytest.mark.parametrize("cut", [{"test_examples": 9}, {"test_examples": 1}, {"train_examples": 9}])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_handshake_tells_nothing_of_few_examples(vqa, cut, seed):
    """Of one question they would tell its answer, and each seed chooses another one."""
    rows = domain(train=12, val=2, test=20, name=SECRET)
    told = vqa(rows, seed=seed, **cut)["query"].content["handshake"]
    assert told.keys() & {"text-only", "unanswerable"} == set()
    assert "text-only" in vqa(rows)["query"].content["handshake"]


@pytest.mark.parametrize(("unanswerable", "told"), [(3, 0.0), (9, 0.0), (10, 0.33), (19, 0.33), (20, 0.67)])
def test_how_many_questions_have_no_answer_leaves_as_other_counts_do(vqa, unanswerable, told):
    rows = domain(train=12, val=2, test=30, name=SECRET)
    for row in rows[-unanswerable:]:
        row["answer"] = "never seen"
    assert vqa(rows)["query"].content["handshake"]["unanswerable"] == told


@pytest.mark.parametrize(
    ("node", "batch", "sizes"),
    [
        ({}, 9, [10]),
        ({}, 1, [10]),
        ({"min-examples": 4}, 3, [4, 6]),
        ({"policy": "open"}, 9, [9, 1]),
    ],
)
def test_no_step_is_on_fewer_than_min_examples(asked, monkeypatch, node, batch, sizes):
    """The last of nine and one would be a step on that one, with the rate that a server chose."""
    taken, step = [], METHODS["feddat"].step

    def spy(learner, optimizer, batch, targets, *rest):
        taken.append(len(targets))
        return step(learner, optimizer, batch, targets, *rest)

    monkeypatch.setattr(METHODS["feddat"], "step", spy)
    asked(node, train_examples=10, batch_size=batch)
    assert taken == sizes


ELSEWHERE = "a site reads no path that a run names: set {} in its own node-config"


@pytest.mark.parametrize("there", [True, False])
def test_a_server_cannot_have_a_site_read_a_folder_that_it_names(vqa, small_backbone, tmp_path, there):
    """Whether it is there, and what lies in it, is not told."""
    other = tmp_path / "other project"
    if there:
        write(other, domain(name=SECRET), SECRET)
    replies = vqa(node={"data-dir": None}, data_dir=str(other))
    assert {refusal(reply) for reply in replies.values()} == {ELSEWHERE.format("data-dir")}
    # An id of a hub is no path, though a folder of that name might be there.
    for path in (str(other), str(small_backbone), "~/model", "../model", "./model", "a/../b", "a/b/c"):
        replies = vqa(node={"backbone": None}, backbone=path)
        assert {refusal(reply) for reply in replies.values()} == {ELSEWHERE.format("backbone")}
    assert not vqa(node={"backbone": None}, backbone="tiny-vilt")["query"].has_error()
    open_site = {"backbone": None, "policy": "open"}
    assert not vqa(node=open_site, backbone=str(small_backbone))["query"].has_error()


HEAD_OF_ALL = {"benchmark": "cifar10-lt", "head": "shared", "loss": "cross-entropy", "train_examples": 0}


def kinds_refused(replies, why):
    return {kind for kind, reply in replies.items() if reply.has_error() and why in refusal(reply)}


@pytest.mark.parametrize("weights", ["adapter", "head", "all"])
def test_an_answer_head_of_the_sites_own_never_leaves(vqa, weights):
    """Its size and its weights would tell the site's answers."""
    for method in ("feddat", "adapter", "local", "full"):
        replies = vqa(node={"share-weights": weights}, head="shared", method=method)
        assert kinds_refused(replies, "whose clients have answer lists of their own") == set(KINDS)


@pytest.mark.parametrize(
    ("node", "refused"),
    [
        ({}, {"feddat", "full", "scaffold"}),
        ({"share-weights": "head"}, {"full", "scaffold"}),
        ({"share-weights": "all"}, set()),
        ({"policy": "open"}, set()),
        ({"policy": "open", "share-weights": "adapter"}, {"feddat", "full", "scaffold"}),
    ],
)
def test_which_weights_leave_is_the_sites_own_word(asked, small_cifar, node, refused):
    for method in ("feddat", "full", "scaffold"):
        replies = asked({"data-dir": str(small_cifar), **node}, **HEAD_OF_ALL, data_dir="/x", method=method)
        kinds = kinds_refused(replies, "a site has share-weights = ")
        assert kinds == (set(KINDS) if method in refused else set())
        assert method in refused or not replies["query"].has_error()


def test_all_that_leaves_stands_in_the_table_of_what_leaves(vqa):
    table = [line for line in (ROOT / "docs" / "privacy.md").read_text().splitlines() if line.startswith("|")]
    replies = vqa(domain(train=12, val=2, test=12, name=SECRET))
    query = replies["query"].content
    assert set(query) == {"handshake", "secret"}
    assert set(replies["train"].content) == {"arrays", "metrics"}
    assert set(replies["evaluate"].content) == {"metrics"}
    told = {*query["handshake"], *query["secret"]}
    for kind in ("train", "evaluate"):
        # Losses have one row of the table.
        told |= {name for name in replies[kind].content["metrics"] if name[:3] not in ("ce-", "kl-")}
    assert len(told) > 20
    assert {name for name in told if f"`{name}`" not in "".join(table)} == set()


def test_numbers_leave_rounded_and_counts_in_multiples(asked):
    replies = asked(train_examples=19, test_examples=11)
    train, evaluate = (dict(replies[kind].content["metrics"]) for kind in ("train", "evaluate"))
    assert (train["num-examples"], evaluate["num-examples"]) == (10, 10)
    said = dict(replies["query"].content["handshake"])
    for name, value in {**train, **evaluate, "text-only": said["text-only"]}.items():
        assert value == round(value, 2), name
    assert "ce-student" in train
    assert "student" in evaluate


def test_a_site_says_which_numbers_may_leave(asked):
    replies = asked({"share-metrics": "ce-student, student"}, test_examples=12)
    assert set(replies["train"].content["metrics"]) == {"num-examples", "ce-student"}
    assert set(replies["evaluate"].content["metrics"]) == {"num-examples", "student"}
    assert replies["train"].content["metrics"]["num-examples"] == 1
    assert "text-only" not in replies["query"].content["handshake"]
    several = {"local_epochs": 2, "test_examples": 12}
    for named in ("ce-student", "ce-student.epoch-2"):
        told = asked({"share-metrics": named}, **several)["train"].content["metrics"]
        assert set(told) == {"num-examples", named}
    replies = asked({"share-metrics": "none"}, test_examples=12)
    for kind in ("train", "evaluate"):
        assert dict(replies[kind].content["metrics"]) == {"num-examples": 1}


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ("none", {"none", "server-fixed", "client-fixed", "local"}),
        ("central", {"server-fixed", "client-fixed", "local"}),
        ("local", {"local"}),
    ],
)
def test_a_site_takes_part_only_in_runs_as_private_as_it_wants(asked, wanted, taken):
    for dp in ("none", "server-fixed", "client-fixed", "local"):
        replies = asked({"require-dp": wanted}, test_examples=12, dp__mode=dp, **{"num-clients": 1})
        why = f"a site has require-dp = '{wanted}'; the run has dp.mode = '{dp}'"
        refused = {kind for kind in KINDS if replies[kind].has_error() and refusal(replies[kind]) == why}
        assert refused == (set() if dp in taken else set(KINDS))


def test_a_site_takes_part_only_in_runs_with_secure_aggregation_if_it_wants(asked):
    replies = asked({"require-secure-aggregation": 3}, test_examples=12)
    line = "a site has require-secure-aggregation = 3; the run has secure.aggregation = false"
    assert {refusal(replies[kind]) for kind in KINDS} == {line}


def test_a_sites_name_is_its_own_word(vqa, asked):
    assert vqa(node={"site-name": "site B"})["query"].content["handshake"]["name"] == "site B"
    assert vqa(node={"policy": "open"})["query"].content["handshake"]["name"] == SECRET
    # Those of a drawn benchmark are no cells of data.
    assert asked()["query"].content["handshake"]["name"] == "clean"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"policy": "lax"}, "policy = 'lax'; allowed: 'open' or 'closed'"),
        ({"min-examples": 0}, "min-examples = 0; allowed: greater than or equal to 1"),
        ({"min-examples": 2.0}, "min-examples = 2.0; allowed: a whole number"),
        ({"metric-decimals": -1}, "metric-decimals = -1; allowed: greater than or equal to 0"),
        ({"require-dp": "much"}, "require-dp = 'much'; allowed: 'none', 'central' or 'local'"),
        (
            {"share-metrics": "my-loss"},
            "share-metrics = 'my-loss'; allowed: 'all', 'none', or of ce-local, ce-mixed, ce-student, ",
        ),
    ],
)
def test_a_policy_that_cannot_be_used_is_named(given, line):
    with pytest.raises(ValueError) as caught:
        Policy.of(given)
    assert str(caught.value).startswith(f"node-config: {line}")


def test_a_site_is_closed_unless_it_is_a_simulations_worker(monkeypatch):
    assert Policy.of({}).policy == "closed"
    monkeypatch.setattr("client_app.policy.in_simulation", lambda: True)
    assert Policy.of({}).policy == "open"
    assert Policy.of({"policy": "closed"}).min_examples == 10
