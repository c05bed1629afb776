"""The large frozen models: taken from whatever folder has them, and computing what they compute elsewhere."""

import shutil

import huggingface_hub
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from server_app.pretraining.frozen_models import load_frozen

CPU = torch.device("cpu")


def test_the_encoder_of_a_llava_gives_what_its_projector_gets(llava):
    encoder, _ = load_frozen(str(llava), str(llava), CPU)
    image = Image.radial_gradient("L").convert("RGB").resize((48, 48))
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    pixels = AutoProcessor.from_pretrained(llava).image_processor(image, return_tensors="pt").pixel_values
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model.model.get_image_features(pixel_values=pixels)
    features = encoder(encoder.processor.image(image)[None])
    assert features.shape == (1, 9, 16)
    torch.testing.assert_close(features, seen[0], atol=1e-5, rtol=1e-5)


def test_a_clip_gives_the_patches_of_the_layer_before_the_last(clip, language_model):
    encoder, _ = load_frozen(str(clip), str(language_model), CPU)
    pixels = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    normalised = pixels / 127.5 - 1
    hidden = encoder.model(pixel_values=normalised, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    torch.testing.assert_close(encoder(pixels), hidden[1][:, 1:])


@pytest.mark.parametrize("folder", ["llava", "language_model"])
def test_the_loss_is_that_of_each_caption_alone(request, llava, folder):
    _, model = load_frozen(str(llava), str(request.getfixturevalue(folder)), CPU)
    captions = ["the picture is red", "blue"]
    visual = torch.randn(2, 3, 16)
    nats, count = 0.0, 0
    for row, caption in enumerate(captions):  # without padding, by the model's own loss
        ids = torch.tensor([[*model.tokenizer.encode(caption, add_special_tokens=False), 3]])
        embed = model.model.get_input_embeddings()
        embedded = torch.cat([embed(torch.tensor([[2]])), visual[row : row + 1], embed(ids)], dim=1)
        labels = torch.cat([torch.full((1, 4), -100), ids], dim=1)
        nats += float(model.model(inputs_embeds=embedded, labels=labels).loss) * ids.shape[1]
        count += ids.shape[1]
    assert count == 5 + 2
    loss = model.loss(visual, model.tokens(captions))
    assert float(loss) == pytest.approx(nats / count, rel=1e-5)


def test_nothing_of_them_is_trained(llava):
    encoder, model = load_frozen(str(llava), str(llava), CPU)
    for frozen in (encoder.model, model.model):
        assert not frozen.training
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_folder_named_twice_is_loaded_once(llava):
    encoder, model = load_frozen(str(llava), str(llava), CPU)
    assert encoder.model is model.model.model.vision_tower


def refusal(encoder, language_model):
    with pytest.raises(ValueError) as error:
        load_frozen(str(encoder), str(language_model), CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_such_model_is_named(llava, clip, language_model, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refusal("no-such/clip", llava).startswith("pretrain.encoder = 'no-such/clip' cannot be used (")
    assert refusal("/no/such", llava).startswith("pretrain.encoder = '/no/such' cannot be used (")
    assert "no visual encoder" in refusal(language_model, llava)
    assert refusal(llava, "/none").startswith("pretrain.language-model = '/none' cannot be used (")
    assert "it continues no text" in refusal(llava, clip)
    assert refusal(llava, clip).endswith("of a causal language model, or a LLaVA, whose own is taken")
    without_image_settings = tmp_path / "clip"
    shutil.copytree(clip, without_image_settings, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    assert refusal(without_image_settings, llava).startswith("pretrain.encoder = ")
    without_weights = tmp_path / "llava"
    shutil.copytree(llava, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    assert refusal(without_weights, llava).startswith("pretrain.encoder = ")


def test_a_folder_may_be_named_from_the_users_home(llava, monkeypatch):
    monkeypatch.setenv("HOME", str(llava.parent))
    encoder, language_model = load_frozen(f"~/{llava.name}", f"~/{llava.name}", CPU)
    assert (encoder.name, language_model.name) == (f"~/{llava.name}",) * 2
