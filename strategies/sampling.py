"""How the inner strategy samples: from known partitions in a fixed order, with random numbers of the run."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from .membership import Members


@contextmanager
def seeded(seed: str) -> Iterator[None]:
    """Seed the generator that Flower samples nodes with, and give the caller's back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class MembersGrid(Grid):
    """The grid that the inner strategy samples from: members only, ordered by partition.

    Flower's sampling asks for the nodes again and again until there are enough; the deadline ends that too.
    """

    def __init__(self, grid: Grid, members: Members, server_round: int) -> None:
        self._grid = grid
        self._members = members
        self._server_round = server_round
        if not members.partitions:
            members.gather(grid, server_round)
        members.update(grid, server_round)
        self._deadline = monotonic() + members.wait_seconds

    def get_node_ids(self) -> Iterable[int]:
        """Get the members' node ids, ordered by partition.

        Raises
        ------
        RuntimeError
            The strategy still asks when the time is over.
        """
        members = self._members
        if monotonic() > self._deadline:
            raise RuntimeError(
                f"round {self._server_round}: the strategy wants more than {len(members.partitions)} nodes,"
                f" and no more came within {members.wait_seconds:g} s: start others, or lower"
                " its minimum numbers of nodes"
            )
        members.update(self._grid, self._server_round)
        return sorted(members.partitions, key=members.partitions.__getitem__)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Run information."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and collect the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
