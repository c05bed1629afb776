"""CLIP and SigLIP that choose among prompts: the library's own logits, adapters for the image alone."""

import pytest
import torch
from PIL import Image

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.dual_adapter import ROLES
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.app.families.test_whole_forwards import save_small

ANSWERS = ("red", "the small circle", "a")
PROMPT = "there is {} ?"
LOSSES = {"clip": ("cross-entropy",), "siglip": ("bce-scores", "cross-entropy")}


@pytest.fixture(scope="module", params=LOSSES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory, small_backbone):
    return save_small(name, tmp_path_factory.mktemp(name), small_backbone)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder), head="prompts", prompt=PROMPT)


def pictures():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (4, 40, 32, 3), generator=generator).to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in drawn]


@pytest.fixture
def batch(backbone):
    pixels = torch.stack([backbone.processor.image(picture) for picture in pictures()])
    return {"pixel_values": pixels, "answers": backbone.answers(ANSWERS)}


def test_logits_are_those_of_the_library_for_the_prompts(backbone, batch):
    prompts = ["there is red ?", "there is the small circle ?", "there is a ?"]
    tokens = backbone.processor.tokenizer(
        prompts, padding="max_length", max_length=16, return_tensors="pt"
    ).input_ids
    pixels = backbone.processor.normalise(batch["pixel_values"])
    with torch.no_grad():
        expected = backbone.model(input_ids=tokens, pixel_values=pixels).logits_per_image
        found = backbone.features(backbone.model, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.shape == (4, 3)
    assert (expected.amax(1) - expected.amin(1) > 1e-2).all()


def test_many_prompts_are_encoded_as_one_is(backbone):
    texts = [f"{chr(97 + n // 26)} {chr(97 + n % 26)}" for n in range(130)]
    together = backbone.answers(texts)
    torch.testing.assert_close(together[100:101], backbone.answers(texts[100:101]), atol=1e-6, rtol=0)
    assert together.shape == (130, 24 if backbone.model.config.model_type == "clip" else 64)


def test_a_prompt_is_read_whole_whatever_is_done_to_questions(name, tmp_path, small_backbone):
    folder = save_small(name, tmp_path / "model", small_backbone)
    plain = load_backbone(str(folder), head="prompts", prompt=PROMPT).answers(ANSWERS)
    (folder / "preprocessor_config.json").write_text('{"text_template": "{} [MASK]"}')
    asked = load_backbone(str(folder), head="prompts", prompt=PROMPT, max_tokens=4)
    assert asked.processor.texts(["is"])["attention_mask"][:, 4:].any() == (name == "siglip")
    assert torch.equal(asked.answers(ANSWERS), plain)


def test_an_answer_with_braces_is_taken_as_it_is(backbone):
    assert backbone.answers(["{}", "{0}", "a {b"]).shape[0] == 3


def test_texts_are_encoded_once_a_process_by_the_frozen_base(folder):
    other = load_backbone(str(folder), head="prompts", prompt="a {}")
    calls = []
    hook = other.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    first = other.answers(("one", "two"))
    assert other.answers(["one", "two"]) is first
    hook.remove()
    assert len(calls) == 1
    assert not first.requires_grad


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_the_step_is_the_published_one_and_adapts_the_image_alone(name, backbone, batch, kind):
    scores = torch.eye(3)[[0, 1, 2, 1]]
    distillation = Distillation(alpha=0.7, beta=1.6, loss=LOSSES[name][0])
    ends = []
    for step in (mkd_step, reference_step):
        dual = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
        generator = torch.Generator().manual_seed(1)
        for role in ROLES:
            state = dual.state(role)
            dual.load(role, {n: torch.randn(v.shape, generator=generator) * 0.2 for n, v in state.items()})
        before = {**dual.shared(), **dual.private()}
        assert all("vision_model" in key for key in before)
        assert {key.split(".")[0] for key in dual.private()} == {"local"}
        optimizer = make_optimizer(dual, 1e-3, 0.0)
        for _ in range(4):
            step(dual, optimizer, batch, scores, distillation)
        ends.append({**dual.shared(), **dual.private()})
        assert [key for key in before if torch.equal(before[key], ends[-1][key])] == []
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], atol=5e-5, rtol=0)


def test_it_says_which_losses_its_logits_are_made_for(name, backbone):
    assert backbone.family.losses == LOSSES[name]


def test_a_head_that_a_family_has_not_is_named(small_backbone):
    reason = rf"^head = 'prompts' with backbone = '{small_backbone}'; allowed: 'private', 'shared'$"
    with pytest.raises(ValueError, match=reason):
        load_backbone(str(small_backbone), head="prompts")
