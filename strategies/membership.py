"""Who is there: nodes come and go under random ids, and are known here by their partitions."""

import logging
from collections.abc import Mapping
from time import monotonic, sleep

from flwr.serverapp import Grid

from .handshake import ask, judge

log = logging.getLogger("flwr")  # Flower's own logger: what it gets is in `flwr log`

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 5.0


class Members:
    """The nodes that take part, known by partition.

    Parameters
    ----------
    expected_nodes : int or None
        Nodes to wait for before the first of them is asked; None: one is enough.
    wait_seconds : float
        How long to wait for nodes, and for their answers to the handshake.
    expected : Mapping[str, str]
        What a node must say of itself, see `handshake.judge`.
    handshake : bool
        False: nodes are not asked; the partition is the rank of the node id.

    Attributes
    ----------
    partitions : dict[int, int]
        Partition of each member, by node id.
    """

    def __init__(
        self, expected_nodes: int | None, wait_seconds: float, expected: Mapping[str, str], handshake: bool
    ) -> None:
        self.expected_nodes = expected_nodes
        self.wait_seconds = wait_seconds
        self.expected = expected
        self.handshake = handshake
        self.partitions: dict[int, int] = {}

    def wait(self, grid: Grid) -> None:
        """Wait until the expected nodes are there.

        Raises
        ------
        RuntimeError
            They did not come in time.
        """
        wanted, start = self.expected_nodes or 1, monotonic()
        reported = start - PROGRESS_SECONDS
        while (count := len(list(grid.get_node_ids()))) < wanted:
            now = monotonic()
            if now - start >= self.wait_seconds:
                raise RuntimeError(
                    f"expected nodes: {wanted}, but {count} came within {self.wait_seconds:g} s:"
                    " start the others, lower expected_nodes or raise wait_seconds"
                )
            if now - reported >= PROGRESS_SECONDS:
                log.info("waiting for nodes: %d of %d", count, wanted)
                reported = now
            sleep(POLL_SECONDS)

    def update(self, grid: Grid, server_round: int, unwanted: set[int]) -> None:
        """Drop who left and admit who came, but for the `unwanted`, to whom the refused are added.

        Raises
        ------
        RuntimeError
            A node may not take part, and the run has not begun. Later it stays outside, with a warning: one
            misplaced node must not end a run that goes well without it.
        """
        there = set(grid.get_node_ids())
        self.partitions = {node: partition for node, partition in self.partitions.items() if node in there}
        strangers = sorted(there - self.partitions.keys() - unwanted)
        if not strangers:
            return
        if self.handshake:
            replies = ask(grid, strangers, server_round, self.wait_seconds)
            admitted, refusals = judge(strangers, replies, self.expected, self.partitions)
        else:
            free = max(self.partitions.values(), default=-1) + 1
            admitted, refusals = {node: free + rank for rank, node in enumerate(strangers)}, []
        if refusals and not self.partitions:
            others = f" (and {len(refusals) - 1} more nodes)" if len(refusals) > 1 else ""
            raise RuntimeError(refusals[0] + others)
        for refusal in refusals:
            log.warning("not admitted: %s", refusal)
        unwanted.update(set(strangers) - admitted.keys())
        self.partitions.update(admitted)
