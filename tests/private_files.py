"""Where clients keep what is private, and what is in it."""

import re
from pathlib import Path

from flwr.app import ArrayRecord
from safetensors.torch import load_file

PARTS = ("local", "head", "owed")


def folder_of(state_dir: Path, run: str, partition: int) -> Path:
    """Return the folder of one client's private states of the one run of that name."""
    (found,) = (
        path for path in state_dir.iterdir() if re.fullmatch(f"{re.escape(run)}-[0-9a-f]+", path.name)
    )
    return found / str(partition)


def newest_state(state_dir: Path, run: str, partition: int) -> dict[str, ArrayRecord]:
    """Return the newest private state by part, without those that have no arrays; {} if there is none."""
    if not any(state_dir.glob(f"{run}-*")):
        return {}
    folder = folder_of(state_dir, run, partition)
    files = sorted(folder.glob("round-*.safetensors")) if folder.exists() else []
    if not files:
        return {}
    tensors = load_file(files[-1])
    records = {
        part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in PARTS
    }
    return {f"private-{part}": ArrayRecord(record) for part, record in records.items() if record}
