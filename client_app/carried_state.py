"""Private states that travel in a client's Flower context: for a simulation on machines that share no disk.

The context carries copies of the shelf's files; whichever machine has the client next puts them on its own
disk, and goes on from files as everywhere.
"""

from typing import cast

from flwr.app import ConfigRecord, Context

from app.files import write_atomically
from app.private_state import Shelf

_CARRIED = "private-files"


def put_down(context: Context, shelf: Shelf) -> None:
    """Make the shelf what the context carries, whatever this disk has; one that carries nothing, nothing."""
    record = context.state.config_records.get(_CARRIED, ConfigRecord())
    carried = {int(kept): cast(bytes, content) for kept, content in record.items()}
    if not carried:
        return
    for server_round in set(shelf.rounds()) - carried.keys():
        shelf.file(server_round).unlink()
    shelf.make_folder()
    for server_round, content in carried.items():
        path = shelf.file(server_round)
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)


def pick_up(context: Context, shelf: Shelf) -> None:
    """Have the context carry what is on the shelf."""
    context.state[_CARRIED] = ConfigRecord(
        {str(kept): shelf.file(kept).read_bytes() for kept in shelf.rounds()}
    )
