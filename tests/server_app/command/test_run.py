"""`feddat run` to its end, with Flower's own programs and nothing else."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager, suppress
from time import monotonic

import psutil
import pytest
from PIL import Image

from server_app.verdict import verdict
from tests.processes import wait_until

pytestmark = pytest.mark.slow

FEW = ("train-examples=12", "test-examples=8", "batch-size=4", "device=cpu")
SMALL = (*FEW, "num-clients=2")


def test_a_run_shows_its_rounds_and_last_its_table_and_its_folder(person):
    began = monotonic()
    called = person.calls("run", "run-name=mine", *FEW, COLUMNS="60")
    took = monotonic() - began
    assert called.returncode == 0, called.stdout + called.stderr
    lines = called.stdout.splitlines()
    assert len(lines) <= 40
    assert "\x1b" not in called.stdout
    assert lines[0] == "checking the settings"
    line = r"round (\d)/6: student (loss \d.* mean|\d.* mean, \d.* worst \([\w-]+\))(; \d+:\d\d left)?"
    shown = [re.fullmatch(line, text) for text in lines]
    assert [one[1] for one in shown if one] == list("123456")
    table = [line for line in lines if line[0] in "┏┃┡│├└"]
    assert max(map(len, table)) <= 60
    folder = person.home / "runs" / "mine"
    *says, last = lines[lines.index(table[-1]) + 1 :]
    assert last == f"the run is in {folder}"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    words = verdict(rows)
    assert words
    assert says[-len(words) :] == words
    assert " ".join(" ".join(says[: -len(words)]).split()) == (
        "text: the question without the picture; gain: student − text"
    )
    (log,) = (person.home / "logs").iterdir()
    said = log.read_text()
    (own,) = re.findall(r"round 6/6: .*; (\d+):(\d\d) in all", said)
    (whole,) = re.findall(r"^(\d+):(\d\d) in all, since the command began$", called.stdout, re.M)
    seconds, all_seconds = (60 * int(minutes) + int(rest) for minutes, rest in (own, whole))
    assert seconds + 3 < all_seconds <= took + 1  # to import torch and to start Flower takes as long at least
    assert "SuperLink" in said
    # Nothing of Flower's own stays.
    kept = {path.name for path in person.home.iterdir()}
    assert kept == {"runs", "logs", "clients", "data", "examples"}

    # What it learnt can be asked.
    Image.new("RGB", (64, 64), "red").save(person.folder / "red.png")
    words = ("--run", "mine", "--client", "1", "--image", "red.png", "--question", "what color is it ?")
    asked = person.calls("answer", *words, COLUMNS="60")
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"student +┃ local +┃ teacher", asked.stdout)
    assert len(re.findall(r"\(\d+%\)", asked.stdout)) == 9


def test_methods_that_it_is_compared_with_run_first_and_stand_in_its_table(person):
    words = ("run", "run-name=mine", "num-rounds=1", *SMALL, "--compare", "adapter,local")
    called = person.calls(*words, COLUMNS="140")
    assert called.returncode == 0, called.stdout + called.stderr
    said = called.stdout
    begun = re.findall(r"^scenes: 2 simulated clients, method (\w+), 1 round, in (.*)$", said, re.M)
    runs = person.home / "runs"
    assert begun == [
        ("adapter", f"{runs}/mine.adapter"),
        ("local", f"{runs}/mine.local"),
        ("feddat", f"{runs}/mine"),
    ]
    # Each has its table; the last one has all.
    lines = [re.split(r"\s*[│┃]\s*", line) for line in said.splitlines() if line[0] in "│┃"]
    *_, head = (i for i, cells in enumerate(lines) if "client" in cells)
    columns = [" ".join(words).strip() for words in zip(lines[head - 1], lines[head], strict=True)]
    shown = {cells[1]: dict(zip(columns, cells, strict=True)) for cells in lines[head + 1 :]}
    beside = {"one adapter (FedAvg)": ("adapter", "student"), "local only": ("local", "local")}
    for column, (method, branch) in beside.items():
        rows = map(json.loads, (runs / f"mine.{method}" / "metrics.jsonl").read_text().splitlines())
        scores = {row["name"]: f"{100 * row[branch]:.1f}" for row in rows if branch in row}
        assert scores.keys() == {"clean", "sketch"}
        assert scores == {name: shown[name][column] for name in scores}


def test_a_run_that_fails_says_why_in_its_last_line(person):
    called = person.calls("run", "run-name=mine", "num-rounds=1", "learning-rate=1e30", *SMALL)
    assert called.returncode == 1
    assert "Traceback" not in called.stdout + called.stderr
    (last,) = called.stderr.splitlines()
    assert re.fullmatch(r"feddat: round 1, tried twice: 0 of 2 clients gave a valid reply, .*", last)
    assert called.stdout.splitlines()[-1] == "the run failed; to try again: feddat run resume=mine"


def is_alive(process):
    """Whether a process does anything: one that has ended is listed until init fetches it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def of(person):
    """Return the processes that have this home, whoever started them."""
    found = []
    for process in filter(is_alive, psutil.process_iter()):
        with suppress(psutil.Error):
            if process.environ().get("FEDDAT_HOME") == str(person.home):
                found.append(process)
    return found


@contextmanager
def begun(person, *words, **variables):
    """Give the process of a run that would be long, with a process group of its own as in a terminal."""
    process = subprocess.Popen(
        person.command("run", "run-name=mine", "num-rounds=500", "evaluate-every=500", *SMALL, *words),
        cwd=person.folder,
        env=person.environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def working(person, metrics, *words, **variables):
    """Begin such a run, wait until a round is over, and give its process and all that this started."""
    with begun(person, *words, **variables) as process:
        wait_until(lambda: metrics.exists() or process.poll() is not None)
        yield process, psutil.Process(process.pid).children(recursive=True)


def is_worker(process):
    """Whether a process has clients of a simulation."""
    return process.name().startswith("ray::ClientApp")


def test_a_run_that_is_interrupted_leaves_no_process_and_goes_on(person):
    metrics = person.home / "runs" / "mine" / "metrics.jsonl"
    with working(person, metrics) as (process, family):
        assert any(map(is_worker, family))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does by Ctrl-C
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines() == ["feddat: stopped; to go on: feddat run resume=mine"]
    assert [member for member in family if is_alive(member)] == []
    assert of(person) == []

    done = max(json.loads(row)["round"] for row in metrics.read_text().splitlines())
    again = person.calls("run", "resume=mine", f"num-rounds={done + 1}")
    assert again.returncode == 0, again.stdout + again.stderr
    rounds = {json.loads(row)["round"] for row in metrics.read_text().splitlines()}
    assert rounds == set(range(1, done + 2))


def test_one_that_is_interrupted_while_flower_starts_leaves_nothing(person):
    with begun(person) as process:
        wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 1)
        os.killpg(process.pid, signal.SIGINT)
        shown, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert shown.splitlines()[-2:] == ["starting Flower and its workers", "stopping"]
    assert said.splitlines() == ["feddat: stopped; nothing of it is kept: it had not begun"]
    assert of(person) == []
    assert {path.name for path in person.home.iterdir()} <= {"runs", "logs", "data"}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_run_that_is_killed_leaves_no_process(person):
    with working(person, person.home / "runs" / "mine" / "metrics.jsonl") as (process, family):
        assert any(map(is_worker, family))
        process.kill()
        wait_until(lambda: not any(is_alive(member) for member in family))
