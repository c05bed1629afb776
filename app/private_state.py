"""What a client keeps to itself from round to round: its local adapter and its head, in files that last.

One safetensors file a round, ``<state-dir>/<run-name>-<run-token>/<partition-id>/round-000005.safetensors``,
holds the client's state after that round, with a checksum; another run of the same name has another token.
Training in round r goes on from the newest good state of a round before r, evaluation from the newest one up
to r; so a round that is tried again, or resumed, begins where it began the first time. Nothing else need be
kept: the optimizer is new in each round, the learning rate and the order of the data are functions of the
settings, the seed and the round.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checked_files import read_checked, write_checked
from .home import closed_folder

log = logging.getLogger("flwr")

SCHEMA = "1"
PARTS = ("local", "head", "owed")
# A server that fell in round r, after its clients had trained, tries r again from their states of r - 1; if
# its checkpoint of r - 1 is damaged, it tries r - 1 from those of r - 2.
KEPT_ROUNDS = 3
_FILE_NAME = re.compile(r"round-([0-9]{6,})\.safetensors")


@dataclass(frozen=True)
class PrivateState:
    """One client's private weights.

    Attributes
    ----------
    local : dict
        The local adapter A_c by names on the wire (where it never goes).
    head : dict
        The answer head's state.
    owed : dict
        What the wire's rounding took from the shared adapter's changes so far, see `records.to_reply`;
        empty in float32.
    """

    local: dict[str, Tensor]
    head: dict[str, Tensor]
    owed: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: Mapping[str, Tensor], owed: dict[str, Tensor]) -> "PrivateState":
        """Sort what `Learner.private` gave by its parts."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): v for name, v in kept.items() if name.startswith(prefix)}

        return cls(part("local."), part("head."), owed)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What `Learner.load_private` takes."""
        return {name: value for name, value in _flat(self).items() if not name.startswith("owed.")}


@dataclass(frozen=True)
class Shelf:
    """Where the private states of one client and run lie.

    Attributes
    ----------
    state_dir : Path
        The site's folder for the private states of all runs.
    run_name, run_token : str
        The run. The token tells it from another of the same name, whose states are foreign.
    partition_id : int
        The client.
    """

    state_dir: Path
    run_name: str
    run_token: str
    partition_id: int

    @property
    def folder(self) -> Path:
        """The client's own folder."""
        return self.state_dir / f"{self.run_name}-{self.run_token}" / str(self.partition_id)

    def file(self, server_round: int) -> Path:
        """Return the file of one round."""
        return self.folder / f"round-{server_round:06d}.safetensors"

    def rounds(self) -> list[int]:
        """Return the rounds that there are files of, the newest first.

        Raises
        ------
        SettingsError
            A folder on the way is a link, another user's or open to others: what lies there may be too.
        """
        for folder in self._way:
            if not os.path.lexists(folder):
                return []
            closed_folder("state-dir", folder)
        matches = (_FILE_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def make_folder(self) -> None:
        """Make the folder, closed to other users from the state-dir down; SettingsError as in `rounds`."""
        for folder in self._way:
            closed_folder("state-dir", folder)

    @property
    def _way(self) -> tuple[Path, ...]:
        return self.state_dir, self.folder.parent, self.folder


def load_private_state(
    shelf: Shelf, up_to: int, first: PrivateState, expected: int = 0, *, must: bool = False
) -> tuple[PrivateState, int]:
    """Return the newest good state.

    A file that is truncated, altered, of another run, client or round, does not fit the model or has values
    that are not finite is set aside under a name that ends in ``.corrupt``, with a warning; the one before it
    is tried.

    Parameters
    ----------
    shelf : Shelf
        Where the files lie.
    up_to : int
        The last round whose state may be taken.
    first : PrivateState
        What a client without any state begins with. Names, shapes and dtypes must be the same in a file.
    expected : int
        The round whose state, or a later one's, must be there; 0 for none.
    must : bool
        Whether it is an error if it is not.

    Returns
    -------
    PrivateState
        The state.
    int
        How many were lost on the way: files set aside, or 1 if there is none and the expected is missing.

    Raises
    ------
    ValueError
        The expected state must be there and is not.
    SettingsError
        The folder is not the client's alone.
    OSError
        A file is there and cannot be read or set aside.
    """
    lost, found, state = 0, 0, first
    for server_round in (kept for kept in shelf.rounds() if kept <= up_to):
        path = shelf.file(server_round)
        try:
            found, state = server_round, _read(path, _facts(shelf, server_round), first)
            break
        except ValueError as error:
            found = 0
            path.rename(path.with_name(f"{path.name}.corrupt"))
            lost += 1
            log.warning(
                "private state %s is kept aside as .corrupt: %s; going on from the one before", path, error
            )
    if found < expected:
        missing = f"the private state of round {expected} is not in {shelf.folder}"
        if must:
            raise ValueError(
                f"{missing}; allowed: the machine where it lies, one FEDDAT_HOME for all machines, or"
                " private-state = 'context' from the first round on"
            )
        lost = max(lost, 1)
        if found:
            log.warning("%s: going on from that of round %d", missing, found)
    if lost and not found:
        log.warning(
            "no private state up to round %d is left in %s: going on from the first weights",
            up_to,
            shelf.folder,
        )
    return state, lost


def newest_private_state(shelf: Shelf, first: PrivateState) -> PrivateState:
    """Return the newest state for somebody who only looks: no file is set aside, and none is made up for.

    Raises
    ------
    ValueError
        There is none, or it cannot be read; `first` says which names, shapes and dtypes it must have.
    """
    rounds = shelf.rounds()
    if not rounds:
        raise ValueError(f"there is no private state in {shelf.folder}")
    return _read(shelf.file(rounds[0]), _facts(shelf, rounds[0]), first)


def save_private_state(shelf: Shelf, server_round: int, state: PrivateState) -> None:
    """Commit the state after a round, and drop what the round makes useless.

    The file is there complete or not at all. Files of later rounds, from before the run was resumed, are
    deleted, and all but the last `KEPT_ROUNDS` of the others. Call it last in a round.

    Raises
    ------
    ValueError
        A value is not finite; the states of earlier rounds are as they were.
    SettingsError
        The folder is not the client's alone.
    OSError
        The file cannot be written; the states of earlier rounds are as they were.
    """
    path, tensors = shelf.file(server_round), _flat(state)
    if name := not_finite(tensors):
        raise ValueError(f"{name} of the private state is not finite: it is not kept")
    try:
        shelf.make_folder()
        write_checked(path, tensors, _facts(shelf, server_round))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"private state cannot be written to {path}: {reason}") from error
    kept = [other for other in shelf.rounds() if other <= server_round][:KEPT_ROUNDS]
    for other in set(shelf.rounds()) - set(kept):
        shelf.file(other).unlink(missing_ok=True)
    for draft in shelf.folder.glob(".round-*"):  # of a process that was killed while it wrote
        draft.unlink(missing_ok=True)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor with a value that is not finite."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def _facts(shelf: Shelf, server_round: int) -> dict[str, str]:
    return {
        "schema": SCHEMA,
        "run-token": shelf.run_token,
        "partition": str(shelf.partition_id),
        "round": str(server_round),
    }


def _read(path: Path, facts: Mapping[str, str], first: PrivateState) -> PrivateState:
    """Read a file; ValueError says what is wrong with its content."""
    tensors = read_checked(path, facts)
    if _layout(tensors) != _layout(_flat(first)):
        raise ValueError("its arrays are not those of the model")
    if name := not_finite(tensors):
        raise ValueError(f"its {name} is not finite")
    return PrivateState(
        **{part: {name: tensors[f"{part}.{name}"] for name in getattr(first, part)} for part in PARTS}
    )


def _flat(state: PrivateState) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(state, part).items()}


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
