"""Batches of masked captions: what is asked, and in which order."""

import pytest
import torch

from app.backbones import load_backbone
from server_app.pretraining.caption_batches import CaptionedImages, batches, exchange_phrase, make_batch
from server_app.pretraining.masked_captions import build_tokenizer

FULL = "top left small red plain circle , right large blue striped square"
SHORT = "the red circle is left of the square"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def processor(small_backbone):
    from dataclasses import replace

    plain = load_backbone(str(small_backbone)).processor
    return replace(plain, tokenizer=build_tokenizer([FULL, SHORT] * 3000, vocabulary=500), text_length=24)


@pytest.fixture
def data():
    """Eight images, of one colour each; the later a picture, the longer its description."""
    captions = [[FULL + " , bottom small red plain circle" * index, SHORT] for index in range(8)]
    return CaptionedImages(torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 32, 32), captions)


def test_an_exchanged_phrase_makes_another_sentence_of_the_same_form(generator):
    drawn = {exchange_phrase(SHORT, generator) for _ in range(200)}
    assert SHORT not in drawn
    assert "the red circle is right of the square" in drawn
    assert "the red circle is left of the star" in drawn
    # "left" alone is a place; within "left of" it is not.
    assert all("left of" in text or "right of" in text for text in drawn)
    assert exchange_phrase("nothing to exchange", generator) is None


def test_only_what_the_picture_tells_is_masked_and_of_descriptions_few_places(data, processor, generator):
    tokenizer = processor.tokenizer
    hidden: dict[bool, set[str]] = {True: set(), False: set()}
    for full in (True, False):
        for _ in range(20):
            batch = make_batch(data, range(8), processor, generator, full=full)
            masked = batch.words >= 0
            assert torch.equal(masked, batch.inputs["input_ids"] == tokenizer.mask_token_id)
            assert not masked[8 * 2 // 3 :].any()
            assert (batch.matches[: 8 * 2 // 3] == -100).all()
            assert set(batch.matches[8 * 2 // 3 :].tolist()) <= {0, 1}
            hidden[full] |= set(tokenizer.convert_ids_to_tokens(batch.words[masked].tolist()))
    looks = {"small", "red", "plain", "circle", "large", "blue", "striped", "square"}
    assert hidden[True] == looks | {"left", "right"}  # but neither "top" nor "bottom"
    assert hidden[False] == {"red", "circle", "left", "square"}


def test_the_simplest_pictures_come_first_and_all_at_the_end(data, processor, generator):
    drawn = (batch.inputs["pixel_values"] for batch in batches(data, 1, 100, processor, generator))
    seen = [set(pixels[:, 0, 0, 0].tolist()) for pixels in drawn]
    assert set().union(*seen[:20]) == {0}
    assert set().union(*seen[70:]) == set(range(8))
