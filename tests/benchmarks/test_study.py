"""Studies: which cells run, what they run, and the table of what they found."""

import json
import shutil

import pytest
import torch

from app.settings import read_settings
from benchmarks import study
from benchmarks.comparison import plan
from benchmarks.plans import Cell, Plan
from server_app import federation
from server_app.alignment import PoolAligner
from server_app.report import write_report
from server_app.run_log import RunLog
from tests.conftest import SMALL, default_run_config

ALIGN = {"align.beta": 0.0, "align.steps": 2, "align.batch-size": 8, "align.radius": 1.0}
CELLS = (
    Cell("plain"),
    Cell("server", {"align.when": "each-round"}, "server"),
    Cell("end", {"align.when": "end"}, "end"),
    Cell("each", {"align.when": "each-round"}),
)


@pytest.fixture(autouse=True)
def _quick(home, monkeypatch):
    monkeypatch.setattr(federation, "write_report", lambda *_: None)


@pytest.fixture
def scenes(small_backbone) -> Plan:
    """Return a plan of FedDAT on scenes, with private heads."""
    fixed = {"backbone": str(small_backbone), "reduction-factor": 4, "device": "cpu", "server-device": "cpu"}
    settings = {**SMALL, **fixed, **ALIGN, "public.examples": 40}
    return Plan(2, settings, CELLS, ("mean", "worst"), "Two toy clients.")


@pytest.fixture
def cifar(small_cifar) -> Plan:
    """Return a plan on a long tail, with one head for all."""
    settings = {
        **{key: value for key, value in SMALL.items() if "examples" not in key},
        **ALIGN,
        "benchmark": "cifar10-lt",
        "data-dir": str(small_cifar),
        "method": "full",
        "head": "shared",
        "backbone": "resnet8-narrow",
        "backbone-weights": "random",
        "optimizer": "sgd",
        "public-per-class": 5,
        "public.examples": 20,
        "device": "cpu",
        "server-device": "cpu",
    }
    return Plan(2, settings, CELLS, ("student", "many", "medium", "few"), "Four colours.")


@pytest.fixture
def aligned(monkeypatch):
    """Collect round, given and returned arrays of every alignment."""
    calls, align = [], PoolAligner.align

    def spy(self, server_round, arrays):
        result = align(self, server_round, arrays)
        calls.append((server_round, arrays, result[0]))
        return result

    monkeypatch.setattr(PoolAligner, "align", spy)
    return calls


def same(one, other):
    return one.keys() == other.keys() and all(one[name].data == other[name].data for name in one)


def test_the_server_alone_aligns_as_often_as_a_run_from_the_same_start(cifar, aligned):
    scores = study.Study(cifar, {}).run(CELLS[1], seed=0)
    assert scores.keys() == {"student", "many", "medium", "few"}
    assert [server_round for server_round, _, _ in aligned] == [1, 2]
    assert same(aligned[1][1], aligned[0][2])


def test_the_end_is_the_plain_result_aligned_once(cifar, aligned):
    """So it scores what a run of its own with alignment at the end does."""
    done = study.Study(cifar, {})
    scores = done.run(CELLS[2], seed=0)
    assert [server_round for server_round, _, _ in aligned] == [2]
    assert same(aligned[0][1], done._plain[0])
    assert done.run(Cell("run", CELLS[2].settings), seed=0) == scores
    assert same(aligned[1][1], aligned[0][1])
    assert same(aligned[1][2], aligned[0][2])


class FirstCandidate:
    """A teacher that gives the first candidate as the answer to everything."""

    name, revision, normalise, batch_size = "first", "1", "sum", 8

    def log_probabilities(self, images, prompts, candidates):
        return (
            torch.tensor([0.9] + [0.1 / (len(candidates) - 1)] * (len(candidates) - 1))
            .log()
            .expand(len(images), -1)
        )


def test_the_teacher_alone_answers_the_clients_questions(scenes, monkeypatch):
    monkeypatch.setattr(study, "open_teacher", lambda *_, **__: FirstCandidate())
    done = study.Study(scenes, {"teacher.model": "first"})
    scores = done.run(Cell("teacher", {"align.when": "each-round"}, "teacher"), seed=0)
    settings = read_settings({**default_run_config(), **scenes.settings})
    parts = study._partitions(settings, 2)
    expected = [sum(row[0] for row in part.test["scores"]) / len(part.test) for part in parts]
    assert scores == pytest.approx({"mean": sum(expected) / 2, "worst": min(expected)})


def test_the_servers_own_head_answers_where_heads_are_private(scenes):
    scores = study.Study(scenes, {}).run(CELLS[1], seed=0)
    assert scores.keys() == {"mean", "worst"}
    assert 0 <= scores["worst"] <= scores["mean"] <= 1


@pytest.fixture
def command(scenes, monkeypatch, tmp_path, capsys):
    """Run the command on the plan with made-up cells; return what ran and what was printed."""
    ran, fail = [], set()

    def run(self, cell, seed):
        if (cell.name, seed) in fail:
            raise KeyboardInterrupt
        ran.append((cell.name, seed))
        return {"mean": 0.5 + 0.1 * seed, "worst": 0.25}

    monkeypatch.setattr(study, "PLANS", {"tiny": scenes, "other": scenes})
    monkeypatch.setattr(study.Study, "run", run)

    def call(plan="tiny", killed_at=None):
        ran.clear()
        fail.clear()
        if killed_at:
            fail.add(killed_at)
        study.main(["--plan", plan, "--out", str(tmp_path / "cells.jsonl"), "--seeds", "0", "1"])
        return list(ran), capsys.readouterr().out

    call.ran, call.file = ran, tmp_path / "cells.jsonl"
    return call


def test_a_killed_study_goes_on_where_it_was_and_a_finished_one_prints_its_table(command):
    with pytest.raises(KeyboardInterrupt):
        command(killed_at=("end", 0))
    assert command.ran == [("plain", 0), ("server", 0)]
    ran, printed = command()
    assert ran == [("end", 0), ("each", 0), *((cell.name, 1) for cell in CELLS)]
    # 50 and 60 points: a mean of 55 and a standard deviation of √50.
    assert "| plain | 2 | 55.0 ± 7.1 | 25.0 ± 0.0 |" in printed
    kept = command.file.read_text()
    assert command() == ([], printed.split("s\n")[-1])
    assert command.file.read_text() == kept
    # Another plan has cells of its own in the same file.
    assert len(command("other")[0]) == 8


def test_the_table_by_hand(scenes):
    found = [
        {"cell": "plain", "scores": {"mean": 0.4, "worst": 0.1}},
        {"cell": "plain", "scores": {"mean": 0.5, "worst": 0.3}},
        {"cell": "plain", "scores": {"mean": 0.6, "worst": 0.2}},
        {"cell": "end", "scores": {"mean": 0.123, "worst": 0.0}},
    ]
    assert study.table(scenes, found).splitlines() == [
        "| | seeds | mean | worst |",
        "|---|---:|---:|---:|",
        "| plain | 3 | 50.0 ± 10.0 | 20.0 ± 10.0 |",
        "| server | 0 | – | – |",
        "| end | 1 | 12.3 ± 0.0 | 0.0 ± 0.0 |",
        "| each | 0 | – | – |",
        "",
        "Two toy clients.",
    ]


def test_a_run_leaves_nothing_behind_but_data_and_annotations(scenes, home):
    scores = study.Study(scenes, {}).run(CELLS[3], seed=0)
    assert 0 <= scores["worst"] <= scores["mean"] <= 1
    assert {path.name for path in home.iterdir()} == {"data", "annotations"}


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path):
    (folder := tmp_path / "results").mkdir()
    out, ran = folder / "cells.jsonl", []

    def run(cell, seed):
        ran.append(cell)
        return {"scores": {"mean": 0.5}}

    with study.taken(out, "plan", "one", "0") as mine:
        assert mine
        study.complete(out, "plan", ["one", "two"], [0], run)
        assert ran == ["two"]
    study.complete(out, "plan", ["one", "two"], [0], run)
    assert ran == ["two", "one"]
    assert [path.name for path in folder.iterdir()] == ["cells.jsonl"]


@pytest.fixture
def quick(home, small_backbone, tmp_path):
    """Run the quick plan on toy clients, seed 0; return its lines by cell."""
    small = {key: value for key, value in SMALL.items() if "examples" in key or key == "batch-size"}
    small |= {"backbone": str(small_backbone), "reduction-factor": 4, "device": "cpu"}
    out, page = tmp_path / "quick.jsonl", tmp_path / "quick.md"

    def call(*methods, **others):
        given = [f"{key}={json.dumps(value)}" for key, value in {**small, **others}.items()]
        chosen = ["--methods", *methods] if methods else []
        where = ["--out", str(out), "--page", str(page)]
        assert study.main(["--quick", *where, "--seeds", "0", "--set", *given, *chosen]) == 0
        return {line["cell"]: line for line in map(json.loads, out.read_text().splitlines())}

    call.out, call.page = out, page
    return call


def test_a_plan_of_methods_is_run_and_goes_on_and_its_page_is_written(quick):
    quick("adapter", "feddat")
    first = quick.out.read_text().splitlines()
    assert [json.loads(line)["cell"] for line in first] == [
        "scenes-domain | feddat | steps",
        "scenes-domain | adapter | steps",
        "scenes-domain | adapter | flops",
    ]
    tuned = quick()["scenes-domain | fedavg-ft | steps"]
    assert quick.out.read_text().splitlines()[:3] == first
    adapter = json.loads(first[1])
    # Its student is the adapter's under FedAvg, to the last digit; and tuning costs half a run of two rounds.
    assert [c["student"] for c in tuned["clients"].values()] == [
        c["student"] for c in adapter["clients"].values()
    ]
    assert tuned["flops"] == pytest.approx(1.5 * adapter["flops"])
    assert "| fedavg-ft | 1 |" in quick.page.read_text()


def test_what_has_as_many_rounds_at_equal_flops_is_not_run_again(quick, monkeypatch):
    ran, measure = [], study.measure
    monkeypatch.setattr(study, "measure", lambda cell, *how: ran.append(cell.name) or measure(cell, *how))
    # Two rounds of ours cost three of the adapter's, and two of FedAvg's with an epoch of tuning after them.
    lines = quick()
    tuned = "scenes-domain | fedavg-ft | "
    assert set(lines) - set(ran) == {tuned + "flops"}
    assert lines["scenes-domain | adapter | flops"]["rounds"] == 3
    assert lines[tuned + "flops"] == {
        **lines[tuned + "steps"],
        "cell": tuned + "flops",
        "same-as": tuned + "steps",
    }
    assert "its line stands twice and says of which" in quick.page.read_text()


@pytest.fixture
def stopped(monkeypatch):
    """Stop a run as Ctrl-C does, once, when so many rounds' rows are written; count the rounds that ran."""
    left, ran, ended = [], [], RunLog.round_ended

    def round_ended(self, server_round):
        ended(self, server_round)
        ran.append(server_round)
        if server_round in left:
            left.remove(server_round)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "round_ended", round_ended)
    return left, ran


def alike(one, other):
    """Whether two lines tell the same, but for what a clock says and that one was resumed."""
    ignored = {"seconds", "train-seconds", "resumed"}
    return {k: v for k, v in one.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }


@pytest.mark.parametrize("method", ["feddat", "adapter", "fedavg-ft"])
def test_a_cell_that_was_stopped_goes_on_from_its_last_round(quick, stopped, home, method):
    left, ran = stopped
    whole = quick(method)
    quick.out.unlink()
    ran.clear()
    left.append(2)
    with pytest.raises(KeyboardInterrupt):
        quick(method)
    assert ran == [1, 2]
    again = quick(method)
    name = f"scenes-domain | {method} | steps"
    assert ran[2] == 2
    assert again[name]["resumed"] is True
    assert "resumed" not in whole[name]
    assert again.keys() == whole.keys()
    assert all(alike(again[cell], whole[cell]) for cell in whole)
    assert list((home / "studies").iterdir()) == []
    assert "only the last part counts" in quick.page.read_text()


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def half_done(quick, stopped):
    """Run FedDAT's cell until it is stopped in its second of two rounds; count the rounds that run later."""
    left, ran = stopped

    def call(**others):
        left.append(2)
        with pytest.raises(KeyboardInterrupt):
            quick("feddat", **others)
        ran.clear()

    call.ran = ran
    return call


@pytest.mark.parametrize("others", [{"alpha": 0.5}, {"clients": 3}, {"source": "other"}])
def test_a_cell_of_which_something_else_is_another_begins_anew(quick, half_done, monkeypatch, others):
    half_done()
    if others.pop("source", ""):
        monkeypatch.setattr(study, "source_hash", lambda: "other")
    if clients := others.pop("clients", 0):
        monkeypatch.setattr(plan.Cell, "clients", clients)
    (line,) = quick("feddat", **others).values()
    assert half_done.ran == [1, 2]
    assert "resumed" not in line


def test_a_cell_that_cannot_be_gone_on_with_begins_anew(quick, half_done, home):
    """Its checkpoints cannot be read."""
    half_done()
    for path in home.glob("studies/*/runs/cell/checkpoints/*"):
        path.write_bytes(b"cut")
    (line,) = quick("feddat").values()
    assert (half_done.ran, "resumed" in line) == ([1, 2], False)


def test_a_run_that_was_done_is_not_run_again(quick, stopped, monkeypatch):
    """Stopped between its end and its line."""
    _, ran = stopped
    monkeypatch.setattr(federation, "write_report", write_report)
    whole = quick("feddat")
    quick.out.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(study.json, "dumps", stop_at_a_line(study.json.dumps))
        with pytest.raises(KeyboardInterrupt):
            quick("feddat")
    assert quick.out.read_text() == ""
    ran.clear()
    (line,) = quick("feddat").values()
    assert ran == []
    assert alike(line, *whole.values())


def stop_at_a_line(dumps):
    def dumped(value, **how):
        return stop() if isinstance(value, dict) and "machine" in value else dumps(value, **how)

    return dumped


def test_what_is_kept_of_a_cell_goes_only_after_its_line_and_never_by_half(quick, home, monkeypatch):
    """Stopped while it is deleted; what is left of it is not gone on with, and goes the next time."""
    rmtree = shutil.rmtree
    with monkeypatch.context() as patched:
        patched.setattr(
            shutil, "rmtree", lambda path, **how: stop() if path.exists() else rmtree(path, **how)
        )
        with pytest.raises(KeyboardInterrupt):
            quick("feddat")
    assert len(quick.out.read_text().splitlines()) == 1
    (left,) = (home / "studies").iterdir()
    assert left.suffix == ".gone"
    quick("feddat")
    assert list((home / "studies").iterdir()) == []


def test_a_quick_study_in_a_folder_of_its_own_leaves_nothing_behind(home, monkeypatch):
    monkeypatch.setattr(study, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        study.main(["--quick"])
    assert not (home / "studies").exists()


def test_two_names_of_one_file_are_one_file_to_other_processes(tmp_path):
    out, link = tmp_path / "cells.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    ran = []
    with study.taken(out, "plan", "one", "0"):
        study.complete(link, "plan", ["one"], [0], lambda *cell: ran.append(cell))
    assert ran == []


def test_a_lock_that_its_holder_deleted_meanwhile_is_none(tmp_path, monkeypatch):
    """Opened before it was deleted, held when another process may hold a new one."""
    out, flock = tmp_path / "cells.jsonl", study.fcntl.flock

    def deleted_first(file, how):
        (lock,) = tmp_path.glob(".cells*")
        lock.unlink()
        flock(file, how)

    monkeypatch.setattr(study.fcntl, "flock", deleted_first)
    with study.taken(out, "plan", "one", "0") as mine:
        assert not mine


def test_a_plan_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert study.main(["--plan", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 1
    assert "none.toml" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
