"""Adapters in vision tower and connector of generative models: places, pictures, the step."""

import datasets
import pytest
import torch
import transformers

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.checkpointing import recompute_blocks
from app.conversations import FEATURES, Conversations
from app.families.generative import AnswerPositions, Generative, parts_of
from app.mkd import make_optimizer, mkd_step, reference_step
from client_app.kept_examples import kept_examples
from tests.app.families.test_generative import (
    ANSWERS,
    CPU,
    METHODS,
    QUESTIONS,
    differing,
    picture,
    take_the_literal_steps,
)
from tests.app.test_contract import RATE, STEPS
from tests.app.tiny_generative import MODELS, TEXT, made, pictures_alone

# Of unequal sizes, so that some models get unequal numbers of tiles or patches; one is shown twice.
SIZES = ((24, 40), (64, 16), (24, 40))
PICTURES = (0, 1, 0)
EVERYWHERE = "language connector vision"
# Matrices with LoRA in a part: query and value of two layers, unless both are one or there are three layers.
VISION = {"Qwen2.5-VL": 2, "Qwen3-VL": 3}
CONNECTOR = {"Idefics3": 1, "SmolVLM": 1, "Qwen3-VL": 6, "Gemma 3": 0, "PaliGemma": 1}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def opened(name, tmp_path_factory):
    folder = made(name, tmp_path_factory.mktemp("adapted"))

    def build(parts):
        with pictures_alone():
            return load_backbone(str(folder), parts=parts)

    return build


@pytest.fixture(scope="module")
def backbone(name, opened):
    """Return one that is adapted wherever it can be."""
    return opened(EVERYWHERE if CONNECTOR.get(name, 2) else "language vision")


@pytest.fixture(scope="module")
def conversations(backbone):
    columns = {
        "images": [
            [{"bytes": picture(seed, size), "path": None}] for seed, size in zip(PICTURES, SIZES, strict=True)
        ],
        "messages": [[{"role": "user", "content": f"<image>\n{question}"}] for question in QUESTIONS],
        "answers": [[answer] for answer in ANSWERS],
        "answer_scores": [[1.0]] * 3,
        "options": [[]] * 3,
    }
    return backbone.examples(datasets.Dataset.from_dict(columns), CPU)


@pytest.fixture(scope="module")
def batch(conversations):
    return conversations.batch(torch.arange(3), CPU)


def test_lora_is_put_into_the_parts_that_are_named_and_no_other(name, opened):
    numbers = {"language": 4, "vision": VISION.get(name, 4), "connector": CONNECTOR.get(name, 2)}
    for parts in ("language", "vision", "language vision", "connector", EVERYWHERE):
        if "connector" in parts and not numbers["connector"]:
            continue
        backbone = opened(parts)
        found = adapt(backbone, Adapter("lora", lora_rank=3).config(backbone)).parameters_of["shared"]
        places = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in found}
        inside = parts_of(backbone.model)
        # Qwen-VL's connector lies in its vision tower.
        counts = {
            part: sum(place.startswith(tuple(f"{n}." for n in inside[part])) for place in places)
            for part in ("language", "connector", "vision")
        }
        merged = inside["connector"][0].startswith(inside["vision"][0])
        counts["vision"] -= counts["connector"] if merged else 0
        assert counts == {part: numbers[part] if part in parts else 0 for part in numbers}
        assert sum(counts.values()) == len(places)


def test_bottlenecks_end_the_blocks_of_the_parts_that_are_named(name, opened):
    for parts, language in (("vision", 0), ("language vision", 2)):
        backbone = opened(parts)
        found = adapt(backbone, Adapter("bottleneck", 4).config(backbone)).parameters_of["shared"]
        inside = parts_of(backbone.model)
        (decoder,), (encoder,) = inside["language"], inside["vision"]
        count = {part: sum(f"model.{part}." in name for name in found) for part in (decoder, encoder)}
        layers = 3 if name == "Qwen3-VL" else 2
        assert count == {decoder: 4 * language, encoder: 4 * layers}
        assert sum(count.values()) == len(found)


def test_examples_hold_pictures_once_with_all_of_their_bits(name, conversations, batch, backbone):
    assert conversations.features.numel() == 0
    assert len(conversations.pixel_ends) == 2
    assert conversations.shown.tolist() == [0, 1, 0]
    inputs, _ = batch
    assert FEATURES not in inputs
    assert inputs["pixel_values"].dtype == torch.float16


def test_pictures_come_back_from_a_disk(conversations, batch, tmp_path):
    for given in (conversations, None):  # the second time there is a file
        kept = kept_examples(tmp_path, {"a": 1}, {}, lambda given=given: (given, ()), Conversations)
    found, _ = kept.batch(torch.arange(3), CPU)
    assert found.keys() == batch[0].keys()
    assert all(torch.equal(value, found[name]) for name, value in batch[0].items())


def test_each_conversation_of_a_batch_says_what_it_says_alone(conversations, batch, backbone):
    """Whatever the sizes of the other pictures."""
    adapter = differing(backbone)
    inputs, targets = batch
    with torch.no_grad():
        together, _ = METHODS.task.pair(adapter(inputs, "student"), targets)
        alone = []
        for row in range(3):
            one, own = conversations.batch(torch.tensor([row]), CPU)
            alone.append(METHODS.task.pair(adapter(one, "student"), own)[0])
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)


def test_what_a_branch_sees_depends_on_its_adapters(backbone, batch):
    """The parts equal whole forwards, and adapters outside the language model matter."""
    inputs, targets = batch
    adapter = differing(backbone)
    outside = [
        n for n in adapter.parameters_of["local"] if f".{parts_of(backbone.model)['language'][0]}." not in n
    ]
    assert outside
    with torch.no_grad():
        logits = {}
        for branch in ("student", "teacher", "local"):
            found = adapter.classify(adapter.features(adapter.trunk(inputs), branch))
            logits[branch], _ = METHODS.task.pair(adapter(inputs, branch), targets)
            torch.testing.assert_close(found, logits[branch], atol=2e-5, rtol=0)
        for name in outside:
            adapter.parameters_of["local"][name].zero_()
        blind, _ = METHODS.task.pair(adapter(inputs, "local"), targets)
    assert (blind - logits["local"]).abs().max() > 1e-3


def test_the_step_is_the_literal_one_on_stock_peft(backbone, batch):
    inputs, targets = batch
    take_the_literal_steps(differing(backbone), backbone, inputs, inputs, targets)


@pytest.mark.parametrize("branch", ["student", "local"])
def test_what_a_branch_writes_is_what_the_stock_model_generates(backbone, conversations, branch):
    adapter = differing(backbone)
    questions = conversations.questions(torch.arange(3), CPU)
    assert not questions["attention_mask"].all()
    with adapter.branch(branch), torch.no_grad():
        parts = AnswerPositions(adapter.model)
        found = parts.write(parts.trunk(questions), set(), 5)
        for row in range(3):
            one = conversations.questions(torch.tensor([row]), CPU)
            one = {n: v.float() if v.is_floating_point() else v for n, v in one.items()}
            whole = adapter.model.generate(
                **one, do_sample=False, max_new_tokens=5, min_new_tokens=5, eos_token_id=None, pad_token_id=0
            )
            assert found[row] == whole[0, one["input_ids"].shape[1] :].tolist()


def test_blocks_that_are_computed_again_are_so_under_their_branch(opened, batch):
    backbone = opened("language vision")
    ends = []
    for step, again in ((reference_step, False), (mkd_step, True)):
        adapter = differing(backbone, "bottleneck")
        if again:
            recompute_blocks(adapter)
        optimizer = make_optimizer(adapter, RATE, 0.0)
        for _ in range(STEPS):
            step(adapter, optimizer, *batch, METHODS)
        ends.append({**adapter.shared(), **adapter.private()})
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=5e-5, rtol=0)


def test_a_part_without_a_place_is_refused_by_name(opened, name):
    backbone = opened("connector")
    line = (
        "adapter = '{}' with adapted-parts = 'connector': no place for it is found in a connector of .*; all"
    )
    with pytest.raises(ValueError, match=line.format("bottleneck")):
        Adapter("bottleneck", 4).config(backbone)
    if name == "Gemma 3":  # a matrix, but no layer
        with pytest.raises(ValueError, match=line.format("lora")):
            Adapter("lora").config(backbone)


def test_a_model_without_a_vision_tower_is_refused_by_name():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    for parts, part in (("vision", "vision tower"), ("language connector", "connector")):
        with pytest.raises(
            ValueError, match=f"no place for it is found in a {part} of LlamaForCausalLM; allow"
        ):
            Generative(parts).lora_places(model)


def test_other_families_have_no_such_parts(small_backbone):
    with pytest.raises(ValueError, match="adapted-parts = 'language vision'; allowed: 'language'"):
        load_backbone(str(small_backbone), parts="language vision")
