"""The program that times a message: each kind is timed as often as asked, and too much overhead fails."""

import json

import pytest

from benchmarks import startup


def laps(cpu, **phases):
    """Return the seconds of a process: of CPU in all and by phase; on the clock it takes twice as long."""
    seconds = {"total": cpu, **phases}
    return {phase: {"cpu": value, "wall": 2 * value} for phase, value in seconds.items()}


def test_a_median_is_taken_of_each_phase_and_clock():
    runs = [laps(5.0, compute=1.0), laps(3.0, compute=9.0), laps(4.0, compute=2.0)]
    assert startup.medians({"train": runs}) == {"train": laps(4.0, compute=2.0)}


@pytest.mark.parametrize(("imports", "status"), [(4.9, 0), (5.1, 1)])
def test_the_overhead_above_the_floor_decides(
    home, small_backbone, tmp_path, monkeypatch, capsys, imports, status
):
    """Flower's floor is 2 s; a round trains for 3 s and needs `imports` seconds besides."""
    asked = []

    def answered(kind, folder, server_round):
        asked.append((kind, server_round))
        assert len(list((folder / "objects").iterdir())) > 1
        facts = json.loads((folder / "message.json").read_text())
        assert (facts["run-config"]["train-examples"], facts["run-config"]["num-rounds"]) == (40, 3)
        if kind == "noop":
            return laps(2.0)
        return laps(2.0 + imports + 3.0, **{"import": imports, "compute": 3.0})

    monkeypatch.setattr(startup, "answered", answered)
    path = tmp_path / "figures.json"
    arguments = ["--repeats", "2", "--examples", "40", "--json", str(path)]
    assert startup.main([*arguments, "--backbone", str(small_backbone)]) == status
    first = [("query", 1), ("train", 1)]
    assert asked == first + [(kind, turn) for turn in (2, 3) for kind in ("noop", "train", "evaluate")]
    figures = json.loads(path.read_text())
    assert figures["above-floor"] == pytest.approx({"cpu": imports, "wall": 2 * imports})
    assert figures["medians"]["train"]["compute"]["cpu"] == 3
    assert "CPUs" in figures["machine"]
    printed = capsys.readouterr().out
    assert f"{'FAILED' if status else 'passed'}: a later round costs {imports:.2f} CPU seconds" in printed


@pytest.mark.slow
def test_real_processes_answer(home, small_backbone, run_config, tmp_path):
    settings = run_config(reduction_factor=16)
    startup.write_message(tmp_path, settings)
    floor, train = (startup.answered(kind, tmp_path, 1) for kind in ("noop", "train"))
    assert {"process", "Flower", "message", "state", "reply", "end", "total"} == set(floor)
    assert set(train) == {*startup.PHASES, "total"}
    for found in (floor, train):
        assert all(seconds >= 0 for lap in found.values() for seconds in lap.values())
        for unit in ("wall", "cpu"):
            parts = sum(lap[unit] for phase, lap in found.items() if phase != "total")
            assert found["total"][unit] == pytest.approx(parts, abs=0.1)
    assert train["total"]["cpu"] > floor["total"]["cpu"]
    (state,) = (tmp_path / "home" / "clients").rglob("round-000001.safetensors")
    assert state.is_file()
