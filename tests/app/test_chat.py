"""Conversations by a model's own chat template: what is told, what is cut, what is refused."""

import copy
import dataclasses
import shutil

import pytest
import torch
from PIL import Image
from tokenizers import processors

from app.backbones import load_backbone
from tests.app.tiny_generative import IMAGE, MODELS, TEMPLATE, made, pictures_alone

RED = Image.new("RGB", (40, 24), "red")


def said(role, *parts):
    content = [{"type": "image"} if part is RED else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


TWO_TURNS = [
    said("user", RED, "what color ?"),
    said("assistant", "red"),
    said("user", "is there a square ?"),
    said("assistant", "no"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made("LLaVA", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def processor(folder):
    return load_backbone(str(folder)).processor


@pytest.mark.parametrize("name", MODELS)
def test_every_answer_of_several_turns_is_told_and_nothing_else(name, tmp_path):
    with pictures_alone():
        processor = load_backbone(str(made(name, tmp_path))).processor
        one = processor.conversation(TWO_TURNS, [RED])
        stock = processor.processor
        asked = stock.apply_chat_template(TWO_TURNS[:1], add_generation_prompt=True, tokenize=False)
        prompt = stock(images=[RED], text=[asked], return_tensors="pt")["input_ids"][0]
    words = [processor.tokenizer.decode(tokens) for tokens in one.tokens[one.told].split(2)]
    assert words == ["red</s>", "no</s>"] or words == ["red </s>", "no </s>"]
    # What comes before the first answer is what the stock processor makes of the prompt alone.
    assert torch.equal(one.tokens[: len(prompt)], prompt)
    assert int(one.told.nonzero()[0]) == len(prompt)
    assert one.told.sum() == 4


def test_pictures_of_later_turns_are_put_where_they_are_shown(processor):
    blue = Image.new("RGB", (40, 24), "blue")
    later = [*TWO_TURNS[:2], said("user", RED, "what color ?"), said("assistant", "blue")]
    one = processor.conversation(later, [RED, blue])
    places = (one.tokens == IMAGE).nonzero().flatten()
    first = int(one.told.nonzero()[0])
    assert len(places) == 8
    assert (places < first).sum() == 4
    apart = [processor.conversation(TWO_TURNS[:2], [picture]).pictures for picture in (RED, blue)]
    assert torch.equal(one.pictures["pixel_values"], torch.cat([part["pixel_values"] for part in apart]))


def test_an_answer_without_an_end_gets_one(folder):
    processor = load_backbone(str(folder)).processor
    stock = processor.processor
    template, stock.chat_template = stock.chat_template, stock.chat_template.replace("</s>", "")
    try:
        one = processor.conversation(TWO_TURNS[:2], [RED])
        assert one.tokens[one.told].tolist()[-1] == 2
        assert one.told.sum() == 2
    finally:
        stock.chat_template = template


REFUSED = {
    "no answer": (TWO_TURNS[:1], [RED], "a conversation without an answer"),
    "no question": ([said("assistant", "red")], [], "a conversation that begins with an answer"),
    "a picture too many": (TWO_TURNS, [RED, RED], "2 pictures for a conversation with places for 1"),
    "a place too many": (TWO_TURNS, [], "0 pictures for a conversation with places for 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_conversation_is_refused(processor, case):
    messages, images, line = REFUSED[case]
    with pytest.raises(ValueError, match=line):
        processor.conversation(messages, images)


TEMPLATES = {
    "a conversation that is an answer alone": "{{ messages[1]['content'][0]['text'] if messages[1] }}",
    "its chat template writes a prompt otherwise where an answer follows": "{{ messages | length }}",
}


@pytest.mark.parametrize("line", TEMPLATES)
def test_a_template_that_tells_everything_or_changes_the_prompt_is_refused(processor, line):
    other = copy.deepcopy(processor)
    other.processor.chat_template = TEMPLATES[line]
    other.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(ValueError, match=line):
        other.conversation([said("user", "what ?"), said("assistant", "red")], [])


class TestLength:
    def conversation(self, processor, answer="a small red circle"):
        return processor.conversation([said("user", RED, "what ?"), said("assistant", answer)], [RED])

    def test_a_longer_one_than_the_model_reads_is_refused(self, processor):
        with pytest.raises(ValueError, match=r"a conversation of \d+ tokens, of which the model reads 128"):
            self.conversation(processor, "red " * 120)

    def test_a_setting_cuts_the_end_of_its_answer(self, processor):
        whole = self.conversation(processor)
        cut = self.conversation(processor.cut(len(whole.tokens) - 3))
        assert torch.equal(cut.tokens, whole.tokens[:-3])
        assert cut.told.sum() == whole.told.sum() - 3
        assert self.conversation(processor.cut(200)).tokens.tolist() == whole.tokens.tolist()

    def test_what_would_cut_a_picture_or_all_of_the_answer_is_refused_by_the_settings_name(self, processor):
        whole = self.conversation(processor)
        first = int(whole.told.nonzero()[0])
        self.conversation(processor.cut(first + 1))
        line = rf"max-tokens = {first} cuts off a whole answer; allowed: 0, or {first + 1} and more"
        with pytest.raises(ValueError, match=line):
            self.conversation(processor.cut(first))
        last = int((whole.tokens == IMAGE).nonzero().max())
        with pytest.raises(ValueError, match=rf"max-tokens = {last} cuts off a picture"):
            self.conversation(processor.cut(last))


def test_a_vocabulary_that_grew_is_refused(processor):
    smaller = dataclasses.replace(processor, vocabulary=12)
    with pytest.raises(
        ValueError, match=r"token \d+ of a tokenizer whose vocabulary grew: the model knows 12"
    ):
        smaller.conversation(TWO_TURNS, [RED])


class TestLoading:
    def altered(self, folder, tmp_path, change):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        change(copy)
        load_backbone.cache_clear()
        with pytest.raises(ValueError, match="backbone = ") as error:
            load_backbone(str(copy))
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_model_without_a_chat_template_is_refused(self, folder, tmp_path):
        line = self.altered(folder, tmp_path, lambda copy: (copy / "chat_template.jinja").unlink())
        assert "(it has no chat template)" in line

    def test_a_model_without_pictures_in_its_processor_is_refused(self, folder, tmp_path):
        def change(copy):
            for name in ("processor_config.json", "preprocessor_config.json"):
                (copy / name).unlink(missing_ok=True)

        assert "image processor" in self.altered(folder, tmp_path, change)

    def test_the_template_and_the_cut_are_in_the_fingerprint(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", "<image> :"))
        load_backbone.cache_clear()
        prints = {
            load_backbone(str(folder)).fingerprint,
            load_backbone(str(folder), max_tokens=40).fingerprint,
            load_backbone(str(folder), precision="bfloat16").fingerprint,
            load_backbone(str(tmp_path / "copy")).fingerprint,
        }
        assert len(prints) == 4
