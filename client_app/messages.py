"""How a client answers a message: it says who it is, trains, evaluates. Only what is shared leaves it."""

# Before anything that would import the same.
from app import heavy_imports  # noqa: F401

# isort: split
import logging
import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from app import __version__
from app.backbones import choose_device
from app.conversations import Conversations
from app.private_state import PrivateState, not_finite
from app.records import SCHEMA, to_reply
from app.source import source_hash

from .client import Client, weights_among
from .local_training import OwnTraining, evaluate, train_round
from .policy import PublicError, in_simulation
from .site_word import SITE_WORD, give_word
from .written_answers import evaluate_written, unwritable

log = logging.getLogger("flwr")

Answer = TypeVar("Answer")


def introduce(message: Message, context: Context) -> Message:
    """Say who this client is, what it runs and what its data are like, once, before the first round."""
    from data_partitions.baseline import text_only_baseline  # see `Share.load`

    client = Client.of(context)
    client.policy.admit_weights(client.weights_sent)

    def described() -> tuple[str, dict[str, Any]]:
        partition, policy = client.partition, client.policy
        measured: dict[str, Any] = {
            "natural-partitions": len(client.share.names),
            "skipped": sum(partition.skipped.values()),
        }
        if min(len(partition.train), len(partition.test)) >= policy.min_examples:
            measured["unanswerable"] = policy.counted(partition.unanswerable["test"]) / len(partition.test)
            measured["text-only"] = text_only_baseline(partition)
        if line := unwritable(client):  # how long answers are is the site's own to know
            log.warning("%s", line)
        return client.name, measured

    name, measured = _hiding_failures(client, described, lambda: (client.neutral_name, {}))
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
            "name": name,
            **client.policy.told(measured, client.settings.dp.mode),
        }
    )
    content = RecordDict({"handshake": answer})
    if not in_simulation():
        # A record of its own: what is in the other may be logged.
        content["secret"] = ConfigRecord({SITE_WORD: give_word(context)})
    return Message(content, reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with what is shared and scalars."""
    client, config = _called(message, context)
    shelf, server_round, expected = client.shelf(config), config["server-round"], _expected(config)
    arrays = message.content.array_records["arrays"]
    client.spend(shelf, server_round)

    def trained() -> tuple[ArrayRecord, MetricRecord]:
        examples = client.examples("train")
        opened = client.open(arrays, shelf, server_round - 1, examples, expected)
        learner = opened.learner
        metrics = train_round(
            learner,
            examples,
            client.settings,
            server_round,
            client.partition_id,
            least=client.policy.min_examples,
        )
        sent, private = client.method.travelling(learner), learner.private()
        client.policy.admit_weights(weights_among(learner, sent))
        if name := not_finite({f"shared.{name}": value for name, value in sent.items()} | private):
            raise PublicError(
                f"training diverged: {name.replace('.', ' ', 1)} is not finite; nothing of this round is"
                " kept, and the next begins from the state before it; a lower learning-rate may help"
            )
        record, owed = to_reply(sent, opened.received, opened.owed, client.settings.wire_precision)
        client.keep(shelf, server_round, PrivateState.of(private, owed))
        return record, _record(client, metrics, opened.lost)

    record, told = _hiding_failures(client, trained, lambda: (arrays, MetricRecord({"num-examples": 1})))
    return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=message)


def evaluate_branches(message: Message, context: Context) -> Message:
    """Score the branches on the client's test split, in round 0 before any training; reply with scalars."""
    client, config = _called(message, context, first=0)
    shelf, server_round, expected = client.shelf(config), config["server-round"], _expected(config)
    arrays = message.content.array_records["arrays"]

    def scored() -> MetricRecord:
        examples = client.examples("test")
        opened = client.open(arrays, shelf, server_round, examples, expected)
        own = OwnTraining(
            opened.learner,
            lambda: client.examples("train"),
            client.settings,
            server_round,
            client.partition_id,
            client.policy.min_examples,
        )
        if isinstance(examples, Conversations):
            processor = client.backbone.processor
            metrics = evaluate_written(
                opened.learner,
                examples,
                processor,
                client.settings,
                own,
                lambda: client.partition.answers,
            )
        else:
            metrics = evaluate(opened.learner, examples, client.settings, own)
        return _record(client, metrics, opened.lost)

    told = _hiding_failures(client, scored, lambda: MetricRecord({"num-examples": 1}))
    return Message(RecordDict({"metrics": told}), reply_to=message)


def _hiding_failures(client: Client, work: Callable[[], Answer], instead: Callable[[], Answer]) -> Answer:
    """Return what work on the data gives, or `instead` where it must not tell of them that it failed.

    Under local privacy whether it fails is a bit of the data that no noise hides, and by its arrays and
    settings the server chooses which. An open site says what is wrong in any case.
    """
    try:
        return work()
    except Exception:
        if client.settings.dp.mode != "local" or client.policy.policy == "open":
            raise
        log.exception("this failed; under local privacy the server is not told so, and gets noise alone")
        return instead()


def _record(client: Client, metrics: dict[str, Any], lost: int) -> MetricRecord:
    """Keep what may leave, and add how many private states were lost, if any were."""
    mode = client.settings.dp.mode
    if client.settings.secure.aggregation:  # it tells of the one change that is masked
        metrics = {name: value for name, value in metrics.items() if name != "delta-shared"}
    # A round that failed left no state, so that it would tell of the data too.
    recovered = {"state-recovered": lost} if lost and mode != "local" else {}
    return MetricRecord({**client.policy.told(metrics, mode), **recovered})


def _expected(config: Mapping[str, Any]) -> int:
    """Return the round whose private state must be there, as far as the server knows; 0 for none."""
    expected = config.get("state-round", 0)
    if type(expected) is not int or not 0 <= expected <= config["server-round"]:
        raise ValueError(
            f"state-round = {expected!r} in the server's message; allowed: a round up to its own"
        )
    return expected


def _called(message: Message, context: Context, first: int = 1) -> tuple[Client, dict[str, Any]]:
    """Read a round's message; refuse one from a server with another source or backbone, or of no round.

    Rounds begin with `first`.
    """
    client = Client.of(context)
    config: dict[str, Any] = dict(message.content.config_records["config"])
    for key, own in (("source", source_hash()), ("backbone", client.backbone.fingerprint)):
        if config.get(key) != own:
            theirs = str(config.get(key))[:12]
            raise PublicError(
                f"{key} is {own[:12]} on partition {client.partition_id} but {theirs} on the server: "
                f"give both the same {key}"
            )
    client.policy.admit_weights(client.weights_sent)
    # Past the last round the learning rate is no longer what the settings say.
    server_round, last = config.get("server-round"), client.settings.num_rounds
    if type(server_round) is not int or not first <= server_round <= last:
        raise PublicError(
            f"server-round = {server_round!r} in the server's message; allowed: {first} to {last}"
        )
    return client, config
