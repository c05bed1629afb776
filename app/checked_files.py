"""Safetensors files that know what they were written as: facts about them, and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_atomically


def write_checked(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors with facts about them, at once and whole; the file is its owner's alone."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**facts, "sha256": _checksum(tensors, facts)}
    write_atomically(path, save(tensors, metadata))


def read_checked(path: Path, facts: Mapping[str, str]) -> dict[str, Tensor]:
    """Read tensors that lie in the file as they were written, memory-mapped.

    Parameters
    ----------
    path : Path
        The file.
    facts : Mapping
        What it must have been written with.

    Raises
    ------
    ValueError
        It says other things of itself, or its content is not what was written.
    OSError
        It cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            kept = file.metadata() or {}
            for key, value in facts.items():
                if kept.get(key) != value:
                    raise ValueError(f"its {key} is {kept.get(key)!r}, not {value!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if kept.pop("sha256", None) != _checksum(tensors, kept):
        raise ValueError("its checksum is not that of its content")
    return tensors


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Hash the facts and each tensor's name, shape, dtype and bytes (SHA-256, hexadecimal)."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
