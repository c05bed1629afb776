"""Whose partition is whose: a place belongs to a node's key, not to whoever names its number first again."""

import hashlib
from collections.abc import Mapping
from copy import copy
from typing import Literal

import numpy as np
from flwr.serverapp import Grid

Rule = Literal["first", "any"] | Mapping[int, int]


class Places:
    """The partitions of a run and the nodes they belong to.

    A node is known by the public key that it proves to have at every request: a SuperLink with
    ``--enable-supernode-auth`` lets in keys that were registered, and no other node can take one. Where a
    grid says no key, it is the node id, which a SuperLink keeps for a key as long as its database lasts.

    Parameters
    ----------
    rule : {"first", "any"} or Mapping[int, int]
        ``first``: a partition belongs to the node that held it first, also while that node is away. ``any``:
        for SuperNodes without keys, which have a new identity whenever they start; a place is free when its
        node has left, to whoever comes. A mapping gives partitions to node ids beforehand; what it does not
        name goes by ``first``.

    Attributes
    ----------
    nodes : dict[int, bytes]
        Identity of every node that was seen, by node id: a SHA-256.
    """

    def __init__(self, rule: Rule = "first") -> None:
        self.given = {} if isinstance(rule, str) else dict(rule)
        self.kept = rule != "any"
        self.nodes: dict[int, bytes] = {}
        self._named = {node: place for place, node in self.given.items()}
        self._set({})

    def look(self, grid: Grid) -> set[int]:
        """Return the ids of the nodes that are there, and note who they are."""
        there = {info.node_id: info.public_key or str(info.node_id).encode() for info in grid.get_nodes()}
        self.nodes |= {node: hashlib.sha256(key).digest() for node, key in there.items()}
        if not self.kept:
            present = {self.nodes[node] for node in there}
            self._set({place: owner for place, owner in self._owners.items() if owner in present})
        return set(there)

    def take(self, node: int, partition: int) -> str:
        """Give a node its place; return why not, in one line, or ``""``."""
        named = self.given.get(partition, node)
        if named != node:
            return (
                f"partition {partition} (node {node}): it is given to node {named}"
                " (in a run-config: node-partitions)"
            )
        own = self._named.get(node, self.of(node))
        if own not in (None, partition):
            return (
                f"partition {partition} (node {node}): the node has partition {own} in this run; give it that"
                " partition-id"
            )
        owner = self.nodes[node] if partition in self.given else self._owners.get(partition)
        if owner not in (None, self.nodes[node]):
            holder = next((other for other, name in self.nodes.items() if name == owner), None)
            if holder is None:
                return (
                    f"partition {partition} (node {node}): it belongs to a node that held it before in this"
                    " run; give this one another, or that place by node-partitions"
                )
            return (
                f"nodes {holder} and {node} both hold partition {partition}: give each its own partition-id"
            )
        if (held := self.of(node)) is not None:
            del self._owners[held]
        if partition in self._owners:  # of a node to which it was not given
            del self._held[self._owners[partition]]
        self._owners[partition], self._held[self.nodes[node]] = self.nodes[node], partition
        return ""

    def of(self, node: int) -> int | None:
        """Return the place that belongs to a node, if one does."""
        return self._held.get(self.nodes[node])

    def free(self) -> int:
        """Return the first number behind all places that belong to somebody."""
        return max(self._owners, default=-1) + 1

    def copy(self) -> "Places":
        """Return the same places, to try out who could take which."""
        twin = copy(self)
        twin._set(dict(self._owners))
        return twin

    def forget(self) -> None:
        """Begin anew, and keep no place for a node that leaves: ids and keys mean nothing beyond this run."""
        self.kept = False
        self._set({})

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the kept ``places``, int64, shape (n,), and their ``owners``, uint8, shape (n, 32)."""
        if not (self.kept and self._owners):
            return {}
        owners = np.frombuffer(b"".join(self._owners.values()), np.uint8)
        return {"places": np.array([*self._owners], np.int64), "owners": owners.reshape(-1, 32)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Put back what `state_dict` returned."""
        if self.kept and "owners" in state:
            pairs = zip(state["places"], state["owners"], strict=True)
            self._set({int(place): owner.tobytes() for place, owner in pairs})

    def _set(self, owners: dict[int, bytes]) -> None:
        """Say whose each place is, and so which place each has."""
        self._owners, self._held = owners, {owner: place for place, owner in owners.items()}
