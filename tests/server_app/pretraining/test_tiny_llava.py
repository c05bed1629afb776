"""A tiny LLaVA: its tokenizer, and what it reads."""

import pytest
import torch

from app.chat import chat_processor
from server_app.pretraining.tiny_llava import (
    IGNORED,
    PATCHES,
    Answered,
    build,
    build_tokenizer,
    patch_words,
)

DESCRIPTION = "top left small red plain square , bottom large blue dotted star"


class TestTokenizer:
    def test_known_words_are_one_token_and_others_are_spelled(self):
        tokenizer = build_tokenizer([DESCRIPTION])
        assert tokenizer.tokenize("Top LEFT red zoo ?") == ["top", "left", "red", "z", "##o", "##o", "?"]
        assert tokenizer.decode(tokenizer("a red zoo").input_ids, skip_special_tokens=True) == "a red zoo"

    def test_one_set_of_words_gives_one_vocabulary(self):
        one, two = (build_tokenizer(texts) for texts in ([DESCRIPTION, "a b"], ["b a", DESCRIPTION]))
        assert one.get_vocab() == two.get_vocab()


class TestData:
    @pytest.fixture(scope="class")
    def answered(self, pictures):
        _, processor = build([DESCRIPTION])
        return Answered.load(pictures[:2], ["red ?", "star ?"], ["red", "blue star"], processor), processor

    def test_the_answer_and_its_end_are_asked_for(self, answered):
        data, processor = answered
        tokenizer = processor.tokenizer
        batch = data.batch([0, 1], tokenizer.pad_token_id)
        asked = [labels[labels != IGNORED] for labels in batch["labels"]]
        assert [tokenizer.decode(ids) for ids in asked] == ["red </s>", "blue star </s>"]
        for labels, ids in zip(batch["labels"], batch["input_ids"], strict=True):
            assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
        assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [PATCHES, PATCHES]
        assert batch["attention_mask"].sum(1).diff() == 1  # one word longer

    def test_inputs_are_what_the_processor_makes(self, answered, pictures):
        data, processor = answered
        text = "USER: <image>\nred ? ASSISTANT: red"
        expected = processor(images=pictures[0], text=text, return_tensors="pt")
        batch = data.batch([0], processor.tokenizer.pad_token_id)
        assert batch["input_ids"][0, :-1].tolist() == expected["input_ids"][0].tolist()
        assert torch.allclose(batch["pixel_values"], expected["pixel_values"], atol=2e-3)

    def test_words_of_patches(self):
        tokenizer = build_tokenizer([DESCRIPTION])
        words = patch_words([DESCRIPTION], tokenizer)
        found = {
            patch: sorted(tokenizer.convert_ids_to_tokens(row.nonzero()[:, 0].tolist()))
            for patch, row in enumerate(words[0])
            if row.any()
        }
        assert found == {
            0: ["left", "plain", "red", "small", "square", "top"],
            7: ["blue", "bottom", "dotted", "large", "star"],
        }

    def test_a_conversation_is_read_the_same_from_its_chat_template(self, answered, pictures):
        data, processor = answered
        chat = chat_processor(processor, build([DESCRIPTION])[0].config)
        asked = [{"type": "image"}, {"type": "text", "text": "star ?"}]
        told = [{"type": "text", "text": "blue star"}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        made = chat.conversation(messages, pictures[1:2])
        assert made.tokens.tolist() == data.prompts[1] + data.answers[1]
        assert made.tokens[made.told].tolist() == data.answers[1]

    def test_other_texts_about_the_same_pictures(self, answered):
        data, processor = answered
        other = data.told(["left ?"] * 2, ["top", "red"], processor)
        assert other.pixels is data.pixels
        assert [processor.tokenizer.decode(ids) for ids in other.answers] == ["top </s>", "red </s>"]
        assert data.answers != other.answers
