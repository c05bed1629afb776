"""Questions about photographs whose label is all that is known: what they show, which way up, and where.

A classifier's pretraining would leave the words unread; here each label becomes questions, so that picture
and words are learnt together. Which way a picture is turned is a task that needs no label (Gidaris et al.,
2018, arXiv 1803.07728).
"""

import hashlib
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from data_partitions.pictures import image_fault

COLUMNS = ("image", "label_name", "split")
HELD_OUT_SHARE = 0.05
SIDE = 64  # pixels of a question's picture
NAME_QUESTIONS = ("what is this?", "what is shown?", "what is in the picture?", "which thing can be seen?")
TURNED = ("upright", "left", "upside down", "right")  # by how many quarters, counter-clockwise
PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Photograph:
    """A picture (RGB) and what it shows."""

    image: Image.Image
    label: str


def load_photographs(
    path: Path, apart_from: Sequence[Path] = ()
) -> tuple[list[Photograph], list[Photograph]]:
    """Read the training rows of a parquet file, but for pictures that other files have.

    Parameters
    ----------
    path : Path
        Columns image (struct with bytes), label_name and split; only rows whose split is ``train`` are read.
    apart_from : sequence of Path
        Parquet files with a column image, such as the clients': a picture that is in them, pixel for pixel,
        is left out.

    Returns
    -------
    tuple of list of Photograph
        What to learn from, and one in twenty, `HELD_OUT_SHARE`, to measure on.

    Raises
    ------
    ValueError
        A file that cannot be read or lacks a column, or too few pictures.
    """
    theirs = {_pixels(image) for other in apart_from for (image,) in _rows("--apart-from", other, ("image",))}
    photographs = [
        Photograph(image, label.replace("_", " "))
        for image, label, split in _rows("--pictures", path, COLUMNS)
        if split == "train" and label and _pixels(image) not in theirs
    ]
    if (held_out := round(HELD_OUT_SHARE * len(photographs))) < 4:
        raise ValueError(
            f"--pictures {path} has {len(photographs)} pictures to learn from; allowed: 80 or more"
        )
    return photographs[held_out:], photographs[:held_out]


def ask(photographs: Sequence[Photograph], number: int, seed: int) -> dict[str, list]:
    """Ask `number` questions, each about one photograph or four: columns image, question, answer."""
    rng, labels = random.Random(seed), sorted({one.label for one in photographs})

    def asked() -> Iterator[tuple[Image.Image, str, str]]:
        for _ in range(number):
            (about,) = rng.choices((_name, _is_it, _turned, _four), weights=(4, 2, 1, 3))
            yield about(rng, photographs, labels)

    return dict(zip(("image", "question", "answer"), map(list, zip(*asked(), strict=True)), strict=True))


def _name(
    rng: random.Random, photographs: Sequence[Photograph], labels: Sequence[str]
) -> tuple[Image.Image, str, str]:
    one = rng.choice(photographs)
    return _cropped(rng, one.image, SIDE), rng.choice(NAME_QUESTIONS), one.label


def _is_it(
    rng: random.Random, photographs: Sequence[Photograph], labels: Sequence[str]
) -> tuple[Image.Image, str, str]:
    one = rng.choice(photographs)
    said = one.label if rng.random() < 0.5 else rng.choice(labels)
    return _cropped(rng, one.image, SIDE), f"is this a {said}?", "yes" if said == one.label else "no"


def _turned(
    rng: random.Random, photographs: Sequence[Photograph], labels: Sequence[str]
) -> tuple[Image.Image, str, str]:
    quarters = rng.randrange(4)
    image = _cropped(rng, rng.choice(photographs).image, SIDE).rotate(90 * quarters)
    return image, "which way is the picture turned?", TURNED[quarters]


def _four(
    rng: random.Random, photographs: Sequence[Photograph], labels: Sequence[str]
) -> tuple[Image.Image, str, str]:
    """Four pictures in one; what is at a place, or at which place something is."""
    shown, half = rng.sample(photographs, 4), SIDE // 2
    image = Image.new("RGB", (SIDE, SIDE))
    for place, one in enumerate(shown):
        image.paste(_cropped(rng, one.image, half), (half * (place % 2), half * (place // 2)))
    place, said = rng.randrange(4), [one.label for one in shown]
    if said.count(said[place]) == 1 and rng.random() < 0.5:
        return image, f"where is the {said[place]}?", PLACES[place]
    return image, f"what is at the {PLACES[place]}?", said[place]


def _cropped(rng: random.Random, image: Image.Image, side: int) -> Image.Image:
    """Return most of a picture, or of its mirror image, as a square of `side` pixels."""
    width, height = image.size
    kept = rng.uniform(0.75, 1.0)
    left, top = rng.uniform(0, 1 - kept) * width, rng.uniform(0, 1 - kept) * height
    box = (left, top, left + kept * width, top + kept * height)
    cut = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def _pixels(image: Image.Image) -> bytes:
    """Return a hash of a picture's size and pixels, whatever its file's format."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def _rows(option: str, path: Path, columns: Iterable[str]) -> Iterator[tuple]:
    """Yield the `columns` of a file's rows, the first of them decoded, but for rows of broken pictures."""
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # A damaged file makes its reader raise whatever it will.
        raise ValueError(f"{option} {path} is not a readable parquet file ({error})") from None
    if missing := sorted({*columns} - {*file.schema_arrow.names}):
        raise ValueError(
            f"{option} {path} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}"
        )
    for batch in file.iter_batches(256, columns=[*columns]):
        for row in batch.to_pylist():
            encoded = (row.pop("image") or {}).get("bytes") or b""
            if not image_fault(encoded):
                yield Image.open(io.BytesIO(encoded)).convert("RGB"), *row.values()
