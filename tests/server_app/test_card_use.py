"""Every card's lines run, and give what the student gives, for each family, adapter and head."""

import functools
import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.backbones import open_backbone
from app.families.generative import AnswerPositions
from app.heads import answer_with_new_head
from app.methods import open_learner
from app.processor import upright
from app.settings import read_settings
from server_app.card import model_card
from server_app.export import export_result
from tests.app.families.test_whole_forwards import NAMES, save_small
from tests.app.tiny_generative import MODELS, made, pictures_alone
from tests.cards import STOCK, code_of, imported, run_card

QUESTION = "what colour is the circle?"
LIST = ("a", "b", "c")
SEES = {"vilt", "vit", "vit without a pooler", "blip", "clip", "siglip"}
ASKS = {"vilt", *NAMES}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, small_backbone, small_vit):
    @functools.cache
    def folder_of(kind):
        if kind in NAMES:
            return save_small(kind, tmp_path_factory.mktemp(kind), small_backbone)
        if kind != "vit without a pooler":
            return {"vilt": small_backbone, "vit": small_vit}[kind]
        folder = tmp_path_factory.mktemp("bare") / "vit"
        shutil.copytree(small_vit, folder)
        kept = load_file(folder / "model.safetensors")
        left = {name: value for name, value in kept.items() if not name.startswith("pooler.")}
        save_file(left, folder / "model.safetensors", {"format": "pt"})
        return folder

    return folder_of


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Save a picture that its camera says is to be turned."""
    path, exif = tmp_path_factory.mktemp("pictures") / "picture.png", Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.fixture
def exported(tmp_path, run_config):
    """Export a result of weights that differ from the first; return its folder and the learner."""

    def export(answers=(), seed=3, **overrides):
        settings = read_settings(run_config(seed=seed, lora_rank=3, **overrides))
        learner, backbone = open_learner(settings), open_backbone(settings)
        answer_with_new_head(learner, backbone.width, len(answers) or 4, 0, settings.head)
        learner.remember_first_weights()
        generator = torch.Generator().manual_seed(3)
        moved = {
            name: value + torch.randn(value.shape, generator=generator) / 10
            for name, value in learner.shared().items()
        }
        learner.receive(moved)
        card = model_card({**settings.run_config(), "run-name": "a run"}, [], backbone, answers)
        export_result(tmp_path / "result", settings, moved, card, answers)
        return tmp_path / "result", learner, backbone

    return export


def student(learner, backbone, image, question=QUESTION):
    """Return features and logits of the student by the learner's own way."""
    batch = backbone.processor.texts([question])
    if backbone.processor.image_size:
        batch["pixel_values"] = backbone.processor.image(image)[None]
    with torch.no_grad():
        features = learner.features(learner.trunk(batch), "student")
        frozen = backbone.features(backbone.model, batch)
        return features, learner.classify(features), frozen


@pytest.mark.parametrize("head", ["private", "shared"])
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        *itertools.product(("vilt", "vit", "vit without a pooler", *NAMES), ("lora", "bottleneck")),
        *itertools.product(("vilt", "vit", "vit without a pooler"), ("prompt",)),
    ],
)
def test_an_adapters_card_gives_the_students_features(exported, folder_of, picture, kind, adapter, head):
    answers = LIST if head == "shared" else ()
    settings = {"backbone": str(folder_of(kind)), "adapter": adapter, "head": head}
    folder, learner, backbone = exported(answers, **settings)
    code = code_of(folder, picture)
    assert (imported(code) <= STOCK) == (adapter == "lora")
    assert ("\nimage =" in code, "\nquestion =" in code) == (kind in SEES, kind in ASKS)
    names = run_card(folder, picture)
    features, logits, frozen = student(learner, backbone, Image.open(picture))
    assert (features - frozen).abs().max() > 1e-3
    torch.testing.assert_close(names["features"], features, atol=2e-5, rtol=0)
    if head == "shared":
        torch.testing.assert_close(names["logits"], logits, atol=5e-5, rtol=0)
        assert names["answer"] == LIST[logits.argmax()]
    else:
        assert names["logits"].shape == (1, 3)
        assert names["logits"].requires_grad  # the head is yet to be trained


@pytest.mark.parametrize("kind", ["vilt", "vit", "clip", "siglip", "blip", "bert"])
def test_merged_a_lora_gives_the_same_without_peft(exported, folder_of, tmp_path, picture, kind):
    """By the card's own lines, then by those that load the stock model, now from what was merged."""
    folder, _, _ = exported(backbone=str(folder_of(kind)), adapter="lora")
    names, code = run_card(folder, picture), code_of(folder, picture)
    (merging,) = re.findall(r"^adapted\.merge_and_unload.*$", (folder / "README.md").read_text(), re.M)
    merged = tmp_path / "merged"
    exec(merging.replace('"merged"', repr(str(merged))), names)
    lines = {
        r"base = (\w+)\.from_pretrained\(.*, dtype": rf"base = \1.from_pretrained({str(merged)!r}, dtype",
        r"adapted = .*": "",
        r"model = adapted.*": "model = base.eval()",
    }
    for line, other in lines.items():
        code, times = re.subn(f"^{line}", other, code, flags=re.M)
        assert times == 1
    alone = {}
    exec(code, alone)
    torch.testing.assert_close(alone["features"], names["features"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vilt", "vit without a pooler", "clip", "blip", "bert"])
@pytest.mark.parametrize("method", ["full", "layernorm"])
def test_a_models_card_gives_its_answer(exported, folder_of, picture, kind, method):
    settings = {"backbone": str(folder_of(kind)), "head": "shared", "method": method}
    folder, learner, backbone = exported(LIST, **settings)
    names = run_card(folder, picture)
    _, logits, _ = student(learner, backbone, Image.open(picture))
    torch.testing.assert_close(names["logits"], logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("adapter", ["lora", "bottleneck"])
@pytest.mark.parametrize("kind", ["vilt", "siglip", "blip"])
def test_random_weights_and_a_cut_are_those_of_the_run(exported, folder_of, picture, kind, adapter):
    """The weights follow the run's seed, and a question is as long as it was in training."""
    settings = {"backbone": str(folder_of(kind)), "adapter": adapter, "max_tokens": 7}
    folder, learner, backbone = exported(backbone_weights="random", **settings)
    features, _, _ = student(learner, backbone, Image.open(picture))
    torch.testing.assert_close(run_card(folder, picture)["features"], features, atol=2e-5, rtol=0)


def test_without_a_picture_of_ones_own_the_lines_run_as_they_stand(exported, folder_of):
    folder, learner, backbone = exported(backbone=str(folder_of("blip")), adapter="lora")
    features, _, _ = student(learner, backbone, Image.new("RGB", (40, 30), "red"))
    torch.testing.assert_close(run_card(folder)["features"], features, atol=2e-5, rtol=0)


@pytest.mark.parametrize("adapter", ["lora", "bottleneck"])
@pytest.mark.parametrize("name", MODELS)
def test_what_writes_is_asked_by_its_card_as_by_a_client(exported, tmp_path, picture, name, adapter):
    settings = {"backbone": str(made(name, tmp_path / "model")), "adapter": adapter, "loss": "next-token"}
    with pictures_alone():
        folder, learner, backbone = exported(**settings, **{"writing.tokens": 5})
        assert (imported(code_of(folder)) <= STOCK) == (adapter == "lora")
        names = run_card(folder, picture)
    with Image.open(picture) as image:
        tokens, pictures, answer = written(learner, backbone.processor, upright(image))
    assert names["inputs"]["input_ids"].tolist() == tokens
    for key, value in pictures.items():
        torch.testing.assert_close(names["inputs"][key], value)
    assert names["answer"].strip() == answer


def written(learner, processor, image):
    """Return a question's tokens, what is seen of its picture, and the answer that the student writes."""
    asked = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    made = processor.conversation(messages, [image])
    before = slice(int(made.told.nonzero()[0]))
    tokens = made.tokens[None, before]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **made.pictures}
    inputs |= {kind: value[None, before] for kind, value in made.kinds.items()}
    with torch.no_grad(), learner.branch("student"):
        parts = AnswerPositions(learner.model)
        (answer,) = parts.write(parts.trunk(inputs), processor.stops, 5)
    return tokens.tolist(), made.pictures, processor.decode(answer)
