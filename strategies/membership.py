"""Who is there: nodes come and go under random ids, and are known here by their partitions."""

import logging
from collections.abc import Callable, Mapping
from time import monotonic, sleep
from typing import cast

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from .handshake import ask, judge

log = logging.getLogger("flwr")  # Flower's own logger: what it gets is in `flwr log`

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 5.0
LATE_SECONDS = 30.0


class Members:
    """The nodes that take part, known by partition.

    Parameters
    ----------
    expected_nodes : int or None
        Nodes to wait for before the first round. None: as many as the first say there are (``num-partitions``
        in the handshake), else one.
    wait_seconds : float
        How long to wait for nodes, and for their answers to the handshake.
    expected : Mapping[str, str | int]
        What a node must say of itself, see `handshake.judge`.
    handshake : bool
        False: nodes are not asked; the partition is the rank of the node id.
    on_joined : Callable
        Told what newly admitted nodes say of themselves, by partition.

    Attributes
    ----------
    partitions : dict[int, int]
        Partition of each member, by node id.
    """

    def __init__(
        self,
        expected_nodes: int | None,
        wait_seconds: float,
        expected: Mapping[str, str | int],
        handshake: bool,
        on_joined: Callable[[dict[int, ConfigRecord]], None],
    ) -> None:
        self.expected_nodes = expected_nodes
        self.wait_seconds = wait_seconds
        self.expected = expected
        self.handshake = handshake
        self.on_joined = on_joined
        self.partitions: dict[int, int] = {}

    def gather(self, grid: Grid, server_round: int) -> None:
        """Wait for the expected nodes and admit them.

        Raises
        ------
        RuntimeError
            They did not come in time, or one of them may not take part.
        """
        deadline = monotonic() + self.wait_seconds
        self._wait(grid, self.expected_nodes or 1, deadline)
        answers = self._admit(grid, server_round, unwanted=None)
        if self.expected_nodes is None:
            self._wait(grid, max(_federation_size(answer) for answer in answers.values()), deadline)
            answers |= self._admit(grid, server_round, unwanted=None)
        self.on_joined(answers)

    def update(self, grid: Grid, server_round: int, unwanted: set[int]) -> None:
        """Drop who left and admit who came, but for the `unwanted`, to whom the refused are added.

        One misplaced node must not end a run that goes well without it: it stays outside, with a warning.
        """
        if answers := self._admit(grid, server_round, unwanted):
            self.on_joined(answers)

    def _wait(self, grid: Grid, wanted: int, deadline: float) -> None:
        reported = monotonic() - PROGRESS_SECONDS
        while (count := len(list(grid.get_node_ids()))) < wanted:
            now = monotonic()
            if now >= deadline:
                raise RuntimeError(
                    f"expected nodes: {wanted}, but {count} came within {self.wait_seconds:g} s:"
                    " start the others, or change expected_nodes, wait_seconds"
                    " (in a run-config: num-clients, wait-seconds)"
                )
            if now - reported >= PROGRESS_SECONDS:
                log.info("waiting for nodes: %d of %d", count, wanted)
                reported = now
            sleep(POLL_SECONDS)

    def _admit(self, grid: Grid, server_round: int, unwanted: set[int] | None) -> dict[int, ConfigRecord]:
        """Return what the newly admitted say, by partition; without `unwanted`, a refusal is an error."""
        there = set(grid.get_node_ids())
        for node in self.partitions.keys() - there:
            log.warning("partition %d has left", self.partitions.pop(node))
        strangers = sorted(there - self.partitions.keys() - (unwanted or set()))
        if not strangers:
            return {}
        if self.handshake:
            # A run that goes on must not wait long for a newcomer.
            patience = self.wait_seconds if unwanted is None else min(self.wait_seconds, LATE_SECONDS)
            replies = ask(grid, strangers, server_round, patience)
            admitted, refusals = judge(strangers, replies, self.expected, self.partitions)
        else:
            free = max(self.partitions.values(), default=-1) + 1
            ranks = {node: ConfigRecord({"partition-id": free + rank}) for rank, node in enumerate(strangers)}
            admitted, refusals = ranks, []
        if refusals and unwanted is None:
            others = f" (and {len(refusals) - 1} more nodes)" if len(refusals) > 1 else ""
            raise RuntimeError(refusals[0] + others)
        for refusal in refusals:
            log.warning("not admitted: %s", refusal)
        if unwanted is not None:
            unwanted.update(set(strangers) - admitted.keys())
        self.partitions |= {node: cast(int, answer["partition-id"]) for node, answer in admitted.items()}
        return {self.partitions[node]: answer for node, answer in admitted.items()}


def _federation_size(answer: ConfigRecord) -> int:
    size = answer.get("num-partitions")
    return size if isinstance(size, int) else 1
