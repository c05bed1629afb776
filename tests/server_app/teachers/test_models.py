"""Models that know images and language: prompts, tokens, captions, CLIP, and what cannot be loaded."""

import copy
import json
import shutil
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from server_app.teachers.models import Clip, LanguageModel, load_model, locate, render

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ '\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(random_llava, tmp_path_factory) -> LanguageModel:
    folder = shutil.copytree(random_llava, tmp_path_factory.mktemp("plain") / "llava")
    (folder / "chat_template.jinja").unlink()
    return load_model(str(folder), "cpu", max_new_tokens=5)


@pytest.fixture(scope="module")
def templated(random_llava, tmp_path_factory) -> LanguageModel:
    folder = shutil.copytree(random_llava, tmp_path_factory.mktemp("templated") / "llava")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return load_model(str(folder), "cpu", max_new_tokens=5)


class TestPrompt:
    def test_without_a_template_it_is_llavas(self, model):
        assert render(model.processor, "is it red ?") == "USER: <image>\nis it red ? ASSISTANT:"

    def test_a_template_is_used(self, templated):
        assert render(templated.processor, "is it red ?") == "<s>user <image>is it red ?\nassistant\n"

    def test_there_is_one_first_token(self, model, templated, pictures):
        for one in (model, templated):
            ids = one._inputs(pictures[:1], ["what"])["input_ids"][0].tolist()
            assert ids.count(one.tokenizer.bos_token_id) == 1
            assert ids.count(one.model.config.image_token_id) == 9


class TestLanguageModel:
    def test_candidates_are_tokenised_as_a_continuation(self, model, templated):
        words = model.tokenizer.convert_tokens_to_ids
        expected = [[words("red")], [words("red"), words("circle")]]
        assert model.candidate_tokens("what ?", ["red", "red circle"]) == expected
        assert templated.candidate_tokens("what ?", ["red", "red circle"]) == expected

    @pytest.mark.parametrize(("template", "expected"), [(None, " red"), (TEMPLATE, "red")])
    def test_a_space_stands_before_a_candidate_unless_the_prompt_ends_in_one(
        self, model, templated, template, expected
    ):
        """With a tokenizer that sees spaces: a token a character."""

        class Characters:
            pad_token = "."
            special_tokens_map: ClassVar = {}

            def encode(self, text):
                return [ord(character) for character in text]

        processor = copy.copy(templated.processor if template else model.processor)
        processor.tokenizer = Characters()
        (ids,) = LanguageModel(None, processor).candidate_tokens("what ?", ["red"])
        assert "".join(map(chr, ids)) == expected

    def test_scores_are_those_of_a_stock_forward(self, model, random_llava, pictures):
        """Each image alone, the sentence written out by hand, through transformers' own classes."""
        stock = LlavaForConditionalGeneration.from_pretrained(random_llava)
        prompts = ["what color is the circle ?", "red ?"]
        candidates = ["red", "green", "a blue square", "left"]
        scores, lengths = model.log_likelihoods(pictures[:2], prompts, candidates)
        assert lengths.tolist() == [1, 1, 3, 1]
        for row, (picture, prompt) in enumerate(zip(pictures, prompts, strict=False)):
            for column, candidate in enumerate(candidates):
                text = f"USER: <image>\n{prompt} ASSISTANT: {candidate}"
                inputs = model.processor(images=picture, text=text, return_tensors="pt")
                number = int(lengths[column])
                with torch.no_grad():
                    logits = stock(**inputs).logits[0, -number - 1 : -1].log_softmax(-1)
                expected = float(logits.gather(1, inputs["input_ids"][0, -number:, None]).sum())
                assert scores[row, column] == pytest.approx(expected, abs=1e-5)

    def test_captions_are_the_most_likely_tokens(self, model, random_llava, pictures):
        stock = LlavaForConditionalGeneration.from_pretrained(random_llava)
        captions = model.captions(pictures[:3], "describe the picture .")
        assert len(set(captions)) > 1
        for picture, caption in zip(pictures, captions, strict=False):
            text = "USER: <image>\ndescribe the picture . ASSISTANT:"
            inputs = model.processor(images=picture, text=text, return_tensors="pt")
            ids = inputs["input_ids"]
            for _ in range(5):
                with torch.no_grad():
                    logits = stock(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
                if ids.shape[1] == inputs["input_ids"].shape[1]:  # a caption is not empty
                    logits[:, -1, model.tokenizer.eos_token_id] = -torch.inf
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
                if ids[0, -1] == model.tokenizer.eos_token_id:
                    break
            new = ids[0, inputs["input_ids"].shape[1] :]
            assert caption == model.tokenizer.decode(new, skip_special_tokens=True).strip()

    def test_a_grey_picture_is_seen_as_rgb(self, model, pictures):
        grey = pictures[0].convert("L")
        same = [
            model.log_likelihoods([image], ["what"], ["a", "b"])[0] for image in (grey, grey.convert("RGB"))
        ]
        assert torch.equal(*same)

    def test_a_candidate_without_a_token_is_named(self, model):
        with pytest.raises(ValueError, match="candidate '\\\\u200b' has no token"):
            model.candidate_tokens("what ?", ["red", "\u200b"])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    characters = [chr(code) for code in range(97, 123)]
    pieces = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    config = CLIPConfig(
        text_config={**size, "vocab_size": len(pieces), "max_position_embeddings": 24, "eos_token_id": end},
        vision_config={**size, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


class TestClip:
    def test_scores_are_clips_own_logits(self, clip_folder, pictures):
        clip = load_model(str(clip_folder), "cpu")
        assert isinstance(clip, Clip)
        scores, lengths = clip.log_likelihoods(pictures[:2], ["a {} here", "an"], ["cat", "dog", "bird"])
        assert lengths.tolist() == [1, 1, 1]
        for row, texts in enumerate(
            (["a cat here", "a dog here", "a bird here"], ["an cat", "an dog", "an bird"])
        ):
            inputs = clip.processor(text=texts, images=pictures[row], return_tensors="pt", padding=True)
            with torch.no_grad():
                expected = clip.model(**inputs).logits_per_image[0]
            assert scores[row] == pytest.approx(expected, abs=1e-4)
            assert expected.std() > 1e-2

    def test_it_writes_no_captions(self, clip_folder, pictures):
        with pytest.raises(ValueError, match="a CLIP teacher writes no captions"):
            load_model(str(clip_folder), "cpu").captions(pictures, "what")


class TestRevision:
    def test_it_is_the_content_of_a_folder(self, random_llava, tmp_path):
        copied = shutil.copytree(random_llava, tmp_path / "copy")
        assert locate(str(copied)).revision == locate(str(random_llava)).revision
        (copied / "README.md").write_text("a card")
        assert locate(str(copied)).revision == locate(str(random_llava)).revision
        weights = bytearray((copied / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (copied / "model.safetensors").write_bytes(weights)
        assert locate(str(copied)).revision != locate(str(random_llava)).revision

    def test_the_name_of_a_file_counts(self, tmp_path):
        for folder, name in (("one", "a.json"), ("two", "b.json")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / name).write_text("{}")
        assert locate(str(tmp_path / "one")).revision != locate(str(tmp_path / "two")).revision

    def test_it_is_the_commit_of_a_hub_model(self, tmp_path, monkeypatch):
        """A model that the hub's cache has, as huggingface_hub lays it out."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        repository = tmp_path / "models--somebody--llava"
        snapshot = repository / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("c" * 40)
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
        assert locate("somebody/llava") == ("somebody/llava", "c" * 40)


class TestUnloadable:
    def fails(self, name):
        with pytest.raises(ValueError) as caught:
            load_model(name, "cpu")
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"teacher.model = {name!r} cannot be loaded (")
        assert "give the path of a local folder with config.json, weights in safetensors, tokenizer" in line
        return line

    def test_an_unreachable_hub(self, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        self.fails("nobody/such-a-model")

    def test_a_gated_model(self, monkeypatch):
        def refuse(*_, **__):
            raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

        monkeypatch.setattr("server_app.teachers.models.check_hub", lambda name: None)  # it is there
        monkeypatch.setattr("server_app.teachers.models.cached_file", refuse)
        assert "(You are trying to access a gated repo.)" in self.fails("somebody/gated")

    def test_no_such_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        self.fails(str(tmp_path / "none"))

    def test_an_empty_folder(self, tmp_path):
        self.fails(str(tmp_path))

    def test_a_model_of_another_kind(self, small_backbone):
        self.fails(str(small_backbone))

    def test_missing_weights(self, random_llava, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(random_llava, tmp_path / "llava")
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if "multi_modal_projector" in name)
        save_file(
            {k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"}
        )
        assert "no weights for " in self.fails(str(folder))

    def test_pickled_weights(self, random_llava, tmp_path):
        folder = shutil.copytree(random_llava, tmp_path / "llava")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        self.fails(str(folder))
