"""The program that times protection: every part is timed as often as it is used, and too much of it fails."""

import json

import pytest

from benchmarks import protection


def test_every_part_is_timed_in_a_real_run(home, run_config, monkeypatch):
    from server_app import federation

    monkeypatch.setattr(federation, "write_report", lambda *_: None)
    calls = protection.measure(run_config(num_rounds=2, evaluate_every=2), 3)
    assert {part: len(seconds) for part, seconds in calls.items()} == {
        "load private state": 9,  # three clients in two rounds, and once to evaluate
        "train": 6,
        "save private state": 6,
        "check replies": 2,
        "write checkpoint": 3,  # and before the first round
    }
    assert all(seconds > 0 for part in calls.values() for seconds in part)


@pytest.mark.parametrize(("checks", "status"), [(0.3, 0), (0.5, 1)])
def test_the_share_of_a_rounds_training_decides(tmp_path, monkeypatch, capsys, checks, status):
    """Two clients that train 10 s each; files take 0.1 s each way, the server's 0.2 s: 0.6 s a round."""
    calls = {
        "load private state": [0.1, 0.1, 9.0],
        "train": [10.0, 11.0, 9.0],
        "save private state": [0.1],
        "check replies": [checks],
        "write checkpoint": [0.2],
    }
    monkeypatch.setattr(protection, "measure", lambda settings, clients: calls)
    path = tmp_path / "figures.json"
    assert protection.main(["--clients", "2", "--json", str(path)]) == status
    figures = json.loads(path.read_text())
    assert figures["share"] == pytest.approx((0.6 + checks) / 20)
    assert figures["round-seconds"]["train"] == 20
    assert "CPU threads" in figures["machine"]
    printed = capsys.readouterr().out
    assert f"{'FAILED' if status else 'passed'}: protection is {5 * (0.6 + checks):.2f} %" in printed
