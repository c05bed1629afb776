"""A run's folder appears whole or not at all, and one ServerApp at a time works in it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from app.settings import SettingsError
from server_app.run_folder import created, held
from tests.conftest import ROOT


def fill(folder):
    (folder / "settings.json").write_text("{}")


def test_the_second_is_told_who_has_the_run_and_comes_in_after_it(tmp_path):
    folder = tmp_path / "runs" / "test"
    with created(folder, fill):
        with pytest.raises(SettingsError) as caught, held(folder):
            pass
        assert str(caught.value).startswith(
            f"the run 'test' is already going in another ServerApp (process {os.getpid()} on "
        )
        assert "\n" not in str(caught.value)
    with held(folder), pytest.raises(SettingsError), held(folder):
        pass
    with held(folder):
        pass


@pytest.mark.slow
def test_the_kernel_ends_the_lock_of_a_process_that_is_killed(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom server_app.run_folder import held\n"
        "with held(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(SettingsError, match=f"process {holder.pid} on "), held(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_said_and_no_error(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with created(tmp_path / "runs" / "test", fill):
        pass
    assert [message.split(" has no locks")[0] for message in caplog.messages] == [
        f"the file system of {next(iter(caplog.records)).args[0]}"
    ]


def test_what_a_killed_one_left_behind_is_cleared_away(tmp_path):
    draft = tmp_path / "runs" / ".draft-dead"
    (draft / "checkpoints").mkdir(parents=True)
    with created(tmp_path / "runs" / "test", fill):
        assert not draft.exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".lock", "test"]


def test_of_two_that_begin_one_name_one_wins_and_the_other_leaves_nothing(tmp_path):
    folder = tmp_path / "runs" / "test"

    def overtaken(draft):
        folder.mkdir()
        (folder / "settings.json").write_text("first")

    with pytest.raises(SettingsError, match=r"^run-name = 'test' is taken: "), created(folder, overtaken):
        pass
    assert (folder / "settings.json").read_text() == "first"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "test"]


def test_a_second_server_may_not_go_on_with_a_run_that_is_being_served(federation, finished):
    """It is refused in one line, and changes nothing: the first ends as if it had been alone."""
    refusals = []

    def intrude(node, reply):
        if reply.metadata.message_type == "evaluate" and not refusals:
            second = federation(3, **{**clients.run_config, "resume": "test"})
            with pytest.raises(SettingsError) as caught:
                second.serve()
            refusals.append(str(caught.value))
            assert second.wire == []
        return reply

    clients = federation(3, alter=intrude)
    folder = clients.serve()
    assert len(refusals) == 1
    assert refusals[0].startswith("the run 'test' is already going in another ServerApp (process ")
    for name in ("adapter/adapter_model.safetensors", "checkpoints/round-000002.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(finished.rows)


def test_a_lock_file_that_is_deleted_lets_no_second_server_in(tmp_path):
    folder = tmp_path / "runs" / "test"
    with created(folder, fill):
        (folder / ".lock").unlink()
        with pytest.raises(SettingsError, match="is already going in another"), held(folder):
            pass
    with held(folder):
        pass


def test_a_folder_for_a_lock_file_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(SettingsError, match=r"^/.*\.lock is a folder; allowed: [^\n]*$"), held(tmp_path):
        pass
