"""What every program writes beside its figures."""

import json
from pathlib import Path

import torch

from benchmarks.figures import machine_of, verdict, write_figures


def test_a_cpu_is_named_with_the_threads_that_computed() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert machine_of().endswith("1 CPU threads")
    finally:
        torch.set_num_threads(before)


def test_figures_stand_beside_machine_and_versions(tmp_path: Path) -> None:
    write_figures(tmp_path / "figures.json", "a machine", {"seconds": [1.5]})
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"] == "a machine"
    assert written["versions"]["torch"] == torch.__version__
    assert written["seconds"] == [1.5]


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    write_figures(None, "a machine", {})
    assert not list(tmp_path.iterdir())


def test_a_verdict_is_printed_and_is_the_exit_code(capsys) -> None:
    assert [verdict(True, "1 of 2"), verdict(False, "3 of 2")] == [0, 1]
    assert capsys.readouterr().out == "passed: 1 of 2\nFAILED: 3 of 2\n"
