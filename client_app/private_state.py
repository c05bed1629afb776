"""What a client keeps to itself from round to round: its local adapter and its head."""

from dataclasses import dataclass

from flwr.app import Context
from torch import Tensor

from app.records import from_record, to_record

_PARTS = ("local", "head")


@dataclass(frozen=True)
class PrivateState:
    """One client's private weights.

    Attributes
    ----------
    local : dict
        The local adapter A_c by names on the wire (where it never goes).
    head : dict
        The answer head's state.
    """

    local: dict[str, Tensor]
    head: dict[str, Tensor]


def load_private_state(context: Context) -> PrivateState | None:
    """Return what this client kept last, or None in its first round."""
    if any(f"private-{part}" not in context.state for part in _PARTS):
        return None
    records = context.state.array_records
    return PrivateState(**{part: from_record(records[f"private-{part}"]) for part in _PARTS})


def save_private_state(context: Context, state: PrivateState) -> None:
    """Keep the state for the client's next message.

    Call it last: Flower keeps it even if the client fails afterwards.
    """
    for part in _PARTS:
        context.state[f"private-{part}"] = to_record(getattr(state, part))
