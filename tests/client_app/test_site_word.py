"""A site takes orders from its server alone: what another site sends in the server's name is refused."""

import shutil
import subprocess
import sys

import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from client_app import messages, site_word
from client_app.site_word import SITE_WORD, UNKNOWN_WORD, give_word
from strategies import handshake
from tests.conftest import ROOT
from tests.private_files import newest_state


def words_of(clients):
    return {node: give_word(context) for node, context in clients.contexts.items()}


def files_of(home):
    return {
        path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "data" not in path.parts
    }


def test_both_sides_call_it_the_same():
    assert (handshake.SITE_WORD, handshake.UNKNOWN_WORD) == (SITE_WORD, UNKNOWN_WORD)


@pytest.fixture
def site(home):
    """Make a site's context as one of its processes finds it."""

    def site(run_id=7, partition=0):
        node = {"partition-id": partition, "num-partitions": 2, "state-dir": str(home / "private")}
        return Context(run_id, 100 + partition, node, RecordDict(), {})

    return site


def test_a_word_is_of_one_site_and_run_and_the_same_in_every_process(site, home):
    word = give_word(site())
    assert len(word) == 64
    assert give_word(site()) == word
    (file,) = (home / "private").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (home / "private").stat().st_mode & 0o777 == 0o700
    assert len({word, give_word(site(run_id=8)), give_word(site(partition=1))}) == 3
    asked = (
        "from flwr.app import Context, RecordDict; from client_app.site_word import give_word;"
        f" print(give_word(Context(7, 1, {site().node_config!r}, RecordDict(), {{}})))"
    )
    other = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == word


def test_a_secret_that_is_cut_is_made_anew(site, home):
    word = give_word(site())
    (file,) = (home / "private").iterdir()
    file.write_bytes(b"")
    assert give_word(site()) != word
    assert len(file.read_bytes()) == 32


@pytest.mark.parametrize("policy", ["open", "closed"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_message_without_the_sites_word_is_refused_before_anything(
    federation, home, small_backbone, kind, policy
):
    """All else is as the server's own message has it, and a run was there before."""
    node = {"policy": policy, "min-examples": 8, "backbone": str(small_backbone)}
    clients = federation(2, deployed=True, node_config=node)
    clients.serve()
    own, other = (clients.node_id(partition) for partition in range(2))
    word, before = words_of(clients), files_of(home)
    genuine = next(
        message
        for way, message in clients.wire
        if (way, message.metadata.message_type, message.metadata.dst_node_id) == ("to client", kind, own)
    )
    assert genuine.content["config"][SITE_WORD] == word[own]
    elsewhere = Context(2, own, clients.contexts[own].node_config, RecordDict(), {})
    for said in (None, "", word[other], word[own][:-1], word[own].upper(), "ä", 3, b"", give_word(elsewhere)):
        config = {key: value for key, value in genuine.content["config"].items() if key != SITE_WORD}
        config |= {} if said is None else {SITE_WORD: said}
        genuine.content = RecordDict({**genuine.content, "config": ConfigRecord(config)})
        (reply,) = clients.send_and_receive([genuine])
        assert reply.has_error()
        assert reply.error.reason.endswith(f"occurred. Message: {UNKNOWN_WORD}'>")
    assert files_of(home) == before


def test_every_message_has_the_word_of_its_site_and_no_two_the_same_nonce(federation):
    clients = federation(3, deployed=True)
    clients.serve()
    words, nonces = words_of(clients), []
    for way, message in clients.wire:
        if way == "to client":
            config, node = message.content["config"], message.metadata.dst_node_id
            asks = message.metadata.message_type == "query"
            assert config.get(SITE_WORD) == (None if asks else words[node])
            nonces.append(config["nonce"])
        else:
            asks = message.metadata.message_type == "query"
            assert ("secret" in message.content) == asks
    assert len(nonces) == len(set(nonces)) == 3 * (1 + 2 + 2)
    assert all(len(nonce) == 32 for nonce in nonces)


def test_the_word_is_in_no_file_of_a_run_and_in_no_log(federation, caplog):
    caplog.set_level(0)
    clients = federation(2, deployed=True)
    folder = clients.serve()
    for word in words_of(clients).values():
        assert word not in caplog.text
        assert not any(word.encode() in content for content in files_of(folder).values())


def test_a_run_that_is_resumed_learns_the_words_again(federation, home):
    """It is another run to Flower, with an id and so words of its own."""
    one = federation(2, deployed=True, run_name="whole").serve()

    def stop(node, reply):
        if newest_state(home / "clients", "cut", 1) and reply.metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        federation(2, deployed=True, run_name="cut", num_rounds=2, alter=stop).serve()
    clients = federation(2, deployed=True, run_name="", resume="cut")
    for context in clients.contexts.values():
        context.run_id = 2
    clients.serve()
    other = one.with_name("cut")
    assert "refused" not in (other / "metrics.jsonl").read_text()
    adapters = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (one, other)]
    assert adapters[0] == adapters[1]


def test_a_site_that_lost_all_its_private_files_is_asked_for_its_word_again(federation, home):
    def delete(node, reply):
        trained = reply.metadata.message_type == "train" and not reply.has_error()
        if trained and newest_state(home / "clients", "test", 1) and not lost:
            lost.append(shutil.rmtree(home / "clients"))
        return reply

    lost = []
    clients = federation(2, deployed=True, num_rounds=4, alter=delete)
    clients.serve()
    kinds = [
        (way, m.metadata.message_type, m.has_error())
        for way, m in clients.wire
        if clients.node_id(1) in (m.metadata.dst_node_id, m.metadata.src_node_id)
    ]
    assert [kind for way, kind, _ in kinds if way == "to client"] == [
        *("query", "train", "evaluate"),
        *("query", "train", "evaluate", "train", "evaluate", "train", "evaluate"),
    ]
    assert [error for way, _, error in kinds if way == "to server"] == [False, False, True, *[False] * 7]


def test_a_simulation_has_no_words(federation, home, monkeypatch):
    for module in (messages, site_word):
        monkeypatch.setattr(module, "in_simulation", lambda: True)
    clients = federation(2)
    clients.serve()
    assert not list((home / "clients").glob(".secret*"))
    assert all("secret" not in m.content for way, m in clients.wire if way == "to server")
    assert all(SITE_WORD not in m.content["config"] for way, m in clients.wire if way == "to client")
