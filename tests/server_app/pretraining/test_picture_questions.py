"""Questions about labelled photographs: true of what they show, and of no picture that a client holds."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from server_app.pretraining.picture_questions import PLACES, TURNED, Photograph, ask, load_photographs

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}
FEATURES = datasets.Features(
    image=datasets.Image(), label_name=datasets.Value("string"), split=datasets.Value("string")
)


def encoded(image, form="PNG"):
    image.save(file := io.BytesIO(), form)
    return {"bytes": file.getvalue(), "path": None}


def written(path, images, labels=None, splits=None):
    rows = {"image": images, "label_name": labels or ["dog"] * len(images)}
    datasets.Dataset.from_dict(
        {**rows, "split": splits or ["train"] * len(images)}, features=FEATURES
    ).to_parquet(path)
    return path


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(100)]


def pixels(photographs):
    return {one.image.tobytes() for one in photographs}


def test_only_training_rows_are_read_and_some_are_held_out(tmp_path, pictures):
    splits = ["test", "val"] + ["train"] * 98
    labels = ["maple_tree", *["dog"] * 98, "maple_tree"]
    path = written(tmp_path / "all.parquet", [encoded(image) for image in pictures], labels, splits)
    learnt, aside = load_photographs(path)
    assert (len(learnt), len(aside)) == (93, 5)
    assert pixels(learnt) | pixels(aside) == {image.tobytes() for image in pictures[2:]}
    assert not pixels(learnt) & pixels(aside)
    assert learnt[-1].label == "maple tree"


def test_a_picture_of_the_clients_is_left_out_whatever_its_format(tmp_path, pictures):
    path = written(tmp_path / "all.parquet", [encoded(image) for image in pictures])
    theirs = [
        written(tmp_path / f"{form}.parquet", [encoded(image, form) for image in some], splits=["test"] * 5)
        for form, some in (("BMP", pictures[:5]), ("TIFF", pictures[50:55]))
    ]
    learnt, aside = load_photographs(path, theirs)
    assert pixels(learnt) | pixels(aside) == {image.tobytes() for image in pictures[5:50] + pictures[55:]}


@pytest.mark.parametrize(
    ("column", "said"),
    [("label_name", "has no column 'label_name'; it has image, split"), ("image", "has no column 'image'")],
)
def test_a_file_without_a_column_is_refused(tmp_path, pictures, column, said):
    path = written(tmp_path / "all.parquet", [encoded(image) for image in pictures])
    datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).remove_columns(column).to_parquet(path)
    with pytest.raises(ValueError, match=said):
        load_photographs(path)


def test_files_that_cannot_teach_are_refused(tmp_path, pictures):
    (damaged := tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"damaged\.parquet is not a readable parquet file"):
        load_photographs(damaged)
    path = written(tmp_path / "all.parquet", [encoded(image) for image in pictures])
    with pytest.raises(ValueError, match="has 0 pictures to learn from; allowed: 80 or more"):
        load_photographs(path, [path])
    broken = [{"bytes": encoded(image)["bytes"][:40], "path": None} for image in pictures]
    with pytest.raises(ValueError, match="has 0 pictures to learn from"):
        load_photographs(written(tmp_path / "broken.parquet", broken))


def lit_from_above(colour):
    image = Image.new("RGB", (32, 32))
    image.paste(colour, (0, 0, 32, 16))
    return image


def test_each_answer_is_true_of_the_picture():
    """Photographs are lit above and dark below, in their label's colour, so that pixels tell every answer."""
    photographs = [Photograph(lit_from_above(colour), name) for name, colour in COLOURS.items()]
    asked = ask(photographs, 400, seed=0)
    kinds = set()
    # A spot that is lit and one that is dark, by how the picture was turned.
    above, left, below, right = (32, 4), (4, 32), (32, 59), (59, 32)
    lit = dict(zip(TURNED, ((above, below), (left, right), (below, above), (right, left)), strict=True))
    corners = dict(zip(PLACES, ((16, 2), (48, 2), (16, 34), (48, 34)), strict=True))
    for image, question, answer in zip(*asked.values(), strict=True):
        assert image.size == (64, 64)
        if answer in TURNED and "turned" in question:
            assert [max(image.getpixel(spot)) > 100 for spot in lit[answer]] == [True, False]
            kinds.add("turned")
        elif question.startswith("where is the "):
            colour = COLOURS[question.removeprefix("where is the ").removesuffix("?")]
            assert [place for place, spot in corners.items() if image.getpixel(spot) == colour] == [answer]
            kinds.add("where")
        elif question.startswith("what is at the "):
            place = question.removeprefix("what is at the ").removesuffix("?")
            assert image.getpixel(corners[place]) == COLOURS[answer]
            kinds.add("what")
        elif question.startswith("is this a "):
            said = question.removeprefix("is this a ").removesuffix("?")
            assert (image.getpixel((32, 4)) == COLOURS[said]) == (answer == "yes")
            kinds.add(answer)
        else:
            assert image.getpixel((32, 4)) == COLOURS[answer]
            kinds.add("name")
    assert kinds == {"turned", "where", "what", "yes", "no", "name"}


def test_the_seed_decides_the_questions():
    photographs = [Photograph(lit_from_above(colour), name) for name, colour in COLOURS.items()]
    first, again, other = (ask(photographs, 30, seed)["question"] for seed in (0, 0, 1))
    assert first == again != other
