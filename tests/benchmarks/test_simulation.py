"""The program that times real simulations: its arithmetic, and one whole small run."""

import json

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


@pytest.mark.slow
def test_it_times_this_app_beside_one_that_does_nothing(tmp_path):
    few = "train-examples=16 test-examples=4"
    file = str(tmp_path / "figures.json")
    simulation.main(["--clients", "2", "--rounds", "3", "--repeats", "1", "--set", few, "--json", file])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [len(figures["starts"][name]) for name in ("empty app", str(ROOT))] == [1, 1]
    (later,) = figures["rounds"][str(ROOT)]
    assert all(later[key] > 0 for key in ("wall", "scheduled", "busy"))
