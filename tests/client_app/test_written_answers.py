"""Answers written under each branch, and conversations that a site keeps."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from app.backbones import load_backbone
from app.caches import cache_limit
from app.conversations import Conversations
from app.families.generative import AnswerPositions
from app.settings import read_settings
from app.text_scores import text_score
from client_app.kept_examples import kept_examples
from client_app.local_training import OwnTraining
from client_app.written_answers import evaluate_written, unwritable
from tests.app.families.test_generative import differing, rows
from tests.app.tiny_generative import made
from tests.conftest import is_mapped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(str(made("LLaVA", tmp_path_factory.mktemp("llava"))))


@pytest.fixture
def conversations(backbone):
    return backbone.examples(rows(), CPU)


def test_a_branch_is_scored_by_what_it_writes(backbone, conversations, run_config):
    settings = read_settings(run_config(**{"loss": "next-token", "writing.tokens": 3}))
    adapter = differing(backbone)
    written = {}
    for branch in ("student", "teacher", "local"):
        with adapter.branch(branch):
            parts = AnswerPositions(adapter.model)
            questions = conversations.questions(torch.arange(3), CPU)
            found = parts.write(parts.trunk(questions), backbone.processor.stops, 3)
            written[branch] = [backbone.processor.decode(tokens) for tokens in found]
    assert written["student"] != written["teacher"]
    wanted = [{answer: 0.5} for answer in written["student"]]
    told = torch.tensor(list(json.dumps(wanted).encode()), dtype=torch.uint8)
    asked = dataclasses.replace(conversations, wanted=told)
    own = OwnTraining(adapter, lambda: conversations, settings, 1, 0)
    scores = evaluate_written(adapter, asked, backbone.processor, settings, own, tuple)
    assert scores["num-examples"] == 3
    for branch, answers in written.items():
        worth = [text_score("exact", a, w) for a, w in zip(answers, wanted, strict=True)]
        assert scores[branch] == pytest.approx(sum(worth) / 3)
    assert scores["student"] == 0.5


def test_answers_that_cannot_be_written_are_counted():
    """A token a word and one for the end; of several right answers the shortest counts."""

    def said(score="exact", limit=2, loss="next-token"):
        settings = SimpleNamespace(loss=loss, writing=SimpleNamespace(score=score, tokens=limit))
        test = {"answers": [["a b"], ["a b c"], ["a b c d e", "a"], ["a b c d", "a b c d e"]]}
        processor = SimpleNamespace(answer=lambda text: [*text.split(), "end"])
        partition, backbone = SimpleNamespace(name="x", test=test), SimpleNamespace(processor=processor)
        return unwritable(SimpleNamespace(settings=settings, partition=partition, backbone=backbone))

    assert said() == (
        "client x: 2 of 4 test questions have no right answer that fits into writing.tokens = 2;"
        " allowed, for all to fit: 4 or more"
    )
    assert said(limit=3).startswith("client x: 1 of 4 ")
    assert said(limit=4) == ""
    assert said(score="choice") == ""
    assert said(loss="cross-entropy") == ""


def test_conversations_come_back_from_a_sites_disk_mapped_and_in_bfloat16(home, conversations):
    assert cache_limit() > 0

    def again():
        return kept_examples(home, {"key": 1}, {}, lambda: (conversations, ()), Conversations)

    first, second = again(), again()
    assert first is conversations
    (path,) = (home / "examples").glob("*.safetensors")
    assert is_mapped(second.features, path)
    assert second.features.dtype == torch.bfloat16
    for one, other in zip(
        first.batch(torch.tensor([2, 0]), CPU), second.batch(torch.tensor([2, 0]), CPU), strict=True
    ):
        pairs = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else [(one, other)]
        assert all(torch.equal(a, b) for a, b in pairs)
    assert second.answers() == conversations.answers() == [{"blue": 1.0}, {"a red square": 1.0}, {"no": 1.0}]
