"""The program that times real simulations: its arithmetic, and one whole small run."""

import json
from contextlib import nullcontext

import pytest

from benchmarks import simulation
from tests.conftest import ROOT


def test_workers_take_the_next_piece_as_they_get_free():
    assert simulation.scheduled([3, 2, 2, 1], workers=1) == 8
    # One has 3 and then 1; the other 2 and 2.
    assert simulation.scheduled([3, 2, 2, 1], workers=2) == 4
    assert simulation.scheduled([8, 8, 8, 8, 8], workers=2) == 24
    assert simulation.scheduled([5, 1], workers=4) == 5


def test_a_round_is_held_against_its_clients_own_seconds():
    row = {"train-seconds": 4.0, "evaluate-seconds": 1.0}
    rows = [{**row, "round": server_round} for server_round in (1, 2, 3) for _ in range(3)]
    run = {"began": [10.0, 40.0, 52.5], "rows": rows}
    # Round 1 has the start in it, round 3 no end; round 2 has three clients on two workers.
    assert simulation.rounds(run, workers=2) == [{"wall": 12.5, "scheduled": 10.0, "busy": 7.5}]


def test_the_tables_worked_out_by_hand(capsys):
    starts = {"empty app": [8.0, 9.0, 10.0], "ours": [15.0, 12.0, 13.5]}
    later = {"empty app": [], "ours": [{"wall": 12.5, "scheduled": 10.0, "busy": 7.5}] * 2}
    simulation.show(starts, later, "a title")
    cells = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    assert ["ours", "13.5", "s", "12.0–15.0", "4.5", "s"] in cells
    assert ["ours", "2,", "25.0", "s", "20.0", "s", "25.0", "%", "60", "%"] in cells


def test_first_turns_are_left_out_and_the_last_one_has_all_rounds(tmp_path, monkeypatch):
    asked, file = [], tmp_path / "figures.json"

    def simulate(app, machine, clients, workers, run_config):
        asked.append((app.name, run_config))
        return {"began": [100.0 / len(asked), 60.0, 80.0], "rows": []}

    monkeypatch.setattr(simulation, "simulate", simulate)
    monkeypatch.setattr(simulation, "superlink", lambda folder, *options: nullcontext())
    few = ("--first", "1", "--repeats", "2", "--rounds", "3", "--set", "seed=1")
    simulation.main([*few, "--apps", str(tmp_path / "ours"), "--json", str(file)])
    empty, ours, last = (
        ("empty_app", "num-rounds=1 "),
        ("ours", "num-rounds=1 seed=1"),
        ("ours", "num-rounds=3 seed=1"),
    )
    assert asked == [empty, ours, empty, ours, empty, last]
    assert list(json.loads(file.read_text())["starts"].values()) == [[100 / 3, 20], [25, 100 / 6]]


@pytest.mark.slow
def test_it_times_this_app_beside_one_that_does_nothing(tmp_path):
    few = ("--clients", "2", "--rounds", "3", "--first", "0", "--repeats", "1")
    file = str(tmp_path / "figures.json")
    simulation.main([*few, "--set", "train-examples=16 test-examples=4", "--json", file])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [len(figures["starts"][name]) for name in ("empty app", str(ROOT))] == [1, 1]
    (later,) = figures["rounds"][str(ROOT)]
    assert all(later[key] > 0 for key in ("wall", "scheduled", "busy"))
