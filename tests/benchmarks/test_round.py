"""The program that times a round: every part is where it belongs, and models are opened once."""

import pytest

from app.backbones import load_backbone
from app.methods import _open
from benchmarks import round as program


def test_the_parts_of_rounds_worked_out_by_hand():
    """Round 1 ends at 20, after 10 s; round 2 takes 15 s: two clients of 5 and 4 s with steps of 3 and 2."""
    watch = program.Stopwatch(lambda: 0.0)
    watch.began = [10.0, 20.0, 35.0]
    watch.counts.update({"backbones loaded": 1})

    def message(kind, server_round, came, first, last, left, work):
        row = {"kind": kind, "round": server_round, "came": came, "first": first, "last": last}
        return {**row, "left": left, "work": work}

    watch.messages = [
        {"kind": "query", "round": 0, "came": 2.0, "left": 3.0, "work": 0.0},
        message("train", 1, 11, 13, 15, 16, 2.0),
        message("train", 2, 21, 22, 25.5, 26, 3.0),
        message("train", 2, 27, 27.5, 30, 31, 2.0),
        message("evaluate", 2, 32, 32.5, 33.5, 34, 1.0),
    ]
    found = program.figures(watch, started=1.0)
    assert (found["round"], found["work"]) == (15, 6)
    assert (found["inside"], found["outside"]) == (11 - 6, 15 - 11)
    assert found["overhead"] == pytest.approx(9 / 6)
    assert (found["before-step"], found["before-step-most"]) == (0.75, 1)
    assert (found["after-step"], found["after-step-most"]) == (0.75, 1)
    assert (found["start"], found["first-round"], found["first-round-work"]) == (9, 10, 2)
    assert found["first-before-step"] == 2
    assert found["counts"] == {"backbones loaded": 1}


def test_a_process_loads_the_backbone_once_and_processes_a_clients_data_once(home, run_config, monkeypatch):
    from server_app import federation

    monkeypatch.setattr(federation, "write_report", lambda *_: None)
    for cache in (load_backbone, _open):
        cache.cache_clear()
    ticks = iter(range(10**6))
    found = program.measure(run_config(num_rounds=3), 3, lambda: float(next(ticks)))
    # Server and clients share the backbone; each client has a training and a test split.
    assert found["counts"] == {"backbones loaded": 1, "adapters built": 1, "splits processed": 6}
    # A tick at the beginning and one at the end: 3 steps and an evaluation of each of 3 clients.
    assert found["work"] == 3 * (3 + 1)
    assert found["round"] > found["work"]


def test_the_table_has_a_column_for_each_federation(monkeypatch, capsys):
    keys = ("round", "work", "inside", "outside", "before-step", "after-step", "start", "first-round")
    line = {key: 0.25 for key in keys} | {"before-step-most": 0.5, "after-step-most": 0.5, "overhead": 0.125}
    line |= {"first-round-work": 0.125, "counts": {"backbones loaded": 1}}
    monkeypatch.setattr(program, "measure", lambda settings, clients, clock: {"clients": clients, **line})
    program.main(["--clients", "5", "20"])
    printed = capsys.readouterr().out
    assert "5 clients" in printed
    assert "20 clients" in printed
    assert "250.0 ms, most 500.0" in printed
    assert "12.5 %" in printed
