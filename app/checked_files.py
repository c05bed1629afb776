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

_ABOUT = "about"


def write_checked(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors with facts about them, at once and whole; the file is its owner's alone."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"facts": dict(facts), "names": list(tensors), "sha256": _checksum(tensors, facts)}
    # Safetensors sorts names and shuffles metadata: one key holds all, and the same is always the same bytes.
    write_atomically(path, save(tensors, {_ABOUT: json.dumps(about, sort_keys=True)}))


def read_checked(path: Path, facts: Mapping[str, str]) -> dict[str, Tensor]:
    """Read tensors that lie in the file as they were written, in that order, memory-mapped.

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
            about = json.loads((file.metadata() or {})[_ABOUT])
            kept = dict(about["facts"])
            for key, value in facts.items():
                if kept.get(key) != value:
                    raise ValueError(f"its {key} is {kept.get(key)!r}, not {value!r}")
            tensors = {name: file.get_tensor(name) for name in about["names"]}
            if about["sha256"] != _checksum(tensors, kept) or set(file.keys()) != set(tensors):
                raise ValueError("its checksum is not that of its content")
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    except (KeyError, TypeError, RecursionError):
        raise ValueError("it does not say what it holds") from None
    return tensors


def facts_of(path: Path) -> dict[str, str]:
    """Return the facts that a file says it was written with, its content unchecked.

    Raises
    ------
    ValueError
        It does not say.
    OSError
        It cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {})[_ABOUT])["facts"])
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    except (KeyError, TypeError, RecursionError):
        raise ValueError("it does not say what it holds") from None


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Hash the facts, and each tensor's name, shape, dtype and bytes in their order (SHA-256, hex)."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
