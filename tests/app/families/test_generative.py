"""Generative models of every promised class: parts, adapters, the step, what is kept of pictures."""

import io

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from app import piecewise
from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.conversations import FEATURES, converse
from app.families.generative import AnswerPositions, image_features
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.app.test_contract import METHOD, RATE, STEPS, Plain
from tests.app.tiny_generative import MODELS, made, pictures_alone
from tests.app.tiny_models import drawn

METHODS = Distillation(**METHOD, loss="next-token")
CPU = torch.device("cpu")
ANSWERS = ("blue", "a red square", "no")
QUESTIONS = ("what color is the circle ?", "is there a square ?", "what color ?")


def picture(seed, size=(24, 40)):
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed))
    buffer = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def rows(pictures=(0, 1, 0), answers=ANSWERS):
    columns = {
        "images": [[{"bytes": picture(seed), "path": None}] for seed in pictures],
        "messages": [[{"role": "user", "content": f"<image>\n{question}"}] for question in QUESTIONS],
        "answers": [[answer] for answer in answers],
        "answer_scores": [[1.0]] * 3,
        "options": [[], ["a blue circle", "a red square", "a"], []],
    }
    return datasets.Dataset.from_dict(columns)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name, tmp_path_factory):
    with pictures_alone():
        return load_backbone(str(made(name, tmp_path_factory.mktemp("generative"))))


@pytest.fixture(scope="module")
def conversations(backbone):
    """Return conversations whose pictures' features are kept as they are, and what they were made of."""
    given = []

    def encode(pictures):
        given.append(pictures)
        return image_features(backbone.model, pictures)

    return converse(rows(), backbone.processor, encode, torch.float32), given


@pytest.fixture(scope="module")
def batches(conversations):
    """Return a batch with kept features, the same with pixels, and the targets."""
    kept, given = conversations
    batch, targets = kept.batch(torch.arange(3), CPU)
    shown = [given[picture] for picture in kept.shown]
    pixels = {name: torch.cat([one[name] for one in shown]) for name in shown[0]}
    return batch, {key: value for key, value in batch.items() if key != FEATURES} | pixels, targets


def differing(backbone, kind="lora"):
    """Return an adapted model whose three adapters differ visibly."""
    adapter = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
    for seed, role in enumerate(("shared", "frozen", "local")):
        adapter.load(role, {n: drawn(*v.shape, seed=seed) * 0.2 for n, v in adapter.state(role).items()})
    return adapter


def test_questions_about_one_picture_share_what_stands_for_it(conversations):
    kept, given = conversations
    assert kept.shown.tolist() == [0, 1, 0]
    assert len(given) == len(kept.feature_ends) == 2


def test_only_answers_are_told_each_with_its_end(backbone, batches):
    batch, _, targets = batches
    told = [row[row >= 0].tolist() for row in targets]
    assert [backbone.processor.decode(tokens) for tokens in told] == list(ANSWERS)
    assert all(tokens[-1] == 2 and tokens.count(2) == 1 for tokens in told)
    assert (targets[targets >= 0] == batch["input_ids"][targets >= 0]).all()


def take_the_literal_steps(adapter, backbone, inputs, pixels, targets):
    """Take our steps, and the published ones by whole forwards of stock PEFT on pixels: all ends alike."""

    def forward(model, batch):
        given = {name: value for name, value in batch.items() if name != "told"}
        return model(**{n: v.float() if v.is_floating_point() else v for n, v in given.items()}).logits

    config = Adapter("lora", lora_rank=3).config(backbone)
    plain = Plain(backbone.fork(), config, None, "next-token", forward)
    with torch.no_grad():
        for role in ("shared", "frozen", "local"):
            for key, weight in plain.weights(role).items():
                weight.copy_(adapter.state(role)[key])
    before = {**adapter.shared(), **adapter.private()}
    theirs = torch.optim.AdamW([*plain.weights("shared").values(), *plain.weights("local").values()], lr=RATE)
    ours = torch.optim.AdamW(adapter.trained_parameters(), lr=RATE)
    for _ in range(STEPS):
        mkd_step(adapter, ours, inputs, targets, METHODS)
        plain.step(theirs, pixels, targets)
    after = {**adapter.shared(), **adapter.private()}
    assert [key for key in after if torch.equal(after[key], before[key])] == []
    for role in ("shared", "frozen", "local"):
        for key, weight in plain.weights(role).items():
            torch.testing.assert_close(adapter.state(role)[key], weight.detach(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("at_once", [2**22, 2 * 1400], ids=["whole", "pieces"])
@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_a_whole_forward_equals_the_parts(monkeypatch, backbone, batches, kind, at_once):
    monkeypatch.setattr(piecewise, "PIECE", at_once)
    kept, pixels, targets = batches
    adapter, task = differing(backbone, kind), METHODS.task
    whole = {}
    with torch.no_grad():
        for branch in ("student", "teacher", "local"):
            whole[branch], y = task.pair(adapter(pixels, branch), targets)
            by_features, _ = task.pair(adapter(kept, branch), targets)
            torch.testing.assert_close(by_features, whole[branch], atol=2e-5, rtol=0)
            for batch in (pixels, kept):
                found = adapter.classify(adapter.features(adapter.trunk(batch), branch))
                assert isinstance(found, torch.Tensor) == (at_once > 2 * 1400)
                found, told = task.pair(found, targets)
                torch.testing.assert_close(found[torch.arange(len(y))], whole[branch], atol=2e-5, rtol=0)
                assert torch.equal(told, y)
                torch.testing.assert_close(
                    task.loss(found, y), task.loss(whole[branch], y), atol=1e-5, rtol=0
                )
                assert torch.equal(task.score(found, y), task.score(whole[branch], y))
    assert (whole["student"] - whole["teacher"]).abs().max() > 1e-3
    assert (whole["local"] - whole["teacher"]).abs().max() > 1e-3


def test_no_answer_is_read_before_it_is_told(backbone, batches):
    """Another last token changes no logits before it, though questions may be read both ways."""
    batch, _, targets = batches
    adapter = differing(backbone)
    told = targets[1] >= 0
    last = int(told.nonzero()[-1])
    other = batch["input_ids"].clone()
    other[1, last] = 60
    with torch.no_grad():
        first, second = (
            adapter.features(adapter.trunk({**batch, "input_ids": ids}), "student")
            for ids in (batch["input_ids"], other)
        )
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)


def test_adapters_lie_in_the_language_model_alone(backbone):
    inside = ("base_model.model.model.language_model.", "base_model.model.model.text_model.")
    for kind in ("lora", "bottleneck"):
        names = list(adapt(backbone, Adapter(kind, 4, 3).config(backbone)).parameters_of["shared"])
        assert len(names) == {"lora": 2 * 2 * 2, "bottleneck": 2 * 4}[kind]
        assert all(name.startswith(inside) for name in names)


@pytest.mark.parametrize("at_once", [2**22, 2 * 1400], ids=["whole", "pieces"])
def test_the_step_is_the_literal_one_on_stock_peft(monkeypatch, name, backbone, batches, at_once):
    """Three whole forwards with vision and all logits, and two updates; ours computes no picture."""
    monkeypatch.setattr(piecewise, "PIECE", at_once)
    kept, pixels, targets = batches
    adapter = differing(backbone)
    take_the_literal_steps(adapter, backbone, kept, pixels, targets)


def test_the_published_step_is_the_same_by_parts_and_by_whole_forwards(backbone, batches):
    kept, pixels, targets = batches
    ends = []
    for step, batch in ((mkd_step, kept), (reference_step, pixels)):
        adapter = differing(backbone, "bottleneck")
        optimizer = make_optimizer(adapter, RATE, 0.0)
        for _ in range(STEPS):
            outcome = step(adapter, optimizer, batch, targets, METHODS)
        ends.append({**adapter.shared(), **adapter.private()} | {"losses": outcome.losses})
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], atol=5e-5, rtol=0)


def test_with_kept_features_no_vision_is_computed(backbone, batches):
    kept, pixels, _ = batches
    adapter = differing(backbone)
    flops = {}
    for key, batch in (("kept", kept), ("pixels", pixels)):
        with FlopCounterMode(display=False) as counter:
            trunk = adapter.trunk(batch)
        flops[key] = counter.get_total_flops()
    assert flops["kept"] < 0.1 * flops["pixels"]
    assert not trunk.arguments["inputs_embeds"].requires_grad


@pytest.mark.parametrize("branch", ["student", "teacher", "local"])
def test_an_answers_likelihood_is_that_of_the_whole_conversation(backbone, conversations, branch):
    """Unequal questions and options at once, from one prefill; plain forwards see pixels, one text each."""
    kept, given = conversations
    adapter = differing(backbone)
    options = [["blue", "a red square", "red"], ["no"], ["a blue circle", "what is there ?"]]
    expected = torch.full((3, 3), -torch.inf)
    for place in range(3):
        answered = [own[min(place, len(own) - 1)] for own in options]
        whole = converse(rows(answers=answered), backbone.processor, lambda _: torch.zeros(1, 1, 1))
        for row in range(3):
            batch, targets = whole.batch(torch.tensor([row]), CPU)
            batch = {key: value for key, value in batch.items() if key != FEATURES} | given[kept.shown[row]]
            with torch.no_grad():
                logits, told = METHODS.task.pair(adapter(batch, branch), targets)
            if place < len(options[row]):
                expected[row, place] = logits.log_softmax(-1).gather(1, told[:, None]).sum()
    tokens = [[backbone.processor.answer(option) for option in own] for own in options]
    with adapter.branch(branch):
        found = AnswerPositions(adapter.model).likelihoods(kept.questions(torch.arange(3), CPU), tokens)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert (found[0, 0] - found[0, 2]).abs() > 1e-2


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_what_a_branch_writes_is_what_the_stock_model_generates(backbone, conversations, branch):
    """Unequal questions at once, from kept features; the stock model sees pixels, one question at a time."""
    kept, given = conversations
    adapter = differing(backbone)
    stops = {int(token) for token in range(40, 60)}
    with adapter.branch(branch):
        parts = AnswerPositions(adapter.model)
        found = parts.write(parts.trunk(kept.questions(torch.arange(3), CPU)), stops, 6)
        expected = []
        for row in range(3):
            one = kept.questions(torch.tensor([row]), CPU)
            pixels = {name: value for name, value in one.items() if name != FEATURES} | given[kept.shown[row]]
            with torch.no_grad():
                whole = adapter.model.generate(
                    **pixels, do_sample=False, max_new_tokens=6, eos_token_id=sorted(stops), pad_token_id=0
                )
            new = whole[0, one["input_ids"].shape[1] :].tolist()
            end = next((place for place, token in enumerate(new) if token in stops), len(new))
            expected.append(new[:end])
    assert found == expected
    assert any(found)
    assert not kept.questions(torch.arange(3), CPU)["attention_mask"].all()
