"""The ClientApp: answers the handshake, trains, evaluates. Only the shared adapter leaves a client."""

import functools
import platform
from dataclasses import dataclass
from typing import Any

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from app import __version__
from app.backbones import choose_device, load_backbone
from app.dual_adapter import Branch, DualAdapter, open_adapter
from app.heads import AnswerHead, new_head
from app.records import from_record, to_record
from app.settings import Settings, read_settings
from app.source import source_hash
from data_partitions.benchmarks import (
    DataOptions,
    Partition,
    load_partition,
    partition_names,
    text_only_baseline,
)

from .examples import Examples, process
from .local_training import evaluate, train_round
from .private_state import PrivateState, load_private_state, save_private_state

app = ClientApp()

# A site's own settings: its node-config may set them, whatever the run says.
SITE_KEYS = ("data-dir", "device")


@dataclass(frozen=True)
class Client:
    """Everything that one message to one client works with."""

    settings: Settings
    partition_id: int
    num_partitions: int
    context: Context

    @classmethod
    def of(cls, context: Context) -> "Client":
        """Read the run's and the node's configuration."""
        node = context.node_config
        for key in ("partition-id", "num-partitions"):
            if not isinstance(node.get(key), int):
                raise ValueError(
                    f"node-config: {key} = {node.get(key)!r}; allowed: a whole number, such as {key}=2"
                )
        own = {key: node[key] for key in SITE_KEYS if key in node}
        settings = read_settings({**context.run_config, **own})
        return cls(settings, int(node["partition-id"]), int(node["num-partitions"]), context)

    def partition(self) -> Partition:
        """Return this client's data; the process keeps it."""
        return _partition(*self._data_key)

    def examples(self, split: str) -> Examples:
        """Return one split, processed; the process keeps it."""
        return _examples(*self._data_key, split, self.settings.backbone, self.settings.backbone_weights)

    def open(self, arrays: ArrayRecord) -> tuple[DualAdapter, AnswerHead]:
        """Put the arrived shared adapter, its frozen copy and the private state in place."""
        adapter = open_adapter(self.settings)
        head = new_head(adapter.backbone.width, len(self.partition().answers), self.settings.seed)
        private = load_private_state(self.context)
        adapter.receive(from_record(arrays))
        adapter.load("local", private.local if private else adapter.initial_local)
        if private:
            head.load_state_dict(private.head)
        return adapter, head.to(adapter.device)

    @property
    def _data_key(self) -> tuple[str, int, int, DataOptions]:
        options = DataOptions(**self.settings.data_options())
        return self.settings.benchmark, self.partition_id, self.num_partitions, options


@functools.lru_cache(maxsize=256)
def _partition(benchmark: str, partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    return load_partition(benchmark, partition_id, num_partitions, options)


@functools.lru_cache(maxsize=512)
def _examples(
    benchmark: str,
    partition_id: int,
    num_partitions: int,
    options: DataOptions,
    split: str,
    backbone: str,
    weights: str,
) -> Examples:
    partition = _partition(benchmark, partition_id, num_partitions, options)
    return process(getattr(partition, split), load_backbone(backbone, weights).processor)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this client is and what it runs, once, before the first round."""
    client = Client.of(context)
    partition = client.partition()
    answer = ConfigRecord(
        {
            "partition-id": client.partition_id,
            "num-partitions": client.num_partitions,
            "name": partition.name,
            "natural-partitions": len(partition_names(client.settings.benchmark, client._data_key[-1])),
            "backbone": load_backbone(client.settings.backbone, client.settings.backbone_weights).fingerprint,
            "source": source_hash(),
            "version": __version__,
            "flwr": flwr.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(choose_device(client.settings.device)),
            "skipped": sum(partition.skipped.values()),
            "unanswerable": _unanswerable(partition),
        }
    )
    return Message(RecordDict({"handshake": answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with the shared adapter and scalars."""
    client, round_config = _called(message, context)
    adapter, head = client.open(message.content.array_records["arrays"])
    server_round = int(round_config["server-round"])
    metrics = train_round(
        adapter,
        head,
        client.examples("train"),
        client.settings,
        server_round,
        client.partition_id,
        proximal_mu=float(round_config.get("proximal-mu", 0.0)),
    )
    reply = RecordDict({"arrays": to_record(adapter.state("shared")), "metrics": MetricRecord(metrics)})
    save_private_state(context, PrivateState(adapter.state("local"), head.state_dict()))
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate_branches(message: Message, context: Context) -> Message:
    """Score the branches on the client's test split; reply with scalars."""
    client, _ = _called(message, context)
    if not len(client.partition().test):
        raise ValueError(f"partition {client.partition_id} has no test rows to evaluate on")
    adapter, head = client.open(message.content.array_records["arrays"])
    metrics = evaluate(adapter, head, client.examples("test"), BRANCHES_OF[client.settings.method])
    partition = client.partition()
    metrics["text-only"] = text_only_baseline(partition)
    metrics["unanswerable"] = _unanswerable(partition)
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _unanswerable(partition: Partition) -> float:
    """Return the share of test questions whose answer is not in the client's list."""
    return partition.unanswerable["test"] / max(1, len(partition.test))


# A single adapter has no teacher and no local branch.
BRANCHES_OF: dict[str, tuple[Branch, ...]] = {
    "feddat": ("student", "local", "teacher"),
    "adapter": ("student",),
}


def _called(message: Message, context: Context) -> tuple[Client, dict[str, Any]]:
    """Read a round's message; refuse one from a server with another source or backbone."""
    client = Client.of(context)
    config: dict[str, Any] = dict(message.content.config_records["config"])
    backbone = load_backbone(client.settings.backbone, client.settings.backbone_weights)
    for key, own in (("source", source_hash()), ("backbone", backbone.fingerprint)):
        if config.get(key) != own:
            theirs = str(config.get(key))[:12]
            raise ValueError(
                f"{key} is {own[:12]} on partition {client.partition_id} but {theirs} on the server: "
                f"give both the same {key}"
            )
    return client, config
