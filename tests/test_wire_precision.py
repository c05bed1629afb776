"""Whole runs whose shared adapter travels in fewer bits."""

import json
from collections import Counter

import numpy as np
import pytest
from flwr.app import RecordDict
from safetensors.numpy import load_file

from app import records
from app.records import WireCodec, from_record
from app.wire_precision import ENCODINGS, encoded_size
from tests.private_files import newest_state


@pytest.fixture(params=ENCODINGS)
def precision(request) -> str:
    return request.param


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def flat(arrays):
    values = [getattr(array, "numpy", lambda array=array: array)() for _, array in sorted(arrays.items())]
    return np.concatenate([np.asarray(value, float).ravel() for value in values])


def trained(federation, way):
    return [m.content["arrays"] for w, m in federation.wire if w == way and "arrays" in m.content]


def checkpoint(folder, server_round):
    kept = load_file(folder / "checkpoints" / f"round-{server_round:06d}.safetensors")
    return {k.removeprefix("arrays/"): v for k, v in kept.items() if k.startswith("arrays/")}


def test_every_message_is_encoded_and_counted_as_it_is_sent(federation, precision):
    clients = federation(wire_precision=precision)
    rows = rows_of(clients.serve())
    sent = [m for _, m in clients.wire if m.content.array_records]
    assert len(sent) == 2 * 2 * 3  # rounds, clients; down to train, up, down to evaluate
    for message in sent:
        for array in message.content["arrays"].values():
            assert array.stype == f"feddat.{precision}"
            assert len(array.data) == encoded_size(array.shape, precision)
    one = sent[0].content["arrays"].count_bytes()
    assert all((row["bytes-down"], row["bytes-up"]) == (2 * one, one) for row in rows)
    assert one == sum(len(n) + encoded_size(a.shape, precision) for n, a in sent[0].content["arrays"].items())


def test_a_client_decodes_what_it_receives_once(federation, precision, monkeypatch):
    decoded, decode = Counter(), records.decode
    monkeypatch.setattr(
        records, "decode", lambda data, *more: decoded.update([bytes(data)]) or decode(data, *more)
    )
    clients = federation(1, wire_precision=precision, num_rounds=1)
    clients.serve()
    first = trained(clients, "to client")[0]
    down = Counter(bytes(array.data) for array in first.values())
    assert {data: decoded[data] for data in down} == down


def test_the_next_round_begins_at_the_last_one_and_the_mean_of_what_was_sent(federation, precision):
    clients = federation(wire_precision=precision, num_rounds=1)
    folder = clients.serve()
    first = checkpoint(folder, 0)
    sent = [from_record(record) for record in trained(clients, "to server")]
    for name, value in checkpoint(folder, 1).items():
        mean = np.mean([reply[name].numpy() for reply in sent], axis=0)
        np.testing.assert_allclose(value, first[name] + mean, rtol=0, atol=1e-6)


def test_training_begins_at_the_rounded_adapter_and_owes_what_rounding_takes(
    federation, precision, monkeypatch, home
):
    from client_app import messages

    begun, ended, train_round = [], [], messages.train_round

    def spy(adapter, *rest, **keywords):
        begun.append(adapter.state("shared"))
        assert all(bool((adapter.state("frozen")[k] == v).all()) for k, v in begun[-1].items())
        metrics = train_round(adapter, *rest, **keywords)
        ended.append(adapter.state("shared"))
        return metrics

    monkeypatch.setattr(messages, "train_round", spy)
    clients = federation(1, wire_precision=precision)
    clients.serve()
    down = [m for w, m in clients.wire if w == "to client" and m.metadata.message_type == "train"]
    up = trained(clients, "to server")
    owed = 0.0
    for message, reply, start, end in zip(down, up, begun, ended, strict=True):
        received = from_record(message.content["arrays"])
        np.testing.assert_array_equal(flat(received), flat(start))
        wanted = flat(end) - flat(start) + owed
        np.testing.assert_allclose(wanted, flat(from_record(reply)), rtol=0, atol=0.2 * np.abs(wanted).max())
        owed = wanted - flat(from_record(reply))
        assert np.abs(owed).max() > 0
    kept = newest_state(home / "clients", "test", 0)["private-owed"]
    np.testing.assert_allclose(flat(from_record(kept)), owed, rtol=0, atol=1e-6)


def test_what_is_owed_lasts(federation):
    """A client that forgets all it has in memory before every message sends the same."""

    def run(forget):
        def watch(node, reply):
            if forget:
                clients.contexts[node].state = RecordDict()
            return reply

        name = f"forget-{forget}"
        clients = federation(alter=watch, wire_precision="int4", num_rounds=3, run_name=name)
        clients.serve()
        return [{k: a.data for k, a in r.items()} for r in trained(clients, "to server")]

    assert run(True) == run(False)


def test_rounding_disturbs_a_run_by_its_size(federation):
    """The fewer bits, the farther the adapter is from float32's; never as far as training moves it."""
    ends = {}
    for precision in ("float32", *ENCODINGS):
        folder = federation(wire_precision=precision, run_name=precision).serve()
        ends[precision], before = flat(checkpoint(folder, 2)), flat(checkpoint(folder, 1))
    moved = np.linalg.norm(ends["float32"] - before)
    off = {p: np.linalg.norm(ends[p] - ends["float32"]) / moved for p in ENCODINGS}
    assert off["bfloat16"] < off["int8"] < off["int4"] < 1
    assert off["int8"] < 0.2


def test_clipping_at_the_server_bounds_the_decoded_change(federation):
    norm = 0.004  # a client's training moves it ten times as far
    clients = federation(
        3, dp__mode="server-fixed", dp__clipping_norm=norm, dp__noise_multiplier=1e-9, num_rounds=1,
        wire_precision="int8", **{"num-clients": 3},
    )  # fmt: skip
    folder = clients.serve()
    moved = np.linalg.norm(flat(checkpoint(folder, 1)) - flat(checkpoint(folder, 0)))
    assert 0.3 * norm < moved < 1.001 * norm


def test_a_client_with_another_precision_is_refused(federation):
    clients = federation(3, wire_precision="int8", num_rounds=1)
    clients.contexts[clients.node_id(1)].run_config = {**clients.run_config, "wire-precision": "int4"}
    refused = [row["refused"] for row in rows_of(clients.serve()) if "refused" in row]
    assert len(refused) == 1
    assert refused[0].endswith("is written as 'feddat.int4', sent as 'feddat.int8'")


def test_a_broadcast_that_was_altered_is_refused_by_the_client(federation, monkeypatch):
    encode = WireCodec.encode

    def altered(self, arrays):
        record = encode(self, arrays)
        array = next(iter(record.values()))
        array.data = bytes([array.data[0] ^ 1]) + array.data[1:]
        return record

    monkeypatch.setattr(WireCodec, "encode", altered)
    with pytest.raises(RuntimeError, match="has a checksum that is not that of its bytes"):
        federation(wire_precision="int8").serve()
