"""A data set as tensors: what `process` makes of rows, and what a batch holds."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones import load_backbone
from app.examples import process
from data_partitions.partition import FEATURES


def png(color):
    buffer = io.BytesIO()
    Image.new("RGB", (48, 20), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def processor(small_backbone):
    return load_backbone(str(small_backbone)).processor


@pytest.fixture(scope="module")
def examples(processor):
    red, blue = png("red"), png("blue")
    rows = {
        "image": [{"bytes": image, "path": None} for image in (red, blue, red)],
        "question": ["is there a red square ?", "what ?", "what color is the small circle ?"],
        "scores": [[1.0, 0.0], [0.0, 0.3], [0.0, 0.0]],
        "example_id": ["a", "b", "c"],
    }
    return process(datasets.Dataset.from_dict(rows, features=FEATURES), processor)


def test_questions_about_one_picture_share_its_pixels(examples):
    assert len(examples) == 3
    assert examples.image_of.tolist() == [0, 1, 0]
    assert examples.pixels.dtype == torch.uint8
    assert examples.pixels.shape == (2, 3, 32, 32)
    # One colour stays one colour, whatever the resizing.
    assert examples.pixels.flatten(2).float().mean(2).tolist() == [[255, 0, 0], [0, 0, 255]]


def test_scores_are_kept_as_they_are(examples):
    assert examples.scores.dtype == torch.float32
    np.testing.assert_allclose(examples.scores, [[1, 0], [0, 0.3], [0, 0]])


def test_a_batch_is_cut_to_its_longest_text(examples, processor):
    inputs, scores = examples.batch(torch.tensor([1, 0]), torch.device("cpu"))
    texts = processor.tokenizer(["what ?", "is there a red square ?"])["input_ids"]
    longest = max(map(len, texts))
    assert longest < processor.text_length
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, longest)
    for ids, mask, text in zip(inputs["input_ids"], inputs["attention_mask"], texts, strict=True):
        assert ids[mask.bool()].tolist() == text
    assert torch.equal(inputs["pixel_values"], examples.pixels[[1, 0]])
    assert torch.equal(scores, examples.scores[[1, 0]])


def test_a_picture_need_not_be_rgb(processor):
    """Real data has greyscale and transparent pictures."""
    buffer = io.BytesIO()
    Image.new("LA", (8, 8), (51, 255)).save(buffer, "PNG")
    rows = {
        "image": [{"bytes": buffer.getvalue(), "path": None}],
        "question": ["what ?"],
        "scores": [[1.0]],
        "example_id": ["a"],
    }
    examples = process(datasets.Dataset.from_dict(rows, features=FEATURES), processor)
    assert examples.pixels.unique().tolist() == [51]
