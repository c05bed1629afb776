"""The program for a GPU, on the CPU with tiny models: each measurement runs, and a wrong step is found."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from app import piecewise
from app.adapters import Adapter
from app.backbones import load_backbone
from benchmarks import step
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks, clients, speed, subjects, ways
from benchmarks.gpu.log import Log
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def vilt(small_backbone):
    """Return what makes a small ViLT, as `subjects.vilt` does a large one."""
    backbone = load_backbone(str(small_backbone))

    def make(device, tiny):
        def draw(batch, where):
            _, _, inputs, scores = step.draw(backbone, batch, where)
            return subjects.Drawn(inputs, inputs, scores)

        return subjects.Subject("small", backbone, Adapter(), "bce-scores", (1, 2), draw)

    return make


@pytest.fixture
def log():
    return Log(CPU, minutes=60, seconds=0)


def rows(log):
    return {row["what"]: row for row in log.figures["results"]}


# --- Checks ---


@pytest.mark.parametrize("kind", ["vilt", "smolvlm"])
def test_our_step_passes_all_checks(kind, vilt, log):
    checks.parity(log, True, make=vilt if kind == "vilt" else subjects.smolvlm)
    found = log.figures["checks"]
    assert len(found) == checks.EACH
    assert all(check["passed"] for check in found)
    # In bfloat16 something did differ.
    assert min(check["value"] for check in found if "bfloat16, logits" in check["what"]) > 1e-4


def twice_the_rate(*arguments):
    arguments[1].param_groups[0]["lr"] *= 1.01
    return step.mkd_step(*arguments)


def students_alone(learner, optimizer, batch, targets, method):
    return step.mkd_step(learner, optimizer, batch, targets, replace(method, beta=0.0))


def in_half(*arguments):
    outcome = step.mkd_step(*arguments)
    return replace(outcome, losses=outcome.losses.bfloat16())


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (twice_the_rate, "float32, changes"),
        (students_alone, "float32, changes"),
        (in_half, "losses not in float32"),
    ],
)
def test_a_wrong_step_is_found(wrong, found, vilt, log, monkeypatch):
    monkeypatch.setattr(checks, "mkd_step", wrong)
    checks.parity(log, True, make=vilt)
    assert any(found in check["what"] for check in log.figures["checks"] if not check["passed"])


def test_what_is_no_number_does_not_pass(log):
    log.check("a difference", float("nan"), 1.0)
    assert not log.figures["checks"][0]["passed"]


# --- Measurements ---


@pytest.mark.parametrize("kind", ["vilt", "smolvlm", "qwen"])
def test_steps_of_each_batch_size(kind, vilt, log):
    speed.sweep(log, True, make=vilt if kind == "vilt" else getattr(subjects, kind))
    found = rows(log)
    assert not log.figures["failed"]
    assert sum(what.endswith((speed.OURS, speed.LITERAL, speed.ONE)) for what in found) == 2 * 3 + 2 * 2
    assert all(row["samples/s"] > 0 for row in found.values() if "samples/s" in row)
    if kind == "vilt":
        assert [goal["met"] for goal in log.figures["goals"]] == [False, False]


def test_a_goal_is_met_from_its_very_value_on(log):
    log.goal("samples", 3000.0, 3000)
    log.goal("bases", 1.3, 1.3, most=True)
    log.goal("samples", 2999.0, 3000)
    log.goal("bases", 1.31, 1.3, most=True)
    assert [goal["met"] for goal in log.figures["goals"]] == [True, True, False, False]


@pytest.mark.parametrize("kind", ["vilt", "smolvlm", "smolvlm in pieces"])
def test_both_branches_in_one_batch_are_the_joint_update(kind, vilt, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", 4 * 1200 if "pieces" in kind else 2**22)
    subject = (vilt if kind == "vilt" else subjects.smolvlm)(CPU, True)
    two, one = ways.joint(subject, 3, CPU), ways.in_one_batch(subject, 3, CPU)
    for _ in range(2):
        expected, found = two(), one()
        torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.student[:], expected.student[:], atol=1e-4, rtol=0)
    assert (expected.student[:] - expected.dat[:]).abs().max() > 1e-3


def test_all_ways_take_the_same_step(vilt, log):
    ways.compare(log, True, make=vilt, ways=ways.SPEED)
    ways.compare(log, True, make=vilt, ways=ways.UPDATES)
    assert list(rows(log)) == [
        f"small, batch 2, {name}" for name in ("as it is", "torch.compile", *ways.UPDATES)
    ]
    assert all(row["difference"] < 1e-5 for row in rows(log).values())
    # CUDA graphs are not the CPU's.
    assert [failed["reason"] for failed in log.figures["failed"]] == ["ValueError: needs CUDA"]


def test_blocks_that_are_computed_again_take_less_memory(log):
    ways.compare(log, True, make=subjects.smolvlm, ways=ways.MEMORY)
    usual, again = rows(log).values()
    assert again["difference"] < 1e-5
    assert again["peak MB"] < usual["peak MB"]


def test_a_base_in_fewer_bits(log):
    pytest.importorskip("torchao")
    ways.quantised(log, True, make=subjects.smolvlm)
    (row,) = rows(log).values()
    assert row["share"] < 0.9
    reason = log.figures["failed"][0]["reason"]
    assert reason.startswith("ValueError: backbone-precision = 'nf4' without CUDA")


def test_clients_take_turns_over_one_base(vilt, log):
    clients.in_one_process(log, True, make=vilt, batch=2)
    assert [what.split(", ")[-1] for what in rows(log)] == [f"{n} clients in one process" for n in (1, 2, 4)]


# --- The program ---


@pytest.fixture
def small(monkeypatch, vilt):
    """Have the program measure small models."""
    makes = {subjects.vilt: vilt}

    def smaller(call):
        return partial(
            call.func, **{**call.keywords, "make": makes.get(call.keywords["make"], call.keywords["make"])}
        )

    monkeypatch.setattr(
        program,
        "MEASUREMENTS",
        tuple(one._replace(call=smaller(one.call)) for one in program.MEASUREMENTS[:2]),
    )


def test_the_checks_decide_the_exit_status(small, monkeypatch, tmp_path, capsys):
    arguments = ("--tiny", "--device", "cpu", "--json", str(tmp_path / "figures.json"))
    assert program.main(arguments) == 0
    assert "passed: 14 of 14 checks" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "figures.json").read_text())["checks"]) == 14
    monkeypatch.setattr(checks, "mkd_step", twice_the_rate)
    assert program.main(arguments) == 1
    assert "FAILED: small, float32, changes" in capsys.readouterr().out


def test_what_time_does_not_suffice_for_is_said(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert program.main(["--tiny", "--device", "cpu", "--minutes", "0", "--json", str(file)]) == 1
    names = [one.name for one in program.MEASUREMENTS]
    assert json.loads(file.read_text())["left-out"] == names
    printed = capsys.readouterr().out
    assert all(f"left out: {name}, which takes" in printed for name in names)
    assert "0 of 14 checks" in printed


def test_what_fails_says_one_line_and_is_written_with_all_before_it(tmp_path, capsys):
    log = Log(CPU, 60, tmp_path / "figures.json")
    log.result("first", seconds=1.5)

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    assert log.attempt("second", 0, fails) is None
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["results"] == [{"what": "first", "seconds": 1.5}]
    assert figures["failed"] == [{"what": "second", "reason": "OutOfMemoryError: CUDA out of memory."}]
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "  did not run: second: OutOfMemoryError: CUDA out of memory."
    )


BARE = """
import sys
sys.modules.update(dict.fromkeys(("flwr", "ray", "datasets", "flwr_datasets", "matplotlib", "torchvision")))
from benchmarks.gpu import __main__ as program
program.MEASUREMENTS = program.MEASUREMENTS[:int(sys.argv[1])]
sys.exit(program.main(["--tiny", "--device", "cpu", "--minutes", "20"]))
"""


def bare(number):
    command = [sys.executable, "-c", BARE, str(number)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_it_runs_where_flower_ray_and_datasets_are_missing():
    ran = bare(2)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("passed: ") == 14 + 1


@pytest.mark.slow
def test_all_of_it_runs_there():
    ran = bare(len(program.MEASUREMENTS))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "left out" not in ran.stdout
    reasons = [line for line in ran.stdout.splitlines() if "did not run" in line]
    assert all("needs CUDA" in line or "a base in" in line for line in reasons)
    assert "2 clients in as many processes: samples/s" in ran.stdout
