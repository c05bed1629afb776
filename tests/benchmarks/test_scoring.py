"""The program that times scoring: what it prints and writes, and that it fails when scores differ."""

import json

import pytest
import torch

from benchmarks import scoring

SMALL = {"GRID": 4, "WIDTH": 16, "VOCABULARY": 50, "IMAGE_TOKEN": 49}


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(scoring, name, value)


def run(*arguments):
    return scoring.main(["--images", "1", "--repeats", "1", "--device", "cpu", *arguments])


def test_the_table_and_the_file(small, tmp_path, capsys):
    assert run("--candidates", "2", "5", "--json", str(tmp_path / "figures.json")) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["candidates"] for row in figures["rows"]] == [2, 5]
    assert all(row["ratio"] > 0 and row["difference"] <= 1e-5 for row in figures["rows"])
    assert "CPU threads" in figures["machine"]
    assert figures["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "times as fast" in printed
    assert "passed: tolerance 1e-05" in printed


@pytest.mark.parametrize("error", [2e-5, -2e-5, float("nan")])
def test_other_scores_fail(small, monkeypatch, capsys, error):
    real = scoring.log_likelihoods

    def wrong(*arguments):
        scores = real(*arguments).clone()
        scores[0, 1] += error
        return scores

    monkeypatch.setattr(scoring, "log_likelihoods", wrong)
    assert run("--candidates", "2") == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_candidates_are_three_times_as_fast():
    row = scoring.measure(10, images=2, repeats=5, device=torch.device("cpu"))
    assert row["difference"] <= 1e-5
    assert row["ratio"] >= 3
