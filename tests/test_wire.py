"""Every message of a run: nothing of a local adapter, a head or an example leaves a client."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

import datasets
import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.examples import process
from app.heads import new_head
from app.learner import Learner
from app.settings import read_settings
from client_app.client import data_options
from data_partitions.benchmarks import load_partition
from tests.private_files import newest_state


@dataclass
class Secrets:
    """What must not leave the clients: arrays by name, bytes, and words."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    raw: list[bytes] = field(default_factory=list)
    words: set[str] = field(default_factory=set)


def leaks(message: Message, shared: set[str], secrets: Secrets) -> Iterator[str]:
    """Say what a message holds that it must not hold.

    An array is found in another shape, order or place as well: of two trained adapters' values hardly any are
    equal to the bit but for zeros, so a tenth of equal values is a copy.
    """
    content = message.content
    for record in content.array_records.values():
        if set(record) != shared:
            yield f"arrays {sorted(set(record) ^ shared)}"
        for name, array in record.items():
            values = array.numpy()
            for secret, private in secrets.arrays.items():
                same_size = values.size == private.size
                if same_size and np.allclose(values.ravel(), private.ravel(), rtol=1e-3, atol=1e-6):
                    yield f"array {name} is {secret}"
                elif np.isin(private[private != 0], values).mean() > 0.1:
                    yield f"array {name} holds values of {secret}"
    for record in content.metric_records.values():
        yield from (f"metric {k} is {v}" for k, v in record.items() if not isinstance(v, int | float))
        yield from (f"metric {key!r}" for key in record if _words_in(key, secrets))
    texts = [
        item
        for record in content.config_records.values()
        for key, value in record.items()
        for item in (key, *(value if isinstance(value, list) else [value]))
    ]
    for text in texts:
        if isinstance(text, bytes):
            yield "bytes"
        elif isinstance(text, str) and (found := _words_in(text, secrets)):
            yield f"text {found!r}"
    everything = _all_bytes(message)
    yield from ("raw bytes" for raw in secrets.raw if raw in everything)


def _words_in(text: str, secrets: Secrets) -> str | None:
    """Find a secret in a text; an answer such as '2' only if it is all of it, for a version has it too."""

    def within(word: str) -> bool:
        return not word.isdigit() and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None

    return next((word for word in secrets.words if word == text or within(word)), None)


def _all_bytes(message: Message) -> bytes:
    content = message.content
    arrays = [array.data for record in content.array_records.values() for array in record.values()]
    values = [v for record in content.config_records.values() for v in record.values()]
    return b"\0".join([*arrays, *(v if isinstance(v, bytes) else str(v).encode() for v in values)])


def _varied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out what has one value only, such as a bias before training: it tells nothing."""
    return {name: array for name, array in arrays.items() if np.ptp(array) > 0}


def encoded(dataset: datasets.Dataset) -> list[bytes]:
    """Return the images as the bytes they are kept in."""
    stored = dataset.cast_column("images", datasets.List(datasets.Image(decode=False)))["images"]
    return [image["bytes"] for images in stored for image in images]


@pytest.fixture(scope="module")
def partitions(finished, drawn):
    options = replace(data_options(read_settings(finished.federation.run_config)), cache_dir=drawn)
    return [load_partition("scenes", index, 3, options) for index in range(3)]


@pytest.fixture(scope="module")
def adapter(small_backbone):
    return adapt(
        load_backbone(str(small_backbone)), adapter_config("bottleneck", reduction_factor=4, width=32)
    )


@pytest.fixture(scope="module")
def secrets(finished, partitions, adapter, small_backbone) -> Secrets:
    """Collect what the clients of the run kept at any time, and all of their examples."""
    found = Secrets()
    first = {"local": adapter.state("local"), "head": new_head(32, 9, 0).state_dict()}
    found.arrays |= {f"first {p}.{k}": v.numpy() for p, state in first.items() for k, v in state.items()}
    for node, states in finished.private.items():
        for time, state in enumerate(states):
            for part, record in state.items():
                for name, array in record.items():
                    found.arrays[f"{part}.{name} of node {node}, message {time}"] = array.numpy()
    for partition in partitions:
        found.words |= set(partition.answers)
        for split in (partition.train, partition.validation, partition.test):
            examples = process(split, load_backbone(str(small_backbone)).processor)
            found.arrays[f"pixels of {partition.name}"] = examples.pixels.numpy()
            found.words |= set(split["question"])
            found.raw += encoded(split)
    found.arrays = _varied(found.arrays)
    return found


@pytest.fixture(scope="module")
def shared(adapter) -> set[str]:
    return set(adapter.state("shared"))


def test_the_secrets_are_what_we_think(finished, secrets, partitions):
    """Otherwise nothing is found because nothing is looked for."""
    # After handshake, two trainings, two evaluations: four times a private state of 8 and 6 arrays a client.
    assert [len(states) for states in finished.private.values()] == [5, 5, 5]
    assert all(states[0] == {} for states in finished.private.values())
    kept = [state for states in finished.private.values() for state in states[1:]]
    assert all(state.keys() == {"private-local", "private-head"} for state in kept)
    assert sum("private" in name for name in secrets.arrays) == 3 * 4 * (8 + 6)
    assert len(secrets.raw) == 3 * (12 + 4 + 8)
    assert all(raw.startswith(b"\x89PNG") for raw in secrets.raw)
    assert {partition.train[0]["question"] for partition in partitions} <= secrets.words
    assert all(partition.answers[0] in secrets.words for partition in partitions)


def test_every_message_of_a_run_is_clean(finished, secrets, shared):
    wire = finished.federation.wire
    assert [message.metadata.message_type for _, message in wire] == (
        ["query"] * 6 + (["train"] * 6 + ["evaluate"] * 6) * 2
    )
    for way, message in wire:
        assert list(leaks(message, shared, secrets)) == [], (way, message.metadata)


def test_arrays_travel_only_where_they_must(finished, shared):
    for way, message in finished.federation.wire:
        wanted = {"query": 0, "train": 1, "evaluate": int(way == "to client")}[message.metadata.message_type]
        records = message.content.array_records
        assert len(records) == wanted
        assert all(set(record) == shared for record in records.values())


def test_only_the_handshake_says_anything_in_words(finished):
    """What a client says of itself is its own; all other replies are numbers."""
    for way, message in finished.federation.wire:
        if way == "to server" and message.metadata.message_type != "query":
            assert not message.content.config_records


@pytest.fixture
def reply(finished) -> Message:
    """Return a copy of the last training reply."""
    replies = [m for way, m in finished.federation.wire if way == "to server" and "arrays" in m.content]
    return deepcopy(replies[-1])


def put(reply, name, values):
    reply.content["arrays"][name] = Array(np.ascontiguousarray(values))


def private(finished, reply, part="private-local"):
    return finished.private[reply.metadata.src_node_id][-1][part]


def another_name(reply, finished, partitions):
    put(reply, "x", next(iter(private(finished, reply).values())).numpy())


def in_place_of_a_shared_one(reply, finished, partitions):
    name, array = next(iter(private(finished, reply).items()))
    put(reply, name, array.numpy())


def nearly(reply, finished, partitions):
    name, array = next(iter(private(finished, reply).items()))
    put(reply, name, array.numpy() * 1.0001)


def reversed_in_another_shape(reply, finished, partitions):
    weights = next(a.numpy() for a in private(finished, reply).values() if a.numpy().ndim == 2)
    name = next(n for n, a in reply.content["arrays"].items() if a.numpy().ndim == 2)
    put(reply, name, weights.T[::-1])


def one_row_of_a_head_inside(reply, finished, partitions):
    head = private(finished, reply, "private-head")["clf_norm0.weight"].numpy()
    name, array = next((n, a) for n, a in reply.content["arrays"].items() if a.numpy().size >= head.size)
    values = array.numpy().copy()
    values.ravel()[: head.size] = head
    put(reply, name, values)


def a_head_under_a_new_record(reply, finished, partitions):
    reply.content["more"] = private(finished, reply, "private-head")


def pixels(reply, finished, partitions):
    name, array = next((n, a) for n, a in reply.content["arrays"].items() if a.numpy().size >= 256)
    put(reply, name, np.resize(np.arange(256, dtype=np.float32), array.numpy().shape))


def an_image(reply, finished, partitions):
    reply.content["config"] = ConfigRecord({"x": encoded(partitions[0].train)[0]})


def a_question(reply, finished, partitions):
    reply.content["config"] = ConfigRecord({"x": f"I saw: {partitions[1].test[0]['question']}"})


def an_answer_for_a_key(reply, finished, partitions):
    reply.content["metrics"][partitions[2].answers[0]] = 1


def answers(reply, finished, partitions):
    reply.content["config"] = ConfigRecord({"x": ["something", partitions[0].answers[-1]]})


def a_list(reply, finished, partitions):
    reply.content["metrics"]["losses"] = [0.1, 0.2]


LEAKS = [
    another_name,
    in_place_of_a_shared_one,
    nearly,
    reversed_in_another_shape,
    one_row_of_a_head_inside,
    a_head_under_a_new_record,
    pixels,
    an_image,
    a_question,
    an_answer_for_a_key,
    answers,
    a_list,
]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_would_be_found(reply, finished, partitions, secrets, shared, leak):
    assert list(leaks(reply, shared, secrets)) == []
    leak(reply, finished, partitions)
    assert list(leaks(reply, shared, secrets))


def test_a_client_that_sends_its_local_adapter_would_be_found(federation, monkeypatch, shared, home):
    """The server cannot tell by names or shapes; the checker can."""
    state = Learner.state

    def mistaken(self, role):
        return state(self, "local" if role == "shared" else role)

    clients = federation()
    kept = Secrets()

    def watch(node, reply):
        partition = clients.contexts[node].node_config["partition-id"]
        local = newest_state(home / "clients", "test", partition).get("private-local", {})
        kept.arrays |= {f"{len(kept.arrays)} {name}": array.numpy() for name, array in local.items()}
        return reply

    clients.alter = watch
    monkeypatch.setattr(Learner, "state", mistaken)
    clients.serve()
    kept.arrays = _varied(kept.arrays)
    sent = [m for way, m in clients.wire if way == "to server" and "arrays" in m.content]
    assert sent
    assert all(list(leaks(message, shared, kept)) for message in sent)
