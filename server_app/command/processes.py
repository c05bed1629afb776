"""Flower's programs as processes: started with what they need, ended with all that they started.

Run as a program it is the guard of another: ``python processes.py PROGRAM ARGUMENT...``, see `guard`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Nothing is reported, and no run installs its own copy of all dependencies.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def free_port() -> int:
    """Return a port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_taken(port: int) -> bool:
    """Say whether a port of this machine is in use, or another's to use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def wait_for(port: int, process: subprocess.Popen, said: Callable[[], str], seconds: float = 60.0) -> None:
    """Wait until a program answers at its port.

    Raises
    ------
    RuntimeError
        If it ended, or did not answer in time; with the end of what it `said`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        threading.Event().wait(0.2)
    raise RuntimeError(f"port {port} does not answer: {said()[-2000:]}")


def end(process: subprocess.Popen, grace: float = 20.0) -> None:
    """End a process and all that it started; what is there after `grace` seconds is killed."""
    import psutil

    if process.poll() is not None:
        return  # its id may be another's by now
    with suppress(psutil.NoSuchProcess):
        # What Flower starts has sessions of its own: the process group is not all.
        leader = psutil.Process(process.pid)
        family = [leader, *leader.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate() if grace else member.kill()
        for member in psutil.wait_procs(family, timeout=grace or 20)[1]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have the first signal to stop raise KeyboardInterrupt; what is ended then is not interrupted again."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def stop(number: int, frame: Any) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, stop) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def environment(**more: str) -> dict[str, str]:
    """Return the environment for Flower's programs, which start each other by name."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **QUIET, "PATH": path, **more}


@contextmanager
def started(
    command: tuple[str, ...], log: Path, folder: Path, machine: dict[str, str]
) -> Iterator[subprocess.Popen]:
    """Run a program until the block ends, in a session of its own: Ctrl-C is this process's to handle.

    It has a guard, since a process that is killed can end nothing.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            (sys.executable, "-I", __file__, *command),
            cwd=folder,
            env=machine,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process, grace=5.0)


def guard(command: Sequence[str]) -> int:
    """Run a program until it ends, or the standard input does, as it does with whoever holds its other side.

    Returns
    -------
    int
        The program's exit status.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end_with_its_user() -> None:
        sys.stdin.read()
        end(process, grace=5.0)

    threading.Thread(target=end_with_its_user, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
