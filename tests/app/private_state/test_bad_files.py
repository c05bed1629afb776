"""Files of private state that are not good: each is noticed, kept aside, and the one before taken."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from app import checked_files
from app.private_state import PrivateState, load_private_state
from tests.app.private_state.states import FIRST, about, names, noise


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:40])


def empty(path):
    path.write_bytes(b"")


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def other_metadata(path, **changes):
    said = about(path)
    said["facts"] |= changes
    save_file(load_file(path), path, {"about": json.dumps(said)})


def of_another_run(path):
    other_metadata(path, **{"run-token": "ffff"})


def of_another_client(path):
    other_metadata(path, partition="4")


def of_another_round(path):
    other_metadata(path, round="4")


def of_another_schema(path):
    other_metadata(path, schema="2")


def without_metadata(path):
    save_file(load_file(path), path)


def one_value_changed(path):
    said, tensors = about(path), load_file(path)
    tensors["head.fc.bias"] += 1e-6
    save_file(tensors, path, {"about": json.dumps(said)})


def not_finite_and_written_so(path):
    tensors = load_file(path) | {"head.fc.bias": torch.tensor([torch.nan])}
    checked_files.write_checked(path, tensors, about(path)["facts"])


BROKEN = [
    cut,
    cut_in_the_header,
    empty,
    longer,
    noise,
    of_another_run,
    of_another_client,
    of_another_round,
    of_another_schema,
    without_metadata,
    one_value_changed,
    not_finite_and_written_so,
]


@pytest.mark.parametrize("break_file", BROKEN, ids=lambda function: function.__name__)
def test_a_bad_file_is_kept_aside_and_the_one_before_is_taken(shelf, save, load, caplog, break_file):
    save(4, 5)
    break_file(shelf.file(5))
    broken = shelf.file(5).read_bytes()
    assert load(5) == (4, 1)
    aside = shelf.file(5).with_name("round-000005.safetensors.corrupt")
    assert aside.read_bytes() == broken
    assert names(shelf) == ["round-000004.safetensors", aside.name]
    assert [text.split(":")[0] for text in caplog.messages] == [
        f"private state {shelf.file(5)} is kept aside as .corrupt"
    ]
    assert load(5) == (4, 0)
    save(5, 6)
    assert names(shelf)[:3] == [shelf.file(4).name, shelf.file(5).name, aside.name]


@pytest.mark.parametrize(
    "first",
    [
        PrivateState({**FIRST.local, "x.up": torch.zeros(3)}, FIRST.head),
        PrivateState({**FIRST.local, "x.up": torch.zeros(2, dtype=torch.float64)}, FIRST.head),
        PrivateState({**FIRST.local, "x.more": torch.zeros(2)}, FIRST.head),
        PrivateState({"x.up": torch.zeros(2)}, FIRST.head),
        PrivateState(FIRST.head, FIRST.local),
    ],
    ids=["shape", "dtype", "missing", "more", "parts"],
)
def test_a_state_that_does_not_fit_the_model_is_not_taken(shelf, save, first):
    save(5)
    assert load_private_state(shelf, 5, first) == (first, 1)


def test_when_none_is_good_the_client_begins_again_and_says_so(shelf, save, load, caplog):
    save(4, 5)
    for server_round in (4, 5):
        noise(shelf.file(server_round))
    assert load(5) == (0, 2)
    assert caplog.messages[-1] == (
        f"no private state up to round 5 is left in {shelf.folder}: going on from the first weights"
    )


def test_one_flipped_bit_anywhere_is_noticed(shelf, save, load):
    """Every bit of the header, in which lengths, names and facts stand, and of the weights."""
    save(5)
    good = shelf.file(5).read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        shelf.file(5).write_bytes(bad)
        assert load(5) == (0, 1), position


def test_a_file_cut_anywhere_is_noticed(shelf, save, load):
    save(5)
    good = shelf.file(5).read_bytes()
    for length in range(len(good)):
        shelf.file(5).write_bytes(good[:length])
        assert load(5) == (0, 1), length


def test_a_file_that_cannot_be_read_is_not_called_corrupt(shelf, save, load, monkeypatch):
    def closed(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    save(5)
    monkeypatch.setattr(checked_files, "safe_open", closed)
    with pytest.raises(OSError, match=r"Permission denied: .*round-000005.safetensors"):
        load(5)
    assert names(shelf) == ["round-000005.safetensors"]
