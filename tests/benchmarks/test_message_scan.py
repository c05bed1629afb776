"""The program that times how Flower finds a node's messages: what is counted is what takes the time."""

import json

import pytest
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.task_identity import TaskIdentity

from benchmarks import message_scan


@pytest.fixture(autouse=True)
def outside_a_task(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


def test_each_node_takes_a_look_at_each_message(monkeypatch):
    """What the store in memory does; with it goes the table in docs/performance.md."""
    looked = []
    check = InMemoryLinkState._check_stored_messages
    monkeypatch.setattr(
        InMemoryLinkState,
        "_check_stored_messages",
        lambda self, *given: looked.append(given) or check(self, *given),
    )
    assert message_scan.measure(nodes=6, under_way=4, database=FLWR_IN_MEMORY_DB_NAME, repeats=1) > 0
    # The first turn gives each node its message, where it ends: after 1, 2, 3, 4; two nodes have none.
    assert len(looked) == (1 + 2 + 3 + 4 + 2 * 4) + 6 * 4


@pytest.mark.parametrize(("nodes", "options"), [([3, 5], []), ([3], ["--database"])])
def test_it_prints_a_line_for_each_number_of_nodes(nodes, options, tmp_path, capsys):
    file = tmp_path / "figures.json"
    message_scan.main(["--nodes", *map(str, nodes), "--repeats", "1", "--json", str(file), *options])
    turns = json.loads(file.read_text())["turns"]
    assert [turn["nodes"] for turn in turns] == nodes
    assert all(seconds > 0 for turn in turns for seconds in turn["seconds"].values())
    assert "a message to each" in capsys.readouterr().out
