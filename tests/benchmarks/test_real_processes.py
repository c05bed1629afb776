"""Real programs for those who measure: what does not come up or fails is said, and nothing is left behind."""

import subprocess
import sys

import psutil
import pytest

from benchmarks.real_processes import EMPTY_APP, Machine, end, free_port, superlink, wait_for

pytestmark = pytest.mark.slow


def test_a_superlink_that_does_not_come_up_is_said(tmp_path):
    said = pytest.raises(RuntimeError, match=r"(?s)does not answer: .*--no-such-option")
    with said, superlink(tmp_path, "--no-such-option"):
        pytest.fail("it came up")


def test_a_run_that_fails_is_said(tmp_path):
    machine = Machine(tmp_path, free_port(), {"PATH": "/usr/bin:/bin"})
    (tmp_path / "flwr").write_text("#!/bin/sh\necho a wrong setting\n")
    (tmp_path / "flwr").chmod(0o700)
    machine.environment["PATH"] = f"{tmp_path}:{machine.environment['PATH']}"
    with pytest.raises(RuntimeError, match=r"(?s)the run failed:.*a wrong setting"):
        machine.flwr_run(EMPTY_APP)


def test_a_signal_to_stop_ends_the_superlink(tmp_path):
    block = "superlink(Path(sys.argv[1])) as machine: print(machine.port, flush=True); time.sleep(600)"
    lines = "import sys, time", "from pathlib import Path", "from benchmarks.real_processes import superlink"
    command = [sys.executable, "-c", "\n".join([*lines, f"with {block}"]), tmp_path]
    measuring = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert int(measuring.stdout.readline())
    started = psutil.Process(measuring.pid).children(recursive=True)
    measuring.terminate()
    measuring.communicate(timeout=60)
    left = psutil.wait_procs(started, timeout=10)[1]
    for process in left:
        process.kill()
    assert started
    assert not left


def test_what_a_program_started_ends_with_it():
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid); "
    program += "sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(process.stdout.readline()))
    end(process)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_program_that_ended_is_not_waited_for():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(RuntimeError, match="does not answer: its last words"):
        wait_for(free_port(), process, lambda: "its last words")
