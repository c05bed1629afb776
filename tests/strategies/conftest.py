"""A federation in one process: a grid that calls toy clients at once, and a clock that no test waits for."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import InMemoryGrid

from strategies import membership, sampling

Alter = Callable[[RecordDict], RecordDict | str | None]


class ToyClient:
    """Add `step` to every array. `alter` may change a reply; a string makes it an error, None no reply."""

    def __init__(
        self,
        partition: int,
        step: float = 0.0,
        examples: int = 1,
        alter: Alter | None = None,
        **handshake: object,
    ) -> None:
        self.partition, self.step, self.examples = partition, step, examples
        self.alter = alter or (lambda content: content)
        self.handshake = {"partition-id": partition, **handshake}
        self.rounds: list[int] = []

    def reply(self, message: Message) -> RecordDict | str | None:
        kind = message.metadata.message_type
        if kind == MessageType.QUERY:
            return RecordDict({"handshake": ConfigRecord(self.handshake)})
        metrics = MetricRecord({"num-examples": self.examples, "score": self.partition * 0.1})
        content = RecordDict({"metrics": metrics})
        if kind == MessageType.TRAIN:
            self.rounds.append(message.content["config"]["server-round"])
            arrays = {
                name: Array((array.numpy() + self.step).astype(array.dtype))
                for name, array in message.content["arrays"].items()
            }
            content["arrays"] = ArrayRecord(arrays)
        return self.alter(content)


class ToyGrid(Grid):
    """Call the clients of `nodes` (by node id), one after the other; `order` rearranges the replies."""

    run = None

    def __init__(self, nodes: dict[int, ToyClient], order: Callable[[list], list] = list) -> None:
        self.nodes, self.order = nodes, order
        self.sent: list[Message] = []
        self.keys: dict[int, bytes] = {}

    def get_node_ids(self) -> Iterable[int]:
        return set(self.nodes)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, public_key=self.keys.get(node, b"")) for node in self.nodes]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent.append(message)
            content = self.nodes[message.metadata.dst_node_id].reply(deepcopy(message))
            if isinstance(content, str):
                replies.append(Message(Error(code=0, reason=content), reply_to=message))
            elif content is not None:
                replies.append(Message(content, reply_to=message))
        return self.order(replies)

    def asked(self, kind: str) -> list[int]:
        return [m.metadata.dst_node_id for m in self.sent if m.metadata.message_type == kind]

    def set_run(self, run):
        raise NotImplementedError

    create_message = push_messages = pull_messages = set_run


class ToySimulation(ToyGrid, InMemoryGrid):
    """The same as a simulation makes it: every node is the user's own."""


class Notes(list):
    """A RoundObserver that writes down what it is told; `members` has what nodes say of themselves."""

    def joined(self, answers):
        self.members = dict(answers)

    def replied(self, server_round, phase, partition_id, metrics):
        self.append((server_round, phase, partition_id, metrics))

    def refused(self, server_round, phase, partition_id, reason):
        self.append((server_round, phase, partition_id, reason))


def arrays_of(**arrays: object) -> ArrayRecord:
    """Make an ArrayRecord of float32 arrays; `_` in a keyword stands for `.` in the name."""
    return ArrayRecord({k.replace("_", "."): Array(np.asarray(v, np.float32)) for k, v in arrays.items()})


def value_of(result: Result) -> float:
    """Check that all values are one number, as float32 in the order that was sent, and return it."""
    assert list(result.arrays) == ["x.b", "x.a"]
    assert {array.dtype for array in result.arrays.values()} == {"float32"}
    (value,) = np.unique(np.concatenate([array.numpy().ravel() for array in result.arrays.values()]))
    return float(value)


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        Client=ToyClient,
        Grid=ToyGrid,
        Simulation=ToySimulation,
        Notes=Notes,
        arrays=arrays_of,
        value=value_of,
    )


@pytest.fixture
def federation() -> Callable[[], ToyGrid]:
    """Make four clients, with steps of mean 3.625, under node ids that are not in the order of partitions."""
    settings = enumerate(zip((1.0, 2.0, 2.5, 9.0), (1, 1, 1, 5), strict=True))
    clients = [(partition, step, examples) for partition, (step, examples) in settings]
    return lambda: ToyGrid({n: ToyClient(*c) for n, c in zip((40, 10, 30, 20), clients, strict=True)})


@pytest.fixture
def arrays() -> ArrayRecord:
    return arrays_of(x_b=np.zeros((2, 2)), x_a=np.zeros(2))


@pytest.fixture(autouse=True)
def task_identity(monkeypatch):
    """Messages can only be made inside a Flower task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> SimpleNamespace:
    """Replace every clock: sleeping moves it on, and calls `clock.on_tick` with the time."""
    clock = SimpleNamespace(now=0.0, on_tick=lambda now: None)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.on_tick(clock.now)

    monkeypatch.setattr(membership, "sleep", sleep)
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", sleep)
    for module in (membership, sampling):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock
