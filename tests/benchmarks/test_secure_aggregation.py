"""The program that measures secure aggregation: every step of every client is counted."""

import json

from benchmarks import secure_aggregation


def test_every_step_is_timed_and_the_bytes_are_counted(tmp_path, home, capsys):
    path = tmp_path / "figures.json"
    secure_aggregation.main(["--clients", "4", "--values", "100", "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert all(row[f"{step}-ms"] > 0 for step in secure_aggregation.STEPS)
    # Two keys, three sealed pairs, eight digests, four shares.
    assert row["bytes-up"] > 2 * 32 + 3 * 60 + 8 * 32 + 4 * 16
    assert "100 values" in capsys.readouterr().out


def test_lost_clients_do_not_open(home):
    sites, _ = secure_aggregation.measure(10, 100, 3)
    assert {step: len(seconds) for step, seconds in sites.seconds.items()} == {
        "keys": 10,
        "deal": 10,
        "train": 10,
        "open": 7,
    }
