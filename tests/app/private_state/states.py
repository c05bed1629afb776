"""States to keep, and what their files are called and say of themselves."""

import json

import torch
from safetensors import safe_open

from app.private_state import PrivateState


def state_of(value):
    return PrivateState(
        {"x.down": torch.full((3, 2), value), "x.up": torch.full((2,), -value)},
        {"fc.bias": torch.full((1,), value)},
    )


FIRST = state_of(0.0)


def names(shelf):
    return sorted(path.name for path in shelf.folder.iterdir())


def about(path):
    """Return what a file says of itself."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])


def noise(path):
    path.write_bytes(b"\x80\x04\x95 a pickle, or anything else" * 30)
