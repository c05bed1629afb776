"""Whatever lies in a site's files is read or refused in one line; a row that passes can be trained on."""

import io
import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.examples import process
from app.processor import Processor
from data_partitions import pictures, vqa_files
from data_partitions.vqa_files import check_columns, domain_name, good_rows, read_images

STRANGE_EXIF = [b"Exif\0\0" + b"nonsense" * 4, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\xff\xff\xff\xff"]


def encoded(image=None, kind="PNG", **options):
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 8), "red")).save(buffer, kind, **options)
    return buffer.getvalue()


def rows(count=6, **changed):
    """Make good rows; `changed` goes into the second."""
    made = [
        {
            "image": {"bytes": encoded(Image.new("RGB", (8, 8), (n, 0, 0))), "path": f"{n}.png"},
            "image_id": str(n),
            "question": f"what is {n}?",
            "answer": "yes",
            "split": "train",
            "domain": "x-ray",
        }
        for n in range(count)
    ]
    made[1] |= changed
    return made


def written(path, made):
    pq.write_table(pa.Table.from_pylist(made) if isinstance(made, list) else made, path)
    return path


def with_bytes(column, value):
    """Make a table whose second row has bytes in a column of text."""
    table = pa.Table.from_pylist(rows())
    texts = [value if n == 1 else text.encode() for n, text in enumerate(table[column].to_pylist())]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    array = pa.StringArray.from_buffers(
        len(texts), pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))
    )
    return table.set_column(table.schema.get_field_index(column), column, array)


def refusal(path):
    with pytest.raises(ValueError) as caught:
        good_rows(path, "error")
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(path):
    good, skipped = good_rows(path, "skip")
    return good["row"], sum(skipped.values())


def trainable(path):
    """Process the good rows as a client does."""
    good, _ = good_rows(path, "skip")
    pictures = read_images(path, good["row"])
    made = datasets.Dataset.from_dict(
        {
            "images": [[pictures[row]] for row in good["row"]],
            "question": good["question"],
            "scores": [[1.0]] * len(good),
        },
        features=datasets.Features(
            images=datasets.List(datasets.Image()),
            question=datasets.Value("string"),
            scores=datasets.List(datasets.Value("float32")),
        ),
    )
    return len(process(made, Processor(None, 4, 0, (0.5,) * 3, (0.5,) * 3)))


@pytest.mark.parametrize("exif", STRANGE_EXIF)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_passes_can_be_trained_on(tmp_path, exif, kind):
    """Its EXIF is read when it is turned upright."""
    picture = {"bytes": encoded(kind=kind, exif=exif), "path": None}
    path = written(tmp_path / "a.parquet", rows(image=picture))
    assert trainable(path) == len(kept(path)[0])


def test_an_exif_that_cannot_be_read_is_a_bad_row(tmp_path):
    picture = {"bytes": encoded(exif=STRANGE_EXIF[0]), "path": None}
    path = written(tmp_path / "a.parquet", rows(image=picture))
    assert refusal(path).startswith("data-dir: a.parquet row 1: image cannot be decoded (")
    assert kept(path) == ([0, 2, 3, 4, 5], 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_pixels_that_passes_can_be_trained_on(tmp_path, mode):
    picture = {"bytes": encoded(Image.new(mode, (8, 8)), "TIFF"), "path": None}
    path = written(tmp_path / "a.parquet", rows(image=picture))
    assert trainable(path) == len(kept(path)[0])


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    picture = {"bytes": encoded(Image.new("1", (13_000, 13_000))), "path": None}
    path = written(tmp_path / "a.parquet", rows(image=picture))
    load = Image.Image.convert
    monkeypatch.setattr(
        Image.Image,
        "convert",
        lambda image, *mode: load(image, *mode) if image.width < 99 else pytest.fail("decoded"),
    )
    assert refusal(path).startswith(
        "data-dir: a.parquet row 1: image has 169000000 pixels, more than LARGEST_IMAGE = 64000000 ("
    )
    assert kept(path)[1] == 1


@pytest.mark.parametrize("column", ["question", "answer", "image_id", "split"])
def test_a_text_without_end_is_a_bad_row(tmp_path, column):
    path = written(tmp_path / "a.parquet", rows(**{column: "a " * 5_001}))
    assert refusal(path).startswith(
        f"data-dir: a.parquet row 1: {column} has 10002 characters, more than LONGEST_TEXT = 10000 ("
    )
    assert kept(path) == ([0, 2, 3, 4, 5], 1)


@pytest.mark.parametrize("column", ["question", "answer", "image_id", "split"])
def test_what_is_not_utf8_is_a_bad_row(tmp_path, column):
    path = written(tmp_path / "a.parquet", with_bytes(column, b"\xff\xfe what"))
    assert refusal(path).startswith(f"data-dir: a.parquet row 1: {column} is not UTF-8 (")
    assert kept(path) == ([0, 2, 3, 4, 5], 1)


def test_a_domain_that_is_not_utf8_is_named(tmp_path):
    table = with_bytes("domain", b"x")
    swapped = table.take([1, 0, 2, 3, 4, 5])
    bad = with_bytes("domain", b"\xff").slice(1)
    assert domain_name(written(tmp_path / "a.parquet", swapped)) == "x"
    with pytest.raises(ValueError, match=r"^data-dir: b.parquet column 'domain' cannot be read \("):
        domain_name(written(tmp_path / "b.parquet", bad))


def test_a_path_that_is_not_utf8_is_nobodys_business(tmp_path):
    table = pa.Table.from_pylist(rows())
    images = table["image"].combine_chunks()
    paths = with_bytes("image_id", b"\xff")["image_id"].combine_chunks()
    struct = pa.StructArray.from_arrays([images.field("bytes"), paths], ["bytes", "path"])
    path = written(tmp_path / "a.parquet", table.set_column(0, "image", struct))
    assert kept(path) == ([0, 1, 2, 3, 4, 5], 0)


def damage(whole, seed):
    """Flip some bits, every other time in the file's own description, which lies at its end."""
    draw = random.Random(seed)
    damaged = bytearray(whole)
    for _ in range(draw.choice((1, 1, 4))):
        place = draw.randrange(len(whole)) if seed % 2 else draw.randrange(len(whole) - 2500, len(whole))
        damaged[place] ^= 1 << draw.randrange(8)
    return damaged


def outcome_of(path):
    try:
        check_columns(path)
        domain_name(path)
        good, _ = good_rows(path, "skip")
        read_images(path, good["row"])
    except Exception as error:
        return error
    return None


def test_a_file_with_a_flipped_bit_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    whole = []
    for compression in ("none", "snappy", "zstd"):
        pq.write_table(pa.Table.from_pylist(rows(24)), path, compression=compression, row_group_size=8)
        whole.append(path.read_bytes())
    outcomes = {}
    for seed in range(400):
        path.write_bytes(damage(whole[seed % 3], seed))
        outcomes[seed] = outcome_of(path)
    refused = {seed: error for seed, error in outcomes.items() if error is not None}
    assert 50 < len(refused) < 400
    assert {seed: error for seed, error in refused.items() if type(error) is not ValueError} == {}
    lines = [str(error) for error in refused.values()]
    assert all(line.startswith("data-dir: a.parquet") and "\n" not in line for line in lines)


def test_the_limits_are_what_the_texts_say():
    assert (pictures.LARGEST_IMAGE, vqa_files.LONGEST_TEXT) == (64_000_000, 10_000)
