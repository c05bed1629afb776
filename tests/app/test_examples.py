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


def dataset_of(rows):
    features = datasets.Features({name: FEATURES[name] for name in rows})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def processor(small_backbone):
    return load_backbone(str(small_backbone)).processor


@pytest.fixture(scope="module")
def examples(processor):
    red, blue = png("red"), png("blue")
    rows = {
        "images": [[{"bytes": image, "path": None}] for image in (red, blue, red)],
        "question": ["is there a red square ?", "what ?", "what color is the small circle ?"],
        "scores": [[1.0, 0.0], [0.0, 0.3], [0.0, 0.0]],
    }
    return process(dataset_of(rows), processor)


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
        "images": [[{"bytes": buffer.getvalue(), "path": None}]],
        "question": ["what ?"],
        "scores": [[1.0]],
    }
    examples = process(dataset_of(rows), processor)
    assert examples.pixels.unique().tolist() == [51]


def test_two_pictures_stand_side_by_side_and_none_is_a_grey_one(processor):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), "blue").save(buffer, "PNG")
    red, wide, blue = png("red"), buffer.getvalue(), png("blue")
    rows = {
        "images": [
            [{"bytes": one, "path": None} for one in images] for images in ([red, blue], [], [red, wide])
        ],
        "question": ["same ?", "what ?", "same ?"],
        "scores": [[1.0], [1.0], [1.0]],
    }
    examples = process(dataset_of(rows), processor)
    assert examples.image_of.tolist() == [0, 1, 2]
    both, none, unequal = examples.pixels
    assert both[:, :, :12].flatten(1).float().mean(1).tolist() == [255, 0, 0]
    assert both[:, :, 20:].flatten(1).float().mean(1).tolist() == [0, 0, 255]
    assert none.unique().tolist() == [128]
    # 48 × 20 and 8 × 4: of one height, 4, they are 9 and 8 wide, so that the first ends at 17 of 32.
    assert unequal[:, :, :14].flatten(1).float().mean(1).tolist() == [255, 0, 0]
    assert unequal[:, :, 20:].flatten(1).float().mean(1).tolist() == [0, 0, 255]


def test_public_examples_have_one_picture_each(processor, examples):
    rows = {
        "image": [{"bytes": png("red"), "path": None}],
        "question": ["what ?"],
        "scores": [[1.0]],
    }
    features = datasets.Features(
        image=datasets.Image(), question=FEATURES["question"], scores=FEATURES["scores"]
    )
    made = process(datasets.Dataset.from_dict(rows, features=features), processor)
    assert torch.equal(made.pixels[0], examples.pixels[0])
