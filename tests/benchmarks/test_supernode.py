"""The program that times messages at a real site: its arithmetic, and one whole small run."""

import json
from contextlib import contextmanager, nullcontext

import pytest

from benchmarks import supernode
from tests.conftest import ROOT


def test_a_message_takes_from_when_it_is_heard_of_to_when_its_reply_is_sent():
    lines = [
        (1.0, "INFO :      Receiving: query message (ID: abc)"),
        (1.5, "INFO :      Received successfully"),
        (3.0, "INFO :      Sending: query message (ID: def)"),
        (3.25, "INFO :      Sent successfully"),
        (7.0, "INFO :      Receiving: train message (ID: ghi)"),
        (9.0, "INFO :      Sent successfully"),
        (9.5, "INFO :      Sent successfully"),
    ]
    assert supernode.messages(lines) == [("query", 2.25), ("train", 2.0)]


def test_training_and_evaluation_are_taken_off():
    answered = [("query", 2.0), ("train", 9.0), ("train", 7.0), ("evaluate", 4.0), ("train", 8.0)]
    rows = [
        {"round": 1, "train-seconds": 5.0},
        {"round": 2, "train-seconds": 4.5, "evaluate-seconds": 1.5},
        {"round": 3, "train-seconds": 5.5},
    ]
    assert supernode.beside_work(answered, rows) == {
        "handshake": [2.0],
        "first training": [4.0],
        "later training": [2.5, 2.5],
        "evaluation": [2.5],
    }
    with pytest.raises(ValueError):
        supernode.beside_work(answered, rows[:2])


class Site:
    """A machine whose SuperNode answers every message; the first turn's are slow."""

    port = 0

    def __init__(self):
        self.lines, self.runs = [], 0

    @contextmanager
    def program(self, *command):
        yield self

    def flwr_run(self, app, option, run_config):
        """Train twice and evaluate; the app that does nothing does not say how long."""
        self.runs += 1
        now = 1000.0 * self.runs
        for kind in ("query", "train", "train", "evaluate"):
            took = 100.0 if self.runs <= 2 else float(self.runs)
            self.lines += [(now, f"Receiving: {kind} message"), (now + took, "Sent successfully")]
            now += took
        work = [{"train-seconds": 1.0}, {"train-seconds": 2.0, "evaluate-seconds": 3.0}]
        return [], work if run_config == "num-rounds=2 num-clients=1 seed=1" else []


def test_the_first_turns_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(supernode, "superlink", lambda folder: nullcontext(Site()))
    monkeypatch.setattr(supernode.time, "sleep", lambda seconds: None)
    few, file = ("--first", "1", "--repeats", "2", "--rounds", "2"), tmp_path / "figures.json"
    supernode.main([*few, "--set", "seed=1", "--json", str(file)])
    floor, ours = json.loads(file.read_text())["seconds"].values()
    assert floor == {kind: [3.0, 5.0] for kind in supernode.KINDS}
    assert list(ours.values()) == [[4.0, 6.0], [3.0, 5.0], [2.0, 4.0], [1.0, 3.0]]


@pytest.mark.slow
def test_it_times_this_app_beside_one_that_does_nothing(tmp_path):
    few, file = "train-examples=16 test-examples=4", tmp_path / "figures.json"
    turns = ("--first", "0", "--repeats", "1")
    supernode.main([*turns, "--rounds", "2", "--set", few, "--json", str(file)])
    seconds = json.loads(file.read_text())["seconds"]
    floor, ours = seconds["empty app"], seconds[str(ROOT)]
    assert [len(floor[kind]) for kind in ("handshake", "first training", "later training")] == [1, 1, 1]
    assert [len(ours[kind]) for kind in supernode.KINDS] == [1, 1, 1, 1]
