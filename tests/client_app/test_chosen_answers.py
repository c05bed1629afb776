"""Examples answered by their likeliest option: held to plain forwards of whole conversations."""

import dataclasses
import json

import pytest
import torch

from app.backbones import load_backbone
from app.conversations import FEATURES, converse
from app.families.generative import image_features
from app.settings import read_settings
from app.tasks import TASKS
from client_app import chosen_answers
from client_app.chosen_answers import Choice
from client_app.local_training import OwnTraining
from client_app.written_answers import evaluate_written
from tests.app.families.test_generative import differing, rows
from tests.app.tiny_generative import made, pictures_alone

CPU = torch.device("cpu")
LISTED = ("no", "blue", "red", "there is a small blue circle", "yes")
OPTIONS = [[], ["a blue circle", "a red square", "a"], []]


@pytest.fixture(scope="module", params=["LLaVA", "Qwen2.5-VL"])
def backbone(request, tmp_path_factory):
    with pictures_alone():
        return load_backbone(str(made(request.param, tmp_path_factory.mktemp("model"))))


@pytest.fixture
def given():
    return []


@pytest.fixture
def conversations(backbone, given):
    def encode(pictures):
        given.append(pictures)
        return image_features(backbone.model, pictures)

    return converse(rows(), backbone.processor, encode, torch.float32)


@pytest.fixture
def score(backbone, run_config):
    """Return what evaluates each branch of an adapter by choice."""
    settings = read_settings(run_config(**{"loss": "next-token", "writing.score": "choice"}))

    def scored(adapter, asked, answers=LISTED):
        own = OwnTraining(adapter, lambda: asked, settings, 1, 0)
        return evaluate_written(adapter, asked, backbone.processor, settings, own, lambda: answers)

    return scored


def worth(conversations, wanted, options=OPTIONS):
    """Return the same conversations with other answers, and what they are worth, or other options."""
    told, offered = (
        torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8) for value in (wanted, options)
    )
    return dataclasses.replace(conversations, wanted=told, offered=offered)


@torch.no_grad()
def likeliest(backbone, adapter, branch, given, shown):
    """By hand: each option's whole conversation with pixels, alone, without a cache."""
    chosen = []
    for row, own in enumerate(options or LISTED for options in OPTIONS):
        found = []
        for option in own:
            answers = ["no", "no", "no"]
            answers[row] = option
            whole = converse(rows(answers=answers), backbone.processor, lambda _: torch.zeros(1, 1, 1))
            batch, targets = whole.batch(torch.tensor([row]), CPU)
            batch = {key: value for key, value in batch.items() if key != FEATURES} | given[shown[row]]
            logits, told = TASKS["next-token"].pair(adapter(batch, branch), targets)
            found.append(float(logits.log_softmax(-1).gather(1, told[:, None]).sum()))
        chosen.append(own[found.index(max(found))])
    return chosen


def test_a_branch_is_scored_by_what_it_finds_likeliest(backbone, conversations, given, score):
    adapter = differing(backbone)
    chosen = {
        branch: likeliest(backbone, adapter, branch, given, conversations.shown.tolist())
        for branch in ("student", "teacher", "local")
    }
    assert len({tuple(answers) for answers in chosen.values()}) > 1
    # The three examples' answers are worth 1/2, 1/4 and 1/8: their sum tells which were chosen.
    wanted = [{answer: 0.5 ** (row + 1)} for row, answer in enumerate(chosen["student"])]
    found = score(adapter, worth(conversations, wanted))
    assert found["num-examples"] == 3
    assert found["student"] == pytest.approx((0.5 + 0.25 + 0.125) / 3)
    for branch, answers in chosen.items():
        expected = sum(one.get(answer, 0.0) for answer, one in zip(answers, wanted, strict=True))
        assert found[branch] == pytest.approx(expected / 3)


def test_it_does_not_depend_on_the_batch(monkeypatch, backbone, conversations, score):
    adapter = differing(backbone)
    whole = score(adapter, conversations)
    monkeypatch.setattr("client_app.written_answers.EVALUATION_BATCH", 1)
    single = score(adapter, conversations)
    assert [whole[name] for name in ("student", "teacher", "local")] == [
        single[name] for name in ("student", "teacher", "local")
    ]


def test_an_option_that_begins_another_may_be_less_likely(backbone):
    """The end of an answer is one of its tokens."""
    short, long = (backbone.processor.answer(option) for option in ("a red", "a red square"))
    assert short[:-1] == long[: len(short) - 1]
    assert short[-1] == long[-1] == 2


def test_an_answer_list_need_not_have_the_right_answer(backbone, conversations, score):
    found = score(differing(backbone), worth(conversations, [{"unknown": 1.0}] * 3, [[], [], []]))
    assert found["student"] == found["teacher"] == found["local"] == 0


def test_without_need_the_answer_list_is_not_asked_for(backbone, conversations):
    asked = worth(conversations, [{"a": 1.0}] * 3, [["a", "b"]] * 3)
    Choice(asked, backbone.processor, lambda: pytest.fail("the client's data were read"))


@pytest.mark.parametrize(
    ("options", "answers", "line"),
    [
        (
            [[], ["yes", "maybe"], []],
            LISTED,
            "example 1 .*: none of its 2 options is right; allowed: options",
        ),
        ([[], ["no"], []], LISTED, "example 1 .*: its options are 1; allowed: 2 to 256"),
        ([[], [*map(str, range(256)), "no"], []], LISTED, "example 1 .*: its options are 257; allowed: 2 to"),
        (
            [["no", "yes"], [], []],
            ("no",),
            "example 1 .*: its client's answers, for it has no options of its",
        ),
        ([["no", "yes"], [], []], [*map(str, range(257))], "example 1 .* are 257; allowed: 2 to 256"),
    ],
)
def test_options_that_cannot_be_chosen_from(backbone, conversations, options, answers, line):
    assert chosen_answers.MOST_OPTIONS == 256
    asked = worth(conversations, [{"no": 1.0}] * 3, options)
    with pytest.raises(ValueError, match=line) as refused:
        Choice(asked, backbone.processor, lambda: answers)
    assert "writing.score = 'choice'" in str(refused.value)


def test_an_option_without_a_word_in_the_model(backbone):
    small = dataclasses.replace(backbone.processor, vocabulary=3)
    with pytest.raises(ValueError, match="a tokenizer whose vocabulary grew: the model knows 3"):
        small.answer("blue")
