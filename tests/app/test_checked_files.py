"""A file that knows what it was written as: nonsense, and what was added, are refused in a ValueError."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.checked_files import read_checked, write_checked

WRITTEN = {"b": torch.zeros(2), "a": torch.ones(1)}


@pytest.mark.parametrize(
    "said", ["", "{", "[]", "3", '{"facts": 3}', '{"facts": {}}', '{"facts": {}, "names": 3}']
)
def test_a_file_that_says_nonsense_of_itself(tmp_path, said):
    save_file({"x": torch.zeros(1)}, tmp_path / "x", {"about": said})
    with pytest.raises(ValueError):
        read_checked(tmp_path / "x", {})


def test_tensors_come_back_in_their_order(tmp_path):
    write_checked(tmp_path / "x", WRITTEN, {"round": "3"})
    assert list(read_checked(tmp_path / "x", {"round": "3"})) == ["b", "a"]
    with pytest.raises(ValueError, match="its round is '3', not '4'"):
        read_checked(tmp_path / "x", {"round": "4"})


def test_a_tensor_that_was_added_is_not_what_was_written(tmp_path):
    write_checked(tmp_path / "x", WRITTEN, {})
    with safe_open(tmp_path / "x", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["about"])["names"] == ["b", "a"]
    save_file({**load_file(tmp_path / "x"), "c": torch.ones(1)}, tmp_path / "x", metadata)
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        read_checked(tmp_path / "x", {})
