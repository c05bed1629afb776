"""The program that measures the wire: real sizes, and cells that are run once."""

import json

import pytest

from benchmarks import wire


def test_the_adapter_of_vilt_b32_is_as_small_as_promised():
    """By its real names, which count; 3.58 MB are the values alone."""
    adapter = wire.vilt_b32_adapter()
    assert sum(value.numel() for value in adapter.values()) == 12 * (2 * 48 * 768 + 48 + 768)
    found = wire.sizes(adapter, 1)
    limits = {"float32": 3.59e6, "bfloat16": 1.80e6, "int8": 0.92e6, "int4": 0.48e6}
    assert {p: one["bytes"] <= limits[p] for p, one in found.items()} == dict.fromkeys(limits, True)
    assert all(one["write-ms"] > 0 and one["read-ms"] > 0 for one in found.values())


def test_a_cell_is_a_run_and_counts_its_bytes(home, run_config, monkeypatch):
    from server_app import federation

    monkeypatch.setattr(federation, "write_report", lambda *_: None)
    plain, small = (wire.run(run_config(wire_precision=p), 2) for p in ("float32", "int8"))
    for cell in (plain, small):
        # Three of four messages go down: to train and to evaluate, two rounds, two clients; the others up.
        assert cell["bytes-down"] == 2 * cell["bytes-up"] > 0
        assert 0 <= cell["worst"] <= cell["mean"] <= 1
    assert small["bytes-up"] < plain["bytes-up"] / 2


@pytest.fixture
def runs(monkeypatch):
    """Replace runs and sizes; note the runs."""
    runs = []

    def run(settings, clients):
        runs.append((settings["wire-precision"], settings["seed"]))
        mean = {"float32": 0.5, "int8": 0.49}[settings["wire-precision"]] + settings["seed"] / 100
        return {"mean": mean, "worst": mean / 2, "bytes-down": 2_000_000, "bytes-up": 1_000_000}

    monkeypatch.setattr(wire, "run", run)
    monkeypatch.setattr(wire, "vilt_b32_adapter", dict)
    one = {"bytes": 4e6, "write-ms": 1.0, "read-ms": 2.0}
    monkeypatch.setattr(wire, "sizes", lambda *_: dict.fromkeys(wire.PRECISIONS, one))
    return runs


def test_what_the_file_has_is_not_run_again(tmp_path, runs, capsys):
    path = tmp_path / "wire.json"
    some = ["--precisions", "float32", "int8", "--json", str(path)]
    wire.main([*some, "--seeds", "0"])
    wire.main([*some, "--seeds", "0", "1"])
    assert runs == [("float32", 0), ("int8", 0), ("float32", 1), ("int8", 1)]
    assert len(json.loads(path.read_text())["cells"]) == 4
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "int8" in line and "±" in line]
    # 49 and 50 points: mean 49.5, standard deviation 1/√2; a point below float32 in each.
    assert "49.5 ± 0.7" in line
    assert "-1.0, -1.0" in line
    wire.main([*some, "--seeds", "0", "--set", "num-rounds=2"])
    assert len(runs) == 6
