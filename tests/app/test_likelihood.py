"""Log-likelihoods from a shared prefill: held to full forwards, of the architectures that teachers have."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from app.likelihood import likeliest_words, log_likelihoods, reference_log_likelihoods, with_others

IMAGE = 50
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT = {**LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60, "pad_token_id": 0}
VISION = {**LAYERS, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
# Rotary positions of three axes; two images of different size.
ROTARY = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
QWEN_VISION |= {"patch_size": 4, "spatial_merge_size": 2}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 53, "vision_start_token_id": 51}
CANDIDATES = [[10], [11, 12], [13, 14, 15, 16], [17, 18, 19], [20]]


def llava():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    return LlavaForConditionalGeneration(config), (16, 16), {"pixel_values": torch.randn(2, 3, 16, 16)}


def llava_onevision():
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 16]],
        vision_feature_layer=-1,
    )
    pixels = {"pixel_values": torch.randn(2, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]] * 2)}
    # The whole, one tile, and the end of each of its rows.
    return LlavaOnevisionForConditionalGeneration(config), (36, 36), pixels


def qwen_pixels():
    return {"pixel_values": torch.randn(40, 96), "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]])}


def qwen2_5_vl():
    vision = {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config={**TEXT, **ROTARY}, vision_config=vision, **QWEN_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config), (4, 6), qwen_pixels()


def qwen3_vl():
    vision = {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    text = {**TEXT, **ROTARY, "head_dim": 8}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)
    return Qwen3VLForConditionalGeneration(config), (4, 6), qwen_pixels()


def smolvlm():
    config = SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, scale_factor=2
    )
    return SmolVLMForConditionalGeneration(config), (4, 4), {"pixel_values": torch.randn(2, 1, 3, 16, 16)}


def internvl():
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT),
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config), (4, 4), {"pixel_values": torch.randn(2, 3, 16, 16)}


def gemma3():
    # One layer sees the last tokens only.
    layers = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    config = Gemma3Config(
        text_config={**TEXT, **layers},
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    return Gemma3ForConditionalGeneration(config), (4, 4), {"pixel_values": torch.randn(2, 3, 16, 16)}


def make(architecture):
    """Return a model with large random weights, and two images with prompts of different length."""
    torch.manual_seed(0)
    model, lengths, pixels = architecture()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompts = [[5, 6, 7, 8, 9], [5, 9]]
    rows = [[1, 51, *[IMAGE] * length, 52, *words] for length, words in zip(lengths, prompts, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), **pixels}
    kind = (ids == IMAGE).long()
    if "image_grid_thw" in pixels:
        inputs["mm_token_type_ids"] = kind
    if isinstance(model, Gemma3ForConditionalGeneration):
        inputs["token_type_ids"] = kind
    return model.eval(), inputs


ARCHITECTURES = [llava, llava_onevision, qwen2_5_vl, qwen3_vl, smolvlm, internvl, gemma3]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("at_once", [2, 16])
def test_a_shared_prefill_gives_what_full_forwards_give(architecture, at_once):
    model, inputs = make(architecture)
    fast = log_likelihoods(model, inputs, [CANDIDATES] * 2, at_once)
    plain = reference_log_likelihoods(model, inputs, CANDIDATES)
    assert (fast - plain).abs().max() <= 1e-5
    assert (plain[0] - plain[1]).abs().max() > 1e-2  # it depends on image and prompt
    assert (plain < 0).all()
    assert fast.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_image_may_have_candidates_of_its_own(architecture):
    model, inputs = make(architecture)
    plain = reference_log_likelihoods(model, inputs, CANDIDATES)
    found = log_likelihoods(model, inputs, [CANDIDATES[3:], CANDIDATES[:3]], at_once=1)
    expected = torch.stack([torch.cat([plain[0, 3:], torch.tensor([-torch.inf])]), plain[1, :3]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_token_is_scored_behind_those_before_it():
    """By hand: one image, no padding, no mask, a forward for every token."""
    model, inputs = make(llava)
    row = {name: value[1:] for name, value in inputs.items()}
    start = row["input_ids"][row["attention_mask"] == 1].tolist()
    expected = []
    for tokens in CANDIDATES:
        total = 0.0
        for place, token in enumerate(tokens):
            ids = torch.tensor([start + tokens[:place]])
            total += (
                model(input_ids=ids, pixel_values=row["pixel_values"]).logits[0, -1].log_softmax(-1)[token]
            )
        expected.append(total)
    assert log_likelihoods(model, inputs, [CANDIDATES] * 2)[1] == pytest.approx(
        torch.tensor(expected), abs=1e-5
    )


def test_an_image_goes_through_the_model_once():
    model, inputs = make(llava)
    seen = []
    model.model.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    log_likelihoods(model, inputs, [CANDIDATES] * 2, at_once=2)
    assert len(seen) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("most", [5, IMAGE])
def test_the_likeliest_words_at_each_token_of_a_text(architecture, most):
    """How likely a word is at a token is told by full forwards of the text up to it and of that word."""
    model, inputs = make(architecture)
    texts = [[13, 14, 15], [20]]
    found = likeliest_words(model, inputs, texts, IMAGE, most, temperature=2.0)
    for image, text in enumerate(texts):
        for place in range(len(text)):
            every = reference_log_likelihoods(model, inputs, [[*text[:place], word] for word in range(IMAGE)])
            chances = (every[image] / 2).softmax(-1)
            highest = chances.topk(most)
            expected = torch.cat([highest.values, 1 - highest.values.sum()[None]])
            told, words = (of_each[place] for of_each in found[image])
            torch.testing.assert_close(told.exp(), expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(chances[words], highest.values, atol=1e-5, rtol=0)
        assert len(found[image][0]) == len(text)


def test_words_past_the_vocabulary_are_not_told_of():
    """Models of one tokenizer may have more rows than it has words, and not equally many."""
    model, inputs = make(llava)
    for told, words in likeliest_words(model, inputs, [[13, 14], [20]], 30, 60):
        assert words.max() < 30
        torch.testing.assert_close(told.exp().sum(-1), torch.ones(len(told)))
        assert (told[:, -1] < -100).all()


def test_others_count_together():
    chances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    found = with_others(chances.log(), torch.tensor([[3, 0]]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.4, 0.1, 0.5]]))
