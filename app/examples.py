"""Examples as tensors: processed once, then only sliced."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from .processor import Processor

# Not all that Pillow opens: for some formats it starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Stands where there is no picture: one pixel.
_GREY = {"bytes": b"P6 1 1 255\n\x80\x80\x80"}

# Name of an answer list among a model's inputs.
ANSWERS = "answers"

T = TypeVar("T")

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Examples:
    """Some examples, ready for the model.

    Attributes
    ----------
    pixels : Tensor or None
        Distinct images, uint8, shape (images, 3, size, size); None for a backbone that reads texts alone.
    image_of : Tensor or None
        Index into `pixels` for each example, shape (examples,); (examples, pictures) where each has several.
    input_ids, attention_mask : Tensor or None
        Questions, int64, shape (examples, tokens); None for a backbone that sees images alone.
    scores : Tensor
        Answer scores in [0, 1], float32, shape (examples, answers).
    answers : Tensor or None
        What stands for each answer where a backbone reads their texts, shape (answers, ...), see
        `families.Family.answers`; None where a head learns them.
    """

    pixels: Tensor | None
    image_of: Tensor | None
    input_ids: Tensor | None
    attention_mask: Tensor | None
    scores: Tensor
    answers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def num_answers(self) -> int:
        """Length of the answer list."""
        return self.scores.shape[1]

    @property
    def pictures(self) -> int:
        """How many pictures each has."""
        return 1 if self.image_of is None or self.image_of.ndim == 1 else self.image_of.shape[1]

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model inputs and answer scores of some rows, texts cut to the longest among them."""
        inputs: dict[str, Tensor] = {}
        if self.pixels is not None and self.image_of is not None:
            inputs["pixel_values"] = self.pixels[self.image_of[rows]]
        if self.input_ids is not None and self.attention_mask is not None:
            mask = self.attention_mask[rows]
            longest = int(mask.sum(1).max())
            inputs |= {"input_ids": self.input_ids[rows, :longest], "attention_mask": mask[:, :longest]}
        if self.answers is not None:
            inputs[ANSWERS] = self.answers
        return {key: send(value, device) for key, value in inputs.items()}, send(self.scores[rows], device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; a GPU fetches it from pinned memory while the host goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def process(rows: "Dataset", processor: Processor, pictures: int = 0) -> Examples:
    """Decode, resize and tokenise rows with columns images (or one image), question, scores.

    Questions about one picture share its pixels. Where an example has no picture, a grey one stands for each.

    Parameters
    ----------
    rows : Dataset
        They are named in errors by their ``example_id``, if they have one.
    processor : Processor
        The backbone's.
    pictures : int
        How many pictures an example has, if it has any. 0: as many as one of these rows has at most.

    Raises
    ------
    ValueError
        A picture cannot be decoded, or a row has another number of them.
    """
    # As Arrow a picture is the bytes that it is stored as.
    columns = rows.with_format("arrow")[:]
    pixels, image_of = None, None
    if processor.image_size:
        if "images" in columns.column_names:
            stored = columns["images"].to_pylist()
        else:
            stored = [[image] for image in columns["image"].to_pylist()]
        pixels, image_of = _pictures(stored, _number(columns, stored, pictures), processor)
    texts = processor.texts(columns["question"].to_pylist())
    return Examples(
        pixels=pixels,
        image_of=image_of,
        input_ids=texts.get("input_ids"),
        attention_mask=texts.get("attention_mask"),
        scores=torch.tensor(columns["scores"].to_pylist(), dtype=torch.float32),
    )


def _number(columns: Any, stored: Sequence[Sequence[dict]], pictures: int) -> int:
    """Return how many pictures each row has, if any; a ValueError names the first that has fewer."""
    pictures = max(1, pictures, *map(len, stored))
    for row, images in enumerate(stored):
        if len(images) not in (0, pictures):
            named = "example_id" in columns.column_names
            name = columns["example_id"][row].as_py() if named else f"example {row}"
            raise ValueError(
                f"{name}: {len(images)} in column 'images', where others of this client have {pictures};"
                " allowed: as many in each row, or none; or a backbone that writes, which takes any number"
            )
    return pictures


def _pictures(stored: Sequence[list[dict]], number: int, processor: Processor) -> tuple[Tensor, Tensor]:
    """Return distinct pictures, and which of them each row has."""
    pixels: list[Tensor] = []
    index_of: dict[bytes, int] = {}
    image_of: list[list[int]] = []
    for images in stored:
        own = []
        for image in images or [_GREY] * number:
            key = hashlib.sha256(image["bytes"]).digest()
            if key not in index_of:
                index_of[key] = len(pixels)
                made = decoded([image], len(image_of), lambda opened: processor.image(opened[0]))
                pixels.append(made)
            own.append(index_of[key])
        image_of.append(own)
    found = torch.tensor(image_of)
    return torch.stack(pixels), found[:, 0] if number == 1 else found


def decoded(stored: Sequence[dict], example: int, make: Callable[[list[Image.Image]], T]) -> T:
    """Return what is made of an example's pictures; ValueError names it if one cannot be decoded."""
    try:
        return make([Image.open(BytesIO(image["bytes"]), formats=FORMATS) for image in stored])
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image of example {example} cannot be decoded ({reason})") from None
