"""How far a run is, in a file."""

import json

import pytest
from flwr.app import Message, RecordDict

from server_app.progress import VARIABLE, Progress, progress


class Mail:
    """A grid whose replies come one by one."""

    def push_messages(self, messages):
        self.waiting = list(messages)
        return [str(number) for number in range(len(self.waiting))]

    def pull_messages(self, message_ids):
        return [self.waiting.pop()]


@pytest.fixture
def messages(federation):
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1, 2, 3)]


def test_the_file_follows_messages_as_they_go_and_come(tmp_path, messages):
    path, mail = tmp_path / "progress.json", Mail()
    kept = Progress(path, mail)
    kept.run_began("run", {}, 4)
    mail.push_messages(iter(messages))
    assert json.loads(path.read_text()) == {"round": 5, "phase": "train", "asked": 3, "replied": 0}
    mail.pull_messages(["0"])
    mail.pull_messages(["1"])
    assert json.loads(path.read_text())["replied"] == 2
    kept.round_ended(5)
    assert json.loads(path.read_text()) == {"round": 6, "phase": "", "asked": 0, "replied": 0}


def test_what_is_evaluated_before_anything_was_trained_is_round_0(tmp_path, federation):
    path, mail = tmp_path / "progress.json", Mail()
    kept = Progress(path, mail)
    kept.run_began("run", {}, 0)
    rounds = []
    for kind in ("evaluate", "train", "evaluate"):
        mail.push_messages([Message(RecordDict(), dst_node_id=1, message_type=kind)])
        rounds.append(json.loads(path.read_text())["round"])
        if not rounds[-1]:
            kept.round_ended(0)
    assert rounds == [0, 1, 1]


def test_without_the_variable_nothing_is_kept(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert progress(Mail()) == []
