"""The private state: in files that are there complete or not at all, of the last three rounds."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from app.private_state import PrivateState, load_private_state, save_private_state
from app.settings import SettingsError
from tests.app.private_state.states import FIRST, about, names, noise, state_of
from tests.conftest import ROOT


def test_what_was_kept_comes_back_bit_for_bit(shelf):
    state = PrivateState(
        {"x.down": torch.randn(3, 2).T, "x.up": torch.tensor([1e-42, -0.0])},
        {"fc.bias": torch.randn(1)},
    )
    first = PrivateState({"x.down": torch.zeros(2, 3), "x.up": torch.zeros(2)}, FIRST.head)
    save_private_state(shelf, 1, state)
    back, lost = load_private_state(shelf, 1, first)
    assert lost == 0
    for part in ("local", "head"):
        kept = getattr(state, part)
        assert kept.keys() == getattr(back, part).keys()
        for name, value in getattr(back, part).items():
            assert value.contiguous().numpy().tobytes() == kept[name].contiguous().numpy().tobytes()


def test_what_is_done_to_a_loaded_state_does_not_reach_its_file(save, shelf):
    save(1)
    load_private_state(shelf, 1, FIRST)[0].head["fc.bias"].zero_()
    assert load_private_state(shelf, 1, FIRST)[0].head["fc.bias"].item() == 1


def test_a_client_that_has_none_begins_with_the_first_weights(load):
    assert load(5) == (0, 0)


def test_the_file_says_what_it_is(shelf, save):
    save(5)
    path = shelf.state_dir / "test-0123abcd" / "3" / "round-000005.safetensors"
    assert load_file(path).keys() == {"local.x.down", "local.x.up", "head.fc.bias"}
    said = about(path)
    assert len(said["sha256"]) == 64
    assert said["facts"] == {"schema": "1", "run-token": "0123abcd", "partition": "3", "round": "5"}


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_nobody_else_can_read_it(shelf, save):
    before = os.umask(0)
    try:
        save(1)
    finally:
        os.umask(before)
    folders = (shelf.folder, *shelf.folder.parents[:2])
    assert folders[-1] == shelf.state_dir
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 3
    assert stat.S_IMODE(shelf.file(1).stat().st_mode) == 0o600


def test_training_takes_a_round_before_and_evaluation_the_same(save, load):
    save(2, 7)
    assert [load(up_to)[0] for up_to in (1, 2, 6, 7, 9)] == [0, 2, 2, 7, 7]


def test_the_last_three_rounds_are_kept(shelf, save):
    save(1, 3, 4, 6)
    assert names(shelf) == [f"round-00000{kept}.safetensors" for kept in (3, 4, 6)]


def test_a_round_that_is_tried_again_replaces_its_file_and_drops_later_ones(shelf, save, load):
    save(3, 4, 5)
    save(4)
    assert names(shelf) == ["round-000003.safetensors", "round-000004.safetensors"]
    save(5)
    assert load(4) == (4, 0)


def test_rounds_are_ordered_as_numbers(shelf, save, load):
    save(999_999, 1_000_000)
    assert load(1_000_000) == (1_000_000, 0)
    save(1_000_001, 1_000_002)
    assert names(shelf) == [f"round-100000{kept}.safetensors" for kept in (0, 1, 2)]


def a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"), target_is_directory=True)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["the client's", "the run's", "the state-dir"])
@pytest.mark.parametrize(
    ("plant", "why"),
    [
        (a_link, "is a link"),
        (lambda path: path.chmod(0o750), r"is open to other users \(750\)"),
        (lambda path: path.chmod(0o701), r"is open to other users \(701\)"),
    ],
    ids=["link", "group", "others"],
)
def test_a_planted_or_open_folder_is_refused_and_nothing_is_read_or_written(
    shelf, save, load, depth, plant, why
):
    save(1)
    folder = (shelf.folder, *shelf.folder.parents)[depth]
    plant(folder)
    before = names(shelf)
    allowed = "allowed: a folder that is one's own alone, chmod 700"
    line = rf"^state-dir = '{re.escape(str(folder))}' {why}; {allowed}$"
    for act in (lambda: load(1), lambda: save(2)):
        with pytest.raises(SettingsError, match=line):
            act()
    assert names(shelf) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_a_folder_of_another_user_is_refused(shelf, save, load, monkeypatch):
    save(1)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(SettingsError, match=r"belongs to another user; allowed: "):
        load(1)


def test_a_link_to_nowhere_is_refused_too(shelf, save, load, tmp_path):
    """Whoever planted it would say later where the states are to be written."""
    shelf.state_dir.symlink_to(tmp_path / "later")
    for act in (lambda: load(1), lambda: save(1)):
        with pytest.raises(SettingsError, match=r"^state-dir = "):
            act()
    assert not (tmp_path / "later").exists()


def test_a_state_that_should_be_there_and_is_not_is_counted(shelf, save, load, caplog):
    assert load(2, expected=2) == (0, 1)
    assert caplog.messages == [
        f"no private state up to round 2 is left in {shelf.folder}: going on from the first weights"
    ]
    save(1, 2)
    assert [load(2, expected) for expected in (0, 1, 2)] == [(2, 0)] * 3
    caplog.clear()
    shelf.file(2).unlink()
    assert load(2, expected=2) == (1, 1)
    assert caplog.messages == [
        f"the private state of round 2 is not in {shelf.folder}: going on from that of round 1"
    ]


def test_one_that_is_damaged_and_missing_counts_once(shelf, save, load):
    save(4, 5)
    noise(shelf.file(5))
    assert load(5, expected=5) == (4, 1)
    assert load(5, expected=5) == (4, 1)


def test_where_it_must_be_there_it_is_an_error(shelf, save, load):
    save(1)
    assert load(1, expected=1, must=True) == (1, 0)
    with pytest.raises(
        ValueError, match=r"^the private state of round 2 is not in .*; allowed: the machine where it lies"
    ):
        load(2, expected=2, must=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["local", "head", "owed"])
def test_what_is_not_finite_is_never_committed(shelf, save, load, value, part):
    save(1, 2)
    before = names(shelf)
    bad = replace(state_of(3.0), **{part: {"x": torch.tensor([1.0, value])}})
    with pytest.raises(ValueError, match=rf"^{part}.x of the private state is not finite: it is not kept$"):
        save_private_state(shelf, 3, bad)
    assert names(shelf) == before
    assert load(3) == (2, 0)


def test_another_run_of_the_same_name_neither_sees_nor_deletes_the_first_ones_states(shelf, save, load):
    other = replace(shelf, run_token="ffff")
    save(1, 2, 3)
    assert load(9, shelf=other) == (0, 0)
    save(*range(1, 9), shelf=other)
    assert names(shelf) == [shelf.file(kept).name for kept in (1, 2, 3)]
    assert (load(9), load(9, shelf=other)) == ((3, 0), (8, 0))


def test_no_name_and_token_make_another_runs_folder(shelf):
    """A run may be called as another with its token."""
    pairs = [("a", "b1"), ("a-b1", "b1"), ("a", "b1b1"), ("a-b", "1")]
    folders = {replace(shelf, run_name=name, run_token=token).folder for name, token in pairs}
    assert len(folders) == len(pairs)


def test_a_run_that_goes_back_further_than_is_kept_says_so(save, load, caplog):
    save(4)
    save(5)
    assert load(3) == (0, 0)  # round 4 was this client's first
    save(6)
    assert load(3, expected=2) == (0, 1)
    assert caplog.messages[-1].startswith("no private state up to round 3 is left in")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_leaves_the_old_state(shelf, save, load, monkeypatch):
    save(1, 2)
    before = names(shelf)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as error:
            save_private_state(shelf, 3, state_of(3.0))
    line = f"private state cannot be written to {shelf.file(3)}: No space left on device"
    assert str(error.value) == line
    assert names(shelf) == before
    assert load(3) == (2, 0)


def test_a_folder_that_cannot_be_made_is_named(shelf, save):
    shelf.state_dir.write_text("a file, not a folder")
    with pytest.raises(
        SettingsError, match=r"^state-dir = '.*clients' cannot be made \(File exists\); allowed: "
    ):
        save(1)


CHILD = """
import sys, torch
from app.private_state import PrivateState, Shelf, save_private_state
from pathlib import Path

shelf = Shelf(Path(sys.argv[1]), "test", "0123abcd", 3)
print("ready", flush=True)
server_round = int(sys.argv[2])
while True:
    server_round += 1
    value = float(server_round)
    state = PrivateState({"x": torch.full((200_000,), value)}, {"y": torch.full((1,), value)})
    save_private_state(shelf, server_round, state)
    print(server_round, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_goes_on_from_its_last_round(shelf):
    """Killed with SIGKILL at twelve different moments, a few of them in the middle of a file."""
    first = PrivateState({"x": torch.zeros(200_000)}, {"y": torch.zeros(1)})
    committed, drafts = 0, 0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(shelf.state_dir), str(committed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        # A draft in the folder: the process is in the middle of writing. Which one differs.
        seen, end = 0, time.monotonic() + 5
        while seen <= attempt and time.monotonic() < end:
            seen += any(shelf.folder.glob(".round-*"))
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout]
        process.wait()
        process.stdout.close()
        drafts += any(shelf.folder.glob(".round-*"))
        state, lost = load_private_state(shelf, 10**6, first)
        value = state.head["y"].item()
        assert lost == 0
        assert torch.equal(state.local["x"], torch.full((200_000,), value))
        last = max([committed, *said])
        assert value in (last, last + 1)  # renamed, and killed before it could say so
        committed = int(value)
    assert drafts  # otherwise no kill hit a writing
    save_private_state(shelf, committed + 1, first)
    assert not list(shelf.folder.glob(".round-*"))


def test_the_file_of_a_killed_writing_is_cleared_away(shelf, save, load):
    save(1)
    (shelf.folder / ".round-000002.safetensors.x7f").write_bytes(b"half")
    assert load(2) == (1, 0)
    save(2)
    assert names(shelf) == ["round-000001.safetensors", "round-000002.safetensors"]
