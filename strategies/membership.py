"""Who is there: nodes come and go under random ids, and are known here by their partitions."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, sleep
from typing import cast

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from .handshake import Answer, agreed_size, ask, judge
from .places import Places, Rule

log = logging.getLogger("flwr")  # Flower's own logger: what it gets is in `flwr log`

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 5.0
LATE_SECONDS = 30.0


def is_simulation(grid: Grid) -> bool:
    """Whether all nodes of a grid are the user's own."""
    # Here, for it brings a database's library; where a grid comes from, it is loaded already.
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


@dataclass(frozen=True)
class Admission:
    """Whom a federation waits for, and who may take part in it.

    Attributes
    ----------
    expected_nodes : int, optional
        Nodes to wait for before the first round. None: as many as most say there are (``num-partitions`` in
        the handshake), else one. Set it where not all nodes are one's own: otherwise one that comes first
        and says that it is all begins the run alone, and of what few say the others may be kept out.
    wait_seconds : float
        How long to wait for nodes, and for their answers to the handshake; then the run ends with an error.
    expected : Mapping[str, str | int]
        What a node must say of itself in the handshake, such as the backbone's fingerprint.
    places : {"first", "any"} or Mapping[int, int]
        Whose partition is whose: the node's that held it first; whoever's when its node has left, for
        SuperNodes without keys; or the node ids of given partitions. See `places.Places`.
    """

    expected_nodes: int | None = None
    wait_seconds: float = 120
    expected: Mapping[str, str | int] = field(default_factory=dict)
    places: Rule = "first"


class Members:
    """The nodes that take part, known by partition.

    In a simulation all nodes are the user's own, and one that may not take part ends the start with an
    error. Elsewhere it stays outside, with a warning: no single node can keep a run from starting.

    Parameters
    ----------
    admission : Admission
        Whom to wait for, and who may take part.
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
        admission: Admission,
        handshake: bool,
        on_joined: Callable[[dict[int, ConfigRecord]], None],
    ) -> None:
        self.expected_nodes = admission.expected_nodes
        self.wait_seconds = admission.wait_seconds
        self.expected = admission.expected
        self.handshake = handshake
        self.on_joined = on_joined
        self.places = Places(admission.places)
        self.partitions: dict[int, int] = {}
        self._answers: dict[int, ConfigRecord] = {}  # of all that were admitted
        self._words: dict[int, str] = {}  # of all that gave one
        self._refused: dict[int, tuple[int, int]] = {}  # node → how often, and the round to ask it again

    def gather(self, grid: Grid, server_round: int) -> None:
        """Wait for the expected nodes and admit them.

        All that come are judged together, in the order in which they came, until there are enough: what the
        first of them says does not bind the run.

        Raises
        ------
        RuntimeError
            They did not come in time, or none of them may take part; in a simulation, one may not.
        """
        simulated = is_simulation(grid)
        if simulated:
            self.places.forget()  # its nodes have new ids and keys in every run
        deadline = monotonic() + self.wait_seconds
        heard: dict[int, Answer] = {}
        wanted = self.expected_nodes or 1
        while True:
            there = self._wait(grid, wanted, heard, deadline)
            new = there - heard.keys()
            if not self.places.kept:
                heard = {node: answer for node, answer in heard.items() if node in there}
            heard = (
                heard | self._ask(grid, new, server_round, deadline - monotonic())
                if self.handshake
                else self._ranked(there)
            )
            tried = self.places.copy()
            size = agreed_size(heard.values(), self.expected_nodes)
            admitted, refusals = judge(heard, self.expected, tried, size)
            present = {node: answer for node, answer in admitted.items() if node in there}
            over = not new  # the time is
            if refusals and (simulated or (over and not present)):
                others = f" (and {len(refusals) - 1} more nodes)" if len(refusals) > 1 else ""
                raise RuntimeError(refusals[0] + others)
            wanted = self.expected_nodes or size or 1
            if len(present) >= wanted:
                break
            if over and len(there) < wanted:
                raise self._too_few(len(there), wanted)
            if over:
                log.warning(
                    "%d of %d nodes take part: the others came too late, or may not take part",
                    len(present),
                    wanted,
                )
                break
        self.places = tried
        self._refuse(there - present.keys(), refusals, server_round)
        self._admit(present)

    def update(self, grid: Grid, server_round: int) -> None:
        """Drop who left and admit who came.

        One misplaced node must not end a run that goes well without it: it stays outside, with a warning, and
        is asked again after one, two, four … rounds.
        """
        there = self.places.look(grid)
        for node in self.partitions.keys() - there:
            log.warning("partition %d has left", self.partitions.pop(node))
        strangers = {
            node
            for node in there - self.partitions.keys()
            if self._refused.get(node, (0, server_round))[1] <= server_round
        }
        if not strangers:
            return
        # A run that goes on must not wait long for a newcomer.
        answers = self._ask(grid, strangers, server_round, 0) if self.handshake else self._ranked(strangers)
        size = agreed_size((self._answers | answers).values(), self.expected_nodes)
        admitted, refusals = judge(answers, self.expected, self.places, size)
        self._refuse(strangers - admitted.keys(), refusals, server_round)
        if admitted:
            self._admit(admitted)

    def word_of(self, node: int) -> str | None:
        """Return what a node wants to find in each message to it; None if it did not say so."""
        return self._words.get(node)

    def ask_anew(self, partition_id: int, server_round: int) -> None:
        """Take a member for a node that has just come: with its private files it has lost its word."""
        for node in [node for node, partition in self.partitions.items() if partition == partition_id]:
            del self.partitions[node]
            self._refuse({node}, [], server_round)

    def _wait(self, grid: Grid, wanted: int, heard: Collection[int], deadline: float) -> set[int]:
        """Wait for the expected number of nodes and for one that was not heard, or for the deadline.

        How many are wanted may be one node's word, so each that comes is heard.
        """
        reported = monotonic() - PROGRESS_SECONDS
        while len(there := self.places.look(grid)) < (self.expected_nodes or 1) or there <= set(heard):
            now = monotonic()
            if now >= deadline:
                if len(there) < (self.expected_nodes or 1):
                    raise self._too_few(len(there), wanted)
                break
            if now - reported >= PROGRESS_SECONDS:
                log.info("waiting for nodes: %d of %d", len(there), wanted)
                reported = now
            sleep(POLL_SECONDS)
        return there

    def _too_few(self, came: int, wanted: int) -> RuntimeError:
        return RuntimeError(
            f"expected nodes: {wanted}, but {came} came within {self.wait_seconds:g} s:"
            " start the others, or change expected_nodes, wait_seconds"
            " (in a run-config: num-clients, wait-seconds)"
        )

    def _ask(self, grid: Grid, nodes: set[int], server_round: int, patience: float) -> dict[int, Answer]:
        """Ask nodes who they are; one that comes when the time is over has some all the same."""
        answers, words = ask(grid, nodes, server_round, max(patience, min(self.wait_seconds, LATE_SECONDS)))
        self._words |= words
        return answers

    def _ranked(self, nodes: set[int]) -> dict[int, Answer]:
        """Give each node that is not asked the number of its own place, or the next that is free."""
        new = sorted(node for node in nodes if self.places.of(node) is None)
        numbers = dict(zip(new, count(self.places.free()), strict=False))
        return {
            node: ConfigRecord({"partition-id": cast(int, numbers.get(node, self.places.of(node)))})
            for node in sorted(nodes)
        }

    def _admit(self, admitted: Mapping[int, ConfigRecord]) -> None:
        self._answers |= admitted
        joined = {node: cast(int, answer["partition-id"]) for node, answer in admitted.items()}
        self.partitions |= joined
        for node in joined:
            self._refused.pop(node, None)
        self.on_joined({partition: admitted[node] for node, partition in joined.items()})

    def _refuse(self, nodes: set[int], refusals: list[str], server_round: int) -> None:
        for refusal in refusals:
            log.warning("not admitted: %s", refusal)
        for node in nodes:
            times, _ = self._refused.get(node, (0, 0))
            self._refused[node] = (times + 1, server_round + 2 ** min(times, 20))
