"""Whole runs of the real apps, in one process."""

import json


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_is_promised(federation):
    folder = federation(num_clients=3).serve()
    rows = rows_of(folder)
    assert [(row["round"], row["partition"]) for row in rows] == [(r, p) for r in (1, 2) for p in range(3)]
    for row in rows:
        assert row["delta-shared"] > 0
        assert row["delta-local"] > 0
        assert row.keys() >= {
            "student",
            "local",
            "teacher",
            "text-only",
            "bytes-up",
            "bytes-down",
            "train-seconds",
        }
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"settings.json", "metrics.jsonl", "adapter", "report.md", "curves.png"}
