"""Whole runs under secure aggregation: the sum is that of a plain run, and nothing else is known of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.secure_sum import MASKED
from tests.test_private_run import adapter_of, sent

SECURE = {"secure.aggregation": True}
STEP = 2 / (2**20 - 1)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("settings", [{}, {"adapter": "lora"}, {"method": "adapter"}], ids=str)
def test_the_result_is_a_plain_runs_to_the_rounding(federation, settings):
    plain, secure = (
        adapter_of(federation(4, num_rounds=1, run_name=name, **settings, **more).serve())
        for name, more in (("plain", {}), ("secure", SECURE))
    )
    assert plain.keys() == secure.keys()
    for name, array in plain.items():
        assert np.abs(array - secure[name]).max() < STEP, name


@pytest.fixture(scope="module")
def closed(tmp_path_factory, drawn, run_config, small_backbone):
    """Run two rounds of four closed sites, with the defaults of `clip-change` and `max-change`."""
    from benchmarks.in_process import Deployment
    from tests.conftest import default_run_config, own_home

    node = {"policy": "closed", "min-examples": 8, "backbone": str(small_backbone)}
    limits = {key: default_run_config()[key] for key in ("clip-change", "max-change")}
    config = run_config(**{**SECURE, **limits, "num-clients": 4})
    clients = Deployment(config, 4, node_config=node)
    with own_home(tmp_path_factory.mktemp("closed"), drawn) as home, pytest.MonkeyPatch.context() as patch:
        from server_app import federation as room

        patch.setattr(room, "write_report", lambda *_: None)
        return clients, clients.serve(), home


def test_closed_sites_send_masked_arrays_alone_and_not_how_long_a_change_is(closed):
    clients, folder, _ = closed
    replies = [m for way, m in clients.wire if way == "to server" and "arrays" in m.content]
    assert len(replies) == 8
    assert {array.stype for reply in replies for array in reply.content["arrays"].values()} == {MASKED}
    rows = rows_of(folder)
    assert not any("refused" in row for row in rows)
    assert not any({"delta-shared", "clipped"} & row.keys() for row in rows)
    assert all("ce-student" in row for row in rows)


def test_what_leaves_looks_random(closed):
    """Of 32 bits each is set in half of all words; of what is not masked the upper half is mostly 0 or 1."""
    clients, _, _ = closed
    for reply in (m for way, m in clients.wire if way == "to server" and "arrays" in m.content):
        words = np.concatenate([np.frombuffer(a.data, np.uint32) for a in reply.content["arrays"].values()])
        set_ = np.unpackbits(words.view(np.uint8)).reshape(len(words), 32).mean(axis=0)
        assert np.abs(set_ - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))


def test_no_secret_is_left_at_a_site(closed):
    _, _, home = closed
    names = sorted(path.name for path in (home / "clients").iterdir() if path.is_file())
    assert names == [f".secret-{n}" for n in range(4)] + [f"summed-{n}.txt" for n in range(4)]


def test_the_others_go_on_without_one_that_falls_out(federation):
    def lose(node, reply):
        return None if node == clients.node_id(1) and "arrays" in reply.content else reply

    clients = federation(5, alter=lose, **SECURE)
    rows = rows_of(clients.serve())
    refused = [(row["round"], row["partition"], row["refused"]) for row in rows if "refused" in row]
    assert refused == [(1, 1, "no reply in time"), (2, 1, "no reply in time")]


def test_a_share_of_the_clients_takes_part(federation):
    rows = rows_of(federation(6, fraction_train=0.5, num_rounds=3, **SECURE).serve())
    trained = [row["partition"] for row in rows if "ce-student" in row]
    assert len(trained) == 9
    assert not any("refused" in row for row in rows)


def test_with_too_few_the_run_fails_and_says_why(federation):
    def lose(node, reply):
        return None if node in lost and "arrays" in reply.content else reply

    clients = federation(5, alter=lose, **SECURE)
    lost = [clients.node_id(partition) for partition in (1, 2)]
    line = "^round 1, tried twice: secure aggregation opens no sum: 3 masked changes came, 4 are needed$"
    with pytest.raises(RuntimeError, match=line):
        clients.serve()


def test_under_local_privacy_the_sum_has_the_noise_of_all(federation):
    """σ = 2 · 0.001 √(2 ln 1.25e5) / 0.9 for each, and so σ / 2 in the mean of four."""
    local = {"dp.mode": "local", "dp.clipping-norm": 1e-3, "dp.epsilon": 0.9, "secure.range": 0.1}
    clients = federation(4, num_rounds=1, **local, **SECURE)
    first = adapter_of(clients.serve())
    before = sent(clients, 0)
    noise = np.concatenate([(array - before[name]).ravel() for name, array in first.items()])
    deviation = 2e-3 * np.sqrt(2 * np.log(1.25e5)) / 0.9 / 2
    assert noise.var() == pytest.approx(deviation**2, rel=10 * np.sqrt(2 / noise.size))


def test_the_bytes_of_the_exchange_are_in_the_rows(federation):
    clients = federation(3, num_rounds=1, **SECURE)
    counted = {row["partition"]: row["bytes-up"] for row in rows_of(clients.serve())}
    assert len(counted) == 3
    for partition, num_bytes in counted.items():
        own = clients.node_id(partition)
        replies = [m.content for _, m in clients.wire if m.metadata.src_node_id == own]
        records = [reply[name] for reply in replies for name in ("arrays", "secure") if name in reply]
        assert len(records) == 4
        assert num_bytes == sum(record.count_bytes() for record in records)


def test_one_seed_gives_the_same_bytes(federation):
    one, other = (
        load_file(federation(3, run_name=name, **SECURE).serve() / "adapter" / "adapter_model.safetensors")
        for name in ("one", "other")
    )
    assert all(np.array_equal(array, other[name]) for name, array in one.items())
