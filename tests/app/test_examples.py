"""A data set as tensors: what `process` makes of rows, and what a batch holds."""

import io
from dataclasses import replace

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


def of_pictures(*rows, **columns):
    """Return a data set with these pictures in each row."""
    return dataset_of(
        {
            "images": [[{"bytes": one, "path": None} for one in images] for images in rows],
            "question": ["same ?"] * len(rows),
            "scores": [[1.0]] * len(rows),
            **columns,
        }
    )


def test_several_pictures_stay_apart_in_their_order_and_none_are_grey_ones(processor):
    red, blue = png("red"), png("blue")
    examples = process(of_pictures([red, blue], [], [blue, red], [red, red]), processor)
    assert examples.pictures == 2
    assert examples.image_of.tolist() == [[0, 1], [2, 2], [1, 0], [0, 0]]
    colours = [[255, 0, 0], [0, 0, 255], [128, 128, 128]]
    assert examples.pixels.flatten(2).float().mean(2).tolist() == colours
    pixels = examples.batch(torch.tensor([2, 1]), torch.device("cpu"))[0]["pixel_values"]
    assert pixels.shape == (2, 2, 3, 32, 32)
    assert torch.equal(pixels, examples.pixels[torch.tensor([[1, 0], [2, 2]])])


def test_a_split_without_pictures_has_as_many_grey_ones_as_the_client_s_other_examples(processor):
    assert process(of_pictures([], []), processor).image_of.tolist() == [0, 0]
    assert process(of_pictures([], []), processor, 3).image_of.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert process(of_pictures([png("red")]), processor, 1).image_of.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "pictures", "named"),
    [
        ([["a", "b"], ["a"], ["b"]], 0, "b.json line 2: 1 "),
        ([["a", "b"], [], ["a", "b", "a"]], 0, "a.json line 1: 2 "),
        ([[], [], ["a"]], 2, "c.json line 3: 1 "),
    ],
)
def test_a_row_with_fewer_pictures_than_others_is_named(processor, rows, pictures, named):
    made = [[png("red" if one == "a" else "blue") for one in row] for row in rows]
    names = ["a.json line 1", "b.json line 2", "c.json line 3"]
    with pytest.raises(ValueError, match=rf"^{named}in column 'images', [^\n]*; allowed: as many in [^\n]*$"):
        process(of_pictures(*made, example_id=names), processor, pictures)


def test_a_backbone_for_texts_alone_minds_no_number_of_pictures(processor):
    reader = replace(processor, image_size=0)
    examples = process(of_pictures([png("red")] * 2, [png("red")], []), reader, 2)
    assert (examples.pixels, examples.image_of, examples.pictures) == (None, None, 1)


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
