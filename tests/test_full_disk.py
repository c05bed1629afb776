"""A full disk or a kill at any moment leaves either nothing or a run that goes on to the same end."""

import builtins
import errno
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from app.settings import read_settings
from server_app.checkpoints import Checkpoints
from server_app.federation import _begin
from server_app.run_folder import created, held
from server_app.run_log import RunLog
from strategies import Checkpoint
from tests.conftest import Federation, own_home

MAKING = ("w", "a", "x", "+")


def is_full(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@contextmanager
def full_disk(runs: Path, at: int | None, act: Callable[[str], None] = is_full):
    """Count what a server asks the disk for below a folder; what comes as number `at` finds it full."""
    points: list[str] = []
    known: dict[int, str] = {}
    originals = {name: getattr(os, name) for name in ("open", "mkdir", "rename", "replace", "fsync")}
    opening = builtins.open

    def point(what: str, path: object) -> None:
        if not str(path).startswith(str(runs)):
            return
        points.append(f"{what} {Path(str(path)).name}")
        if len(points) - 1 == at:
            act(str(path))

    def os_open(path, flags, *rest, **more):
        if flags & (os.O_CREAT | os.O_TRUNC):
            point("create", path)
        descriptor = originals["open"](path, flags, *rest, **more)
        known[descriptor] = str(path)
        return descriptor

    def any_open(file, mode="r", *rest, **more):
        writes = any(sign in mode for sign in MAKING)
        path = known.get(file, "") if isinstance(file, int) else str(file)
        if writes and not isinstance(file, int):
            point("open", path)
        opened = opening(file, mode, *rest, **more)
        known[opened.fileno()] = path
        if writes and str(path).startswith(str(runs)):
            write = opened.write

            class Disk:
                """The file, with half of what is written when the disk is full."""

                def __getattr__(self, name):
                    return getattr(opened, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    opened.close()

                def write(self, data):
                    try:
                        point("write", path)
                    except OSError:
                        write(data[: len(data) // 2])
                        raise
                    return write(data)

            return Disk()
        return opened

    def fsync(descriptor):
        point("fsync", known.get(descriptor, ""))
        originals["fsync"](descriptor)

    def two(name):
        def call(source, target, *rest, **more):
            point(name, target)
            return originals[name](source, target, *rest, **more)

        return call

    def mkdir(path, *rest, **more):
        point("mkdir", path)
        return originals["mkdir"](path, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", os_open)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "mkdir", mkdir)
        for name in ("rename", "replace"):
            patch.setattr(os, name, two(name))
        patch.setattr(builtins, "open", any_open)
        patch.setattr(io, "open", any_open)
        yield points


@pytest.fixture
def serve(tmp_path, drawn, run_config, monkeypatch):
    """Run one round of one client in a home of its own, on a disk that is full at a point; then go on."""
    from server_app import federation as room

    monkeypatch.setattr(room, "write_report", lambda folder, *_: (folder / "report.md").touch())
    # The result is written by PEFT, once the run is over.
    monkeypatch.setattr(room, "export_result", lambda folder, *_: folder.mkdir(exist_ok=True))

    def run(at):
        (place := tmp_path / str(at)).mkdir()
        clients = Federation(run_config(num_rounds=1, run_name="test"), 1)
        folder = place / "home" / "runs" / "test"
        with own_home(place, drawn):
            failed = False
            with full_disk(place / "home" / "runs", at) as points:
                try:
                    clients.serve()
                except OSError as error:
                    failed = error.errno == errno.ENOSPC
            began = folder.exists()
            if failed:
                clients.run_config["resume"] = "test" if began else ""
                clients.serve()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        checkpoints = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
        left = [[(key, value) for key, value in row.items() if "seconds" not in key] for row in rows]
        drafts = [path.name for path in folder.parent.iterdir() if path.name.startswith(".draft")]
        return points, failed, began, (left, checkpoints, drafts)

    return run


def test_a_disk_that_is_full_at_any_moment_of_the_first_round_loses_nothing(serve):
    points, failed, _, whole = serve(None)
    assert not failed
    kinds = {point.split()[0] for point in points}
    assert kinds >= {"create", "mkdir", "write", "fsync", "replace", "open"}
    ends = []
    for at, point in enumerate(points):
        _, failed, began, left = serve(at)
        assert left == whole, point
        ends.append((failed, began))
    # Some points come before there is a run, some after.
    assert (True, False) in ends
    assert (True, True) in ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes to kill")
def test_a_process_killed_at_any_moment_of_the_opening_leaves_nothing_or_a_whole_run(home, run_config):
    """Nothing of it is undone afterwards, as an error would do."""
    run = RunLog(read_settings(run_config()), {})
    first = Checkpoint(0, ArrayRecord({"x": Array(np.ones(3, np.float32))}), {})
    left = []

    def open_run(at, act):
        with full_disk(home / "runs", at, act) as points:
            with created(run.folder, lambda draft: _begin(draft, run, first)):
                pass
            return points

    points = open_run(None, is_full)
    for at in range(len(points)):
        shutil.rmtree(home / "runs")
        if not (child := os.fork()):
            try:
                open_run(at, lambda path: os.kill(os.getpid(), signal.SIGKILL))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        left.append(run.folder.exists())
        if not run.folder.exists():
            open_run(None, is_full)
        assert json.loads((run.folder / "settings.json").read_text())["run-name"] == "test"
        assert Checkpoints(run.folder / "checkpoints", lambda until: None).newest() is not None
        with held(run.folder):
            assert sorted(path.name for path in run.folder.parent.iterdir()) == [".lock", "test"]
    assert set(left) == {True, False}
