"""What a client keeps to itself from round to round: its local adapter and its head, in files that last.

One safetensors file a round, ``<state-dir>/<run-name>/<partition-id>/round-000005.safetensors``, holds the
client's state after that round, with a checksum. Training in round r goes on from the newest good state of a
round before r, evaluation from the newest one up to r; so a round that is tried again, or resumed, begins
where it began the first time. Nothing else need be kept: the optimizer is new in each round, the learning
rate and the order of the data are functions of the settings, the seed and the round.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from app.checked_files import read_checked, write_checked
from app.records import from_record, to_record

log = logging.getLogger("flwr")

SCHEMA = "1"
PARTS = ("local", "head", "owed")
# A server that fell in round r, after its clients had trained, tries r again from their states of r - 1; if
# its checkpoint of r - 1 is damaged, it tries r - 1 from those of r - 2.
KEPT_ROUNDS = 3
_FILE_NAME = re.compile(r"round-(\d{6,})\.safetensors")


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
        return self.state_dir / self.run_name / str(self.partition_id)

    def file(self, server_round: int) -> Path:
        """Return the file of one round."""
        return self.folder / f"round-{server_round:06d}.safetensors"

    def rounds(self) -> list[int]:
        """Return the rounds that there are files of, the newest first."""
        if not self.folder.is_dir():
            return []
        matches = (_FILE_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def make_folder(self) -> None:
        """Make the folder, closed to other users from the state-dir down."""
        for folder in (self.state_dir, self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def load_private_state(
    context: Context, shelf: Shelf, up_to: int, first: PrivateState
) -> tuple[PrivateState, int]:
    """Return the newest good state.

    A file that is truncated, altered, of another run, client or round, or does not fit the model is set
    aside under a name that ends in ``.corrupt``, with a warning; the one before it is tried.

    Parameters
    ----------
    context : Context
        Its state may hold the wanted one already.
    shelf : Shelf
        Where the files lie.
    up_to : int
        The last round whose state may be taken.
    first : PrivateState
        What a client without any state begins with. Names, shapes and dtypes must be the same in a file.

    Returns
    -------
    PrivateState
        The state.
    int
        How many states were lost on the way: files set aside, and one if there may have been another.

    Raises
    ------
    OSError
        A file is there and cannot be read or set aside.
    """
    lost, rounds = 0, shelf.rounds()
    for server_round in (kept for kept in rounds if kept <= up_to):
        if (cached := _cached(context, shelf, server_round)) is not None:
            return cached, lost
        path = shelf.file(server_round)
        try:
            return _read(path, _facts(shelf, server_round), first), lost
        except ValueError as error:
            path.rename(path.with_name(f"{path.name}.corrupt"))
            lost += 1
            log.warning(
                "private state %s is kept aside as .corrupt: %s; going on from the one before", path, error
            )
    # With so many later rounds, one of up to `up_to` may have been dropped: the server went far back.
    lost += sum(kept > up_to for kept in rounds) >= KEPT_ROUNDS
    if lost:
        log.warning(
            "no private state up to round %d is left in %s: going on from the first weights",
            up_to,
            shelf.folder,
        )
    return first, lost


def save_private_state(context: Context, shelf: Shelf, server_round: int, state: PrivateState) -> None:
    """Commit the state after a round, and drop what the round makes useless.

    The file is there complete or not at all. Files of later rounds, from before the run was resumed, are
    deleted, and all but the last `KEPT_ROUNDS` of the others. Call it last in a round.

    Raises
    ------
    OSError
        The file cannot be written; the states of earlier rounds are as they were.
    """
    path = shelf.file(server_round)
    try:
        shelf.make_folder()
        write_checked(path, _flat(state), _facts(shelf, server_round))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"private state cannot be written to {path}: {reason}") from error
    kept = [other for other in shelf.rounds() if other <= server_round][:KEPT_ROUNDS]
    for other in set(shelf.rounds()) - set(kept):
        shelf.file(other).unlink(missing_ok=True)
    for draft in shelf.folder.glob(".round-*"):  # of a process that was killed while it wrote
        draft.unlink(missing_ok=True)
    for part in PARTS if state.owed else PARTS[:-1]:  # in float32 nothing is owed
        context.state[f"private-{part}"] = to_record(getattr(state, part))
    context.state["private-facts"] = ConfigRecord(dict(_facts(shelf, server_round)))


def _facts(shelf: Shelf, server_round: int) -> dict[str, str]:
    return {
        "schema": SCHEMA,
        "run-token": shelf.run_token,
        "partition": str(shelf.partition_id),
        "round": str(server_round),
    }


def _cached(context: Context, shelf: Shelf, server_round: int) -> PrivateState | None:
    """Return the state that the context holds if it is the one of this run, client and round."""
    if dict(context.state.config_records.get("private-facts", {})) != _facts(shelf, server_round):
        return None
    records = context.state.array_records
    return PrivateState(
        **{part: from_record(records.get(f"private-{part}", ArrayRecord())) for part in PARTS}
    )


def _read(path: Path, facts: Mapping[str, str], first: PrivateState) -> PrivateState:
    """Read a file; ValueError says what is wrong with its content."""
    tensors = read_checked(path, facts)
    if _layout(tensors) != _layout(_flat(first)):
        raise ValueError("its arrays are not those of the model")
    return PrivateState(
        **{part: {name: tensors[f"{part}.{name}"] for name in getattr(first, part)} for part in PARTS}
    )


def _flat(state: PrivateState) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(state, part).items()}


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
