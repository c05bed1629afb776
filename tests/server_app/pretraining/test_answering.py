"""The objective that makes the built-in generative backbone: its batches, its losses, its measure."""

import datasets
import pytest
import torch
from PIL import Image

from app.backbones import load_backbone
from server_app.pretraining.answering import Answering, text_only
from server_app.pretraining.backbone_folder import save
from server_app.pretraining.trainer import train

COLORS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


def rows(number, **columns):
    images = [Image.new("RGB", (64, 64), list(COLORS.values())[index % 2]) for index in range(number)]
    features = datasets.Features(
        image=datasets.Image(),
        **{
            name: datasets.List(datasets.Value("string")) if name == "captions" else datasets.Value("string")
            for name in columns
        },
    )
    told = {name: [make(list(COLORS)[n % 2]) for n in range(number)] for name, make in columns.items()}
    return datasets.Dataset.from_dict({"image": images, **told}, features=features)


CAPTIONED = rows(4, captions=lambda color: [f"top {color} square , left {color} star", f"all is {color}"])
ASKED = rows(6, question=lambda color: "color ?", answer=lambda color: color)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return Answering(CAPTIONED, ASKED, ASKED, width=64)


def kinds(objective, steps, size=2):
    """Say of each batch what it asks for."""
    tokenizer = objective.processor.tokenizer
    for batch in objective.batches(size, steps, torch.Generator().manual_seed(0)):
        if "words" in batch:
            yield f"{len(batch['words'])} named"
        else:
            told = batch["labels"][0]
            yield tokenizer.decode(told[told >= 0]).split()[0]


def test_patches_are_named_then_described_then_questions_join(objective):
    found = list(kinds(objective, 40))
    assert found[:12] == ["4 named"] * 12
    assert found[12:15] == ["top"] * 3
    assert [word in COLORS for word in found[15:]] == [True, *[False, True, True, True] * 6]
    assert found[16::8] == ["top"] * 3
    assert found[20::8] == ["all"] * 3


def test_it_learns_to_see_and_what_is_saved_writes_the_answer(objective, tmp_path):
    before = objective.measure()
    train(objective, steps=200, batch_size=4, peak=5e-3, seed=0)
    assert before["answered"] < 1
    # With the next question's picture, which is of the other color, no answer is right.
    assert objective.measure() == {"answered": 1.0, "other": 0.0}
    card = objective.describe("tiny", 0, "200 batches", objective.measure())
    assert "# tiny" in card
    assert "**100.0%** | with the picture" in card
    save(objective.backbone, objective.processor, tmp_path / "tiny", card)
    backbone = load_backbone(str(tmp_path / "tiny"))
    assert backbone.processor.facts() == objective.processor.facts()
    assert backbone.model.dtype == torch.float32
    asked = [{"type": "image"}, {"type": "text", "text": "color ?"}]
    processor = backbone.processor.processor
    text = processor.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True)
    for color, pixels in COLORS.items():
        inputs = processor(images=[Image.new("RGB", (64, 64), pixels)], text=[text], return_tensors="pt")
        written = backbone.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = written[0, inputs["input_ids"].shape[1] :].tolist()
        assert backbone.processor.decode(answer) == color
    # Gone on with, it names no patches, and its vision tower stays as it is.
    on = Answering(CAPTIONED, ASKED, ASKED, start=backbone)
    found = list(kinds(on, 8))
    assert [found[0], found[4]] == ["top", "all"]
    assert {*found[1:4], *found[5:]} <= {*COLORS}
    train(on, steps=8, batch_size=2, peak=1e-3, seed=0)
    same = {
        name
        for name, value in on.model.state_dict().items()
        if torch.equal(value, backbone.model.state_dict()[name])
    }
    assert same == {name for name in on.model.state_dict() if "vision_tower" in name}
    assert on.describe("tiny", 0, "8 batches", on.measure()).startswith(
        "\nPretrained by this project for 8 b"
    )


def test_the_baseline_is_the_most_frequent_answer_to_the_same_question():
    asked = datasets.Dataset.from_dict(
        {"question": ["a", "a", "a", "b"], "answer": ["no", "yes", "yes", "red"]}
    )
    held_out = datasets.Dataset.from_dict(
        {"question": ["a", "a", "b", "new"], "answer": ["yes", "no", "red", "yes"]}
    )
    assert text_only(asked, held_out) == 3 / 4
