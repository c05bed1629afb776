"""Which runs stand beside a run, and what of them is shown."""

import json

import pytest

from server_app.comparison import is_over, runs_beside
from server_app.scores import scores

SETTINGS = {"run-name": "mine", "method": "feddat", "num-rounds": 2, "seed": 3, "run-token": "a"}


@pytest.fixture
def write(tmp_path):
    """Write a run; return its folder."""

    def write(name, branch="student", over=True, points=(0.5, 0.25), **settings):
        folder = tmp_path / name
        folder.mkdir()
        kept = {**SETTINGS, "run-name": name, "run-token": name, **settings}
        (folder / "settings.json").write_text(json.dumps(kept))
        rows = [{"round": 2, "partition": index, branch: score} for index, score in enumerate(points)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if over:
            (folder / "report.md").touch()
        return folder

    return write


def test_runs_that_differ_in_their_method_alone_are_beside_it(write):
    folder = write("mine")
    write("mine.adapter", method="adapter")
    write("mine.local", "local", method="local", points=(0.75, 1.0), tracker="wandb")
    write("mine.full", method="full", seed=4)  # another seed
    write("mine.head", method="adapter")  # not its method's name
    write("mine.ditto", method="ditto", over=False)
    write("mine2.adapter", method="adapter")
    assert is_over(folder)
    assert runs_beside(folder, SETTINGS) == {
        "one adapter\n(FedAvg)": {0: 0.5, 1: 0.25},
        "local\nonly": {0: 0.75, 1: 1.0},
    }


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_one_that_cannot_be_read_is_left_out(write, damage):
    folder = write("mine")
    (write("mine.adapter", method="adapter") / "settings.json").write_text(damage)
    assert runs_beside(folder, SETTINGS) == {}


def test_the_table_has_them_before_the_gain():
    rows = [
        {"round": 2, "partition": index, "name": name, "student": score, "text-only": 0.25}
        for index, (name, score) in enumerate([("clean", 0.75), ("sketch", 0.5)])
    ]
    header, lines = scores(rows, {"ditto": {0: 0.5, 1: 1.0, 7: 0.1}})
    assert [heading.split("\n")[0] for heading in header] == ["client", "student", "text", "ditto", "gain"]
    assert lines == [
        ["clean", "75.0", "25.0", "50.0", "50.0"],
        ["sketch", "50.0", "25.0", "100.0", "25.0"],
        ["mean", "62.5", "25.0", "75.0", "37.5"],
        ["worst", "50.0", "25.0", "50.0", "25.0"],
    ]


def test_a_run_that_sends_nothing_has_a_table_too():
    rows = [{"round": 1, "partition": 0, "name": "clean", "local": 0.5, "text-only": 0.25}]
    header, lines = scores(rows)
    assert [heading.split("\n")[0] for heading in header] == ["client", "local", "text"]
    assert lines[0] == ["clean", "50.0", "25.0"]
