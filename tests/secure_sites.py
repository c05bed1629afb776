"""Sites under secure aggregation without a model: each adds a change of its own to what it is sent."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from app.secure_sum import Codes, MaskedSum
from benchmarks.in_process import Deployment
from client_app.secure_aggregation import exchange, masked
from strategies import Checked, SecureAggregation

STEP = "query.secure_aggregation"
SETTINGS = {"secure.aggregation": True, "secure.threshold": 0.66, "secure.bits": 20, "secure.range": 1.0}


def kind_of(message: Message) -> str:
    """Return the step that a message asks for, or its type."""
    return str(message.content["config"].get("step", message.metadata.message_type))


class Sites(Deployment):
    """Sites with real clients of the exchange.

    Parameters
    ----------
    folder : Path
        Where each has its state-dir.
    changes : sequence of numpy.ndarray
        What each adds to array ``x``, by partition.
    alter : Callable[[str, int, Message], Message or None]
        May change or lose an answer; gets the step it is to, and the partition.
    before : Callable[[str, int, Message], Message]
        May change a message on its way to a partition.
    """

    def __init__(
        self,
        folder: Path,
        changes,
        alter: Callable[[str, int, Message], Message | None] = lambda step, partition, reply: reply,
        before: Callable[[str, int, Message], Message] = lambda step, partition, message: message,
        **node_config,
    ) -> None:
        self.changes, self._alter, self._before = changes, alter, before
        super().__init__(dict(SETTINGS), len(changes), node_config=node_config, client_app=self._answer)
        for context in self.contexts.values():
            partition = context.node_config["partition-id"]
            context.node_config["state-dir"] = str(folder / str(partition))
        self.alter = self._altered
        self.steps: list[str] = []

    def _answer(self, message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        self.steps.append(kind_of(message))
        message = self._before(kind_of(message), partition, message)
        match message.metadata.message_type:
            case "query":
                about = ConfigRecord({"partition-id": partition, "num-partitions": self.num_clients})
                return Message(RecordDict({"handshake": about}), reply_to=message)
            case "train":
                return masked(message, context, self._train)
            case "query.secure_aggregation":
                return exchange(message, context)
            case _:
                return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        sent = message.content["arrays"]
        moved = {n: Array((a.numpy() + self.changes[partition]).astype(a.dtype)) for n, a in sent.items()}
        metrics = MetricRecord({"num-examples": 10 * (partition + 1), "ce-student": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    def _altered(self, node: int, reply: Message) -> Message | None:
        partition = self.contexts[node].node_config["partition-id"]
        return self._alter(self.steps[-1], partition, reply)

    def sent(self, step: str) -> list[Message]:
        """Return what sites sent back in a step."""
        ways = iter(self.wire)
        pairs = ((message, next(ways, ("", message))) for way, message in ways if way == "to client")
        return [reply for message, (_, reply) in pairs if kind_of(message) == step]


def plain() -> FedAvg:
    """Return FedAvg that samples all there are."""
    return FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


def federate(
    sites: Sites,
    start=0.0,
    rounds: int = 1,
    strategy: Strategy | None = None,
    config: dict | None = None,
    **options,
) -> Result:
    """Run rounds from an array ``x`` that is `start` everywhere."""
    codes = Codes(SETTINGS["secure.bits"], SETTINGS["secure.range"])
    secure = SecureAggregation(MaskedSum(codes), SETTINGS["secure.threshold"])
    options = {"secure": secure, "evaluate_on": lambda _: False, **options}
    first = ArrayRecord({"x": Array(np.full(sites.changes[0].shape, start, np.float32))})
    told = ConfigRecord({"run-token": "abc", **(config or {})})
    return Checked(strategy or plain(), **options).start(sites, first, rounds, train_config=told)


BOUND = 2 / (2**20 - 1)  # of a mean: one step of the codes


def mean_of(changes, *left):
    return np.mean([change for party, change in enumerate(changes) if party not in left], axis=0)


def losing(step, *parties):
    """Lose the answers of some parties to a step."""
    return lambda now, party, reply: None if now == step and party in parties else reply


def refusals(notes):
    return {(party, reason) for _, _, party, reason in notes if isinstance(reason, str)}
