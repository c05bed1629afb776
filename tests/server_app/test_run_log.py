"""The record of a run: its rows, its folder, its first words."""

import json
import re

import pytest

from app.settings import SettingsError, read_settings
from server_app.run_log import RunLog


@pytest.fixture
def make(home, run_config):
    return lambda facts=(), **overrides: RunLog(read_settings(run_config(**overrides)), dict(facts))


def rows_of(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def answer(name, natural=2, **more):
    facts = {"text-only": 0.25, "unanswerable": 0.0, "skipped": 0}
    return {"name": name, "natural-partitions": natural, **facts, **more}


def test_a_row_is_what_a_client_measured_in_both_phases(make):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({1: answer("sketch"), 0: answer("clean")})
    run.replied(1, "train", 1, {"num-examples": 12, "ce-student": 2.0, "bytes-down": 100, "bytes-up": 90})
    run.replied(1, "train", 0, {"num-examples": 5, "ce-student": 3.0, "bytes-down": 100, "bytes-up": 90})
    run.replied(1, "evaluate", 1, {"num-examples": 8, "student": 0.5, "bytes-down": 70, "bytes-up": 0})
    assert run.rows == []
    run.round_ended(1)
    run.replied(2, "train", 0, {"num-examples": 5, "bytes-down": 1, "bytes-up": 2})
    run.round_ended(2)
    facts = {"text-only": 0.25, "unanswerable": 0.0}
    clean = {"round": 1, "partition": 0, "name": "clean", "num-examples": 5, "ce-student": 3.0, **facts}
    sketch = {"round": 1, "partition": 1, "name": "sketch", "num-examples": 12, "ce-student": 2.0, **facts}
    assert rows_of(run) == [
        {**clean, "bytes-down": 100, "bytes-up": 90},
        {**sketch, "bytes-down": 170, "bytes-up": 90, "student": 0.5, "test-examples": 8},
        {
            "round": 2,
            "partition": 0,
            "name": "clean",
            "num-examples": 5,
            "bytes-down": 1,
            "bytes-up": 2,
            **facts,
        },
    ]
    assert run.rows == rows_of(run)


def test_refusals_before_the_first_round_go_where_it_is_asked_again(make):
    for scored in (False, True):
        run = make(run_name=f"scored-{scored}")
        run.folder.mkdir(parents=True)
        run.joined({0: answer("clean"), 1: answer("sketch")})
        run.refused(0, "evaluate", 1, "late")
        if scored:
            run.replied(0, "evaluate", 0, {"num-examples": 8, "student": 0.5})
        run.round_ended(0)
        run.refused(1, "train", 0, "late")
        run.reopen(0)
        assert [row["round"] for row in rows_of(run)] == ([0, 0] if scored else [])


def test_a_client_cannot_write_into_the_row_of_another(make):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({0: answer("clean"), 1: answer("sketch")})
    run.replied(1, "train", 0, {"partition": 1, "round": 7, "name": "sketch", "text-only": 0.9})
    run.round_ended(1)
    (row,) = rows_of(run)
    assert (row["round"], row["partition"], row["name"], row["text-only"]) == (1, 0, "clean", 0.25)


def test_a_client_cannot_write_what_marks_a_row(make):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({0: answer("clean")})
    run.replied(1, "train", 0, {"refused": 1.0, "phase": 2.0, "ce-student": 0.5})
    run.round_ended(1)
    (row,) = rows_of(run)
    assert row.keys() == {"round", "partition", "name", "text-only", "unanswerable", "ce-student"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1.7e308, -0.1, 1.1])
def test_what_a_client_says_of_its_data_is_in_its_range(make, number):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({0: answer("clean", 10**18, **{"text-only": number, "unanswerable": number, "skipped": -1})})
    run.replied(1, "train", 0, {"num-examples": 12})
    run.round_ended(1)
    (row,) = rows_of(run)
    assert not {"text-only", "unanswerable"} & row.keys()


def test_what_is_not_a_number_is_none_in_the_file(make):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({0: answer("clean")})
    run.replied(1, "train", 0, {"ce-student": float("nan")})
    run.round_ended(1)
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()
    assert rows_of(run)[0]["ce-student"] is None


def test_a_refusal_is_a_row_of_its_own_at_once(make):
    run = make()
    run.folder.mkdir(parents=True)
    run.refused(3, "train", 1, "array 'x' is missing")
    expected = {"round": 3, "partition": 1, "phase": "train", "refused": "array 'x' is missing"}
    assert rows_of(run) == run.rows == [expected]


def test_the_settings_are_kept_with_what_ran(make, run_config):
    run = make({"source-hash": "abc"}, seed=3)
    run.folder.mkdir(parents=True)
    run.note()
    kept = json.loads((run.folder / "settings.json").read_text())
    assert re.fullmatch("[0-9a-f]{32}", run.token)
    assert kept == {**run_config(seed=3), "source-hash": "abc", "run-token": run.token}


def test_two_runs_of_one_name_have_different_tokens(make):
    assert make().token != make().token


def test_a_client_that_went_back_to_an_earlier_state_is_said_and_kept(make, caplog):
    run = make()
    run.folder.mkdir(parents=True)
    run.joined({0: answer("clean")})
    run.replied(4, "train", 0, {"num-examples": 12, "state-recovered": 1})
    assert caplog.messages[-1].startswith("round 4, train: partition 0 lost its newest private state")
    run.round_ended(4)
    assert rows_of(run)[0]["state-recovered"] == 1


@pytest.mark.parametrize("name", [None, 3, b"x", ["a"], "", "\n\x1b[2J"])
def test_what_a_client_should_not_say_of_itself_ends_nothing(make, name):
    """Its words reach the console and the files: one line, or none."""
    run = make()
    run.folder.mkdir(parents=True)
    words = {"name": name, "text-only": "much", "natural-partitions": 2.5, "skipped": True}
    run.joined({0: {key: value for key, value in words.items() if value is not None}})
    run.replied(1, "train", 0, {"num-examples": 12})
    run.round_ended(1)
    (row,) = rows_of(run)
    assert not {"text-only", "unanswerable"} & row.keys()
    assert row["name"] == ("[2J" if name == "\n\x1b[2J" else "partition 0")


def test_a_run_without_a_name_gets_one(make, home):
    run = make(run_name="", method="adapter")
    assert re.fullmatch(r"scenes-adapter-\d{8}-\d{6}", run.name)
    assert run.folder == home / "runs" / run.name
    assert run.facts["run-name"] == run.name


def test_a_name_that_is_taken_is_refused(make):
    make().folder.mkdir(parents=True)
    with pytest.raises(
        SettingsError, match=r"^run-name = 'test' is taken: .*/runs/test; allowed: another name"
    ):
        make()


def test_a_cut_benchmark_is_the_first_thing_said(make, caplog):
    run = make()
    caplog.set_level("INFO", "flwr")
    run.joined({1: answer("sketch", 5), 0: answer("clean", 5)})
    assert caplog.messages == [
        "the benchmark has 5 clients and is cut to the first 2, as many as there are nodes; for all of them,"
        ' in a simulation: flwr run . --federation-config "num-supernodes=5"',
        "scenes: 2 clients: clean, sketch",
    ]


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_whole_benchmark_is_not_called_cut(make, caplog, nodes):
    run = make()
    caplog.set_level("INFO", "flwr")
    run.joined({partition: answer(f"client {partition}") for partition in range(nodes)})
    assert not any("cut" in message for message in caplog.messages)


def test_what_cannot_be_answered_or_read_is_said(make, caplog):
    run = make()
    caplog.set_level("INFO", "flwr")
    run.joined(
        {0: answer("x-ray", unanswerable=0.125, skipped=3), 1: answer("art", unanswerable=0.0, skipped=0)}
    )
    assert caplog.messages[1:] == [
        "x-ray: 12.5 % of the questions scored have an answer that is not in the client's list",
        "x-ray: 3 rows that cannot be read were skipped",
    ]
