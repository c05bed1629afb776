"""`feddat run` to its end, with Flower's own programs and nothing else."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from time import monotonic

import psutil
import pytest
from PIL import Image

from server_app.verdict import verdict
from tests.processes import wait_until

pytestmark = pytest.mark.slow

SMALL = ("train-examples=12", "test-examples=8", "batch-size=4", "num-clients=2", "device=cpu")


def test_a_run_shows_its_rounds_and_last_its_table_and_its_folder(person):
    words = ("run-name=mine", "num-rounds=2", "evaluate-every=1", *SMALL)
    began = monotonic()
    called = person.calls("run", *words, COLUMNS="60")
    took = monotonic() - began
    assert called.returncode == 0, called.stdout + called.stderr
    lines = called.stdout.splitlines()
    assert len(lines) < 40
    assert "\x1b" not in called.stdout
    assert lines[0] == "checking the settings"
    line = r"round (\d)/2: student \d.* worst \(\w+\)(; \d+:\d\d left)?"
    shown = [re.fullmatch(line, text) for text in lines]
    assert [one[1] for one in shown if one] == ["1", "2"]
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
    (own,) = re.findall(r"round 2/2: .*; (\d+):(\d\d) in all", said)
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


@pytest.mark.parametrize(
    ("setting", "reason", "begun"),
    [
        (
            "reduction-factor=5",
            r"reduction-factor = 5; allowed: a divisor of the backbone's width, \d+",
            False,
        ),
        ("learning-rate=1e30", r"round 1, tried twice: 0 of 2 clients gave a valid reply, .*", True),
    ],
)
def test_a_run_that_fails_says_why_in_its_last_line(person, setting, reason, begun):
    called = person.calls("run", "run-name=mine", "num-rounds=1", setting, *SMALL)
    assert called.returncode == 1
    assert "Traceback" not in called.stdout + called.stderr
    (last,) = called.stderr.splitlines()
    assert re.fullmatch(f"feddat: {reason}", last)
    how_on = "to go on: feddat run resume=mine" if begun else "nothing of it is kept: it had not begun"
    assert called.stdout.splitlines()[-1] == f"the run failed; {how_on}"


def is_alive(process):
    """Whether a process does anything: one that has ended is listed until init fetches it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def working(person, metrics):
    """Begin a run that would be long, and give its process and all that this started."""
    words = ("run", "run-name=mine", "num-rounds=500", "evaluate-every=500", *SMALL)
    process = subprocess.Popen(
        person.command(*words),
        cwd=person.folder,
        env=person.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        wait_until(lambda: metrics.exists() or process.poll() is not None)  # a round is over
        family = psutil.Process(process.pid).children(recursive=True)
        assert any(member.name().startswith("ray::ClientApp") for member in family)
        yield process, family
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_is_interrupted_leaves_no_process_and_goes_on(person):
    metrics = person.home / "runs" / "mine" / "metrics.jsonl"
    with working(person, metrics) as (process, family):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines() == ["feddat: stopped; to go on: feddat run resume=mine"]
    assert [member for member in family if is_alive(member)] == []

    done = max(json.loads(row)["round"] for row in metrics.read_text().splitlines())
    again = person.calls("run", "resume=mine", f"num-rounds={done + 1}")
    assert again.returncode == 0, again.stdout + again.stderr
    rounds = {json.loads(row)["round"] for row in metrics.read_text().splitlines()}
    assert rounds == set(range(1, done + 2))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_run_that_is_killed_leaves_no_process(person):
    with working(person, person.home / "runs" / "mine" / "metrics.jsonl") as (process, family):
        process.kill()
        wait_until(lambda: not any(is_alive(member) for member in family))
