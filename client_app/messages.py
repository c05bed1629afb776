"""How a client answers a message: it says who it is, trains, evaluates. Only what is shared leaves it."""

# Before anything that would import the same.
from app import heavy_imports  # noqa: F401

# isort: split
import platform
from collections.abc import Mapping
from typing import Any

import flwr
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from app import __version__
from app.backbones import choose_device
from app.conversations import Conversations
from app.private_state import PrivateState, not_finite
from app.records import SCHEMA, to_reply
from app.source import source_hash

from .client import Client
from .local_training import evaluate, train_round
from .policy import PublicError
from .written_answers import evaluate_written


def introduce(message: Message, context: Context) -> Message:
    """Say who this client is, what it runs and what its data are like, once, before the first round."""
    from data_partitions.baseline import text_only_baseline  # see `Share.load`

    client = Client.of(context)
    partition = client.partition
    measured = {
        "natural-partitions": len(client.share.names),
        "skipped": sum(partition.skipped.values()),
        "unanswerable": partition.unanswerable["test"] / max(1, len(partition.test)),
        "text-only": text_only_baseline(partition),
    }
    answer = ConfigRecord(
        {
            "partition-id": client.partition_id,
            "num-partitions": client.num_partitions,
            "version": __version__,
            "schema": SCHEMA,
            "source": source_hash(),
            "backbone": client.backbone.fingerprint,
            "flwr": flwr.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(choose_device(client.settings.device)),
            "name": client.name,
            **client.policy.told(measured, client.settings.dp.mode),
        }
    )
    return Message(RecordDict({"handshake": answer}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with what is shared and scalars."""
    client, config = _called(message, context)
    shelf, server_round = client.shelf(config), config["server-round"]
    arrays = message.content.array_records["arrays"]
    examples = client.examples("train")
    learner, owed, lost = client.open(
        arrays, shelf, server_round - 1, examples.num_answers, _expected(config)
    )
    metrics = train_round(
        learner,
        examples,
        client.settings,
        server_round,
        client.partition_id,
        least=client.policy.min_examples,
    )
    sent, private = client.method.travelling(learner), learner.private()
    if name := not_finite({f"shared.{name}": value for name, value in sent.items()} | private):
        raise PublicError(
            f"training diverged: {name.replace('.', ' ', 1)} is not finite; nothing of this round is kept, "
            "and the next begins from the state before it; a lower learning-rate may help"
        )
    record, owed = to_reply(sent, arrays, owed, client.settings.wire_precision)
    client.keep(shelf, server_round, PrivateState.of(private, owed))
    told = _record(client, metrics, lost)
    return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=message)


def evaluate_branches(message: Message, context: Context) -> Message:
    """Score the branches on the client's test split; reply with scalars."""
    client, config = _called(message, context)
    examples = client.examples("test")
    arrays = message.content.array_records["arrays"]
    shelf = client.shelf(config)
    learner, _, lost = client.open(
        arrays, shelf, config["server-round"], examples.num_answers, _expected(config)
    )
    if isinstance(examples, Conversations):
        metrics = evaluate_written(learner, examples, client.backbone.processor, client.settings)
    else:
        metrics = evaluate(learner, examples, client.settings)
    return Message(RecordDict({"metrics": _record(client, metrics, lost)}), reply_to=message)


def _record(client: Client, metrics: dict[str, Any], lost: int) -> MetricRecord:
    """Keep what may leave, and add how many private states were lost, if any were."""
    told = client.policy.told(metrics, client.settings.dp.mode)
    return MetricRecord({**told, **({"state-recovered": lost} if lost else {})})


def _expected(config: Mapping[str, Any]) -> int:
    """Return the round whose private state must be there, as far as the server knows; 0 for none."""
    expected = config.get("state-round", 0)
    if type(expected) is not int or not 0 <= expected <= config["server-round"]:
        raise ValueError(
            f"state-round = {expected!r} in the server's message; allowed: a round up to its own"
        )
    return expected


def _called(message: Message, context: Context) -> tuple[Client, dict[str, Any]]:
    """Read a round's message; refuse one from a server with another source or backbone, or of no round."""
    client = Client.of(context)
    config: dict[str, Any] = dict(message.content.config_records["config"])
    for key, own in (("source", source_hash()), ("backbone", client.backbone.fingerprint)):
        if config.get(key) != own:
            theirs = str(config.get(key))[:12]
            raise PublicError(
                f"{key} is {own[:12]} on partition {client.partition_id} but {theirs} on the server: "
                f"give both the same {key}"
            )
    # Past the last round the learning rate is no longer what the settings say.
    server_round, last = config.get("server-round"), client.settings.num_rounds
    if type(server_round) is not int or not 1 <= server_round <= last:
        raise PublicError(f"server-round = {server_round!r} in the server's message; allowed: 1 to {last}")
    return client, config
