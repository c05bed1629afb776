"""A run's checkpoints: one safetensors file a round, of which the last two and the best stay."""

import logging
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from app.checked_files import read_checked, write_checked
from strategies import Checkpoint

log = logging.getLogger("flwr")


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """Keeps the checkpoints of one run (`strategies.CheckpointStore`).

    Parameters
    ----------
    folder : Path
        Where they are, ``round-000003.safetensors`` for the third round.
    best_round : Callable[[int], int or None]
        Best round of those up to a given one; its checkpoint stays.
    """

    def __init__(self, folder: Path, best_round: Callable[[int], int | None]) -> None:
        self.folder = folder
        self.best_round = best_round

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete what is no longer needed; an interrupted write leaves its draft."""
        last = checkpoint.server_round
        self.folder.mkdir(exist_ok=True)
        if (path := _path(self.folder, last)).is_dir():
            aside = next(p for i in count(1) if not (p := path.with_name(f"{path.name}.aside-{i}")).exists())
            log.warning("%s is a folder, and is kept as %s", path, aside.name)
            path.rename(aside)
        write_checkpoint(self.folder, checkpoint)
        # The round before is what a damaged file falls back to, and has a best of its own.
        needed = (last, last - 1, self.best_round(last), self.best_round(last - 1))
        outdated = {_path(self.folder, r) for r in self._rounds() if r not in needed}
        for path in outdated | set(self.folder.glob(".round-*")):
            # Whatever else lies there is not ours to delete.
            if not path.is_dir():
                path.unlink()

    def load(self, server_round: int) -> Checkpoint:
        """Read the checkpoint of one round.

        Raises
        ------
        DamagedError
            It is missing, cut, or its checksum is wrong.
        """
        return _read(_path(self.folder, server_round), server_round)

    def newest(self) -> Checkpoint | None:
        """Read the last checkpoint, or if that is damaged the one before, saying so; None without either.

        The best is no place to go on from when it is older: clients keep no state of that age. A file that
        cannot be read and follows on no other is no checkpoint of this run and stands in nobody's way.
        """
        rounds, damaged = self._rounds(), set()
        for server_round in sorted(rounds, reverse=True):
            try:
                checkpoint = self.load(server_round)
            except DamagedError as error:
                log.warning("%s", error)
                damaged.add(server_round)
                continue
            follow = {later for later in damaged if later - 1 in rounds}
            return checkpoint if follow <= {server_round + 1} else None
        return None

    def _rounds(self) -> set[int]:
        found = (
            re.fullmatch(r"round-([0-9]{6,})\.safetensors", path.name) for path in self.folder.glob("round-*")
        )
        return {int(match[1]) for match in found if match}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a folder that is there."""
    arrays = {f"arrays/{name}": array.numpy() for name, array in checkpoint.arrays.items()}
    arrays |= {f"state/{name}": array for name, array in checkpoint.state.items()}
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
    write_checked(_path(folder, checkpoint.server_round), tensors, _facts(checkpoint.server_round))


def _path(folder: Path, server_round: int) -> Path:
    return folder / f"round-{server_round:06d}.safetensors"


def _facts(server_round: int) -> dict[str, str]:
    return {"round": str(server_round)}


def _read(path: Path, server_round: int) -> Checkpoint:
    try:
        tensors = read_checked(path, _facts(server_round))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None

    def part(prefix: str) -> dict[str, np.ndarray]:
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        # No map of the file: whoever cut that while the run goes on would end its process.
        return {name.removeprefix(prefix): tensor.numpy().copy() for name, tensor in own.items()}

    record = ArrayRecord({name: Array(array) for name, array in part("arrays/").items()})
    return Checkpoint(server_round, record, part("state/"))
