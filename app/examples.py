"""Examples as tensors: processed once, then only sliced."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image
from torch import Tensor

from .processor import Processor, upright

# Not all that Pillow opens: for some formats it starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

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
        Index into `pixels` for each example, shape (examples,).
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


def process(rows: "Dataset", processor: Processor) -> Examples:
    """Decode, resize and tokenise rows with columns images (or one image), question, scores.

    Questions about one picture share its pixels. Several pictures stand side by side in one; where there is
    none, a grey one stands for it.
    """
    # As Arrow a picture is the bytes that it is stored as.
    columns = rows.with_format("arrow")[:]
    pixels, image_of = None, None
    if processor.image_size:
        if "images" in columns.column_names:
            stored = columns["images"].to_pylist()
        else:
            stored = [[image] for image in columns["image"].to_pylist()]
        pixels, image_of = _pictures(stored, processor)
    texts = processor.texts(columns["question"].to_pylist())
    return Examples(
        pixels=pixels,
        image_of=image_of,
        input_ids=texts.get("input_ids"),
        attention_mask=texts.get("attention_mask"),
        scores=torch.tensor(columns["scores"].to_pylist(), dtype=torch.float32),
    )


def _pictures(stored: list[list[dict]], processor: Processor) -> tuple[Tensor, Tensor]:
    """Return distinct pictures, and which of them each row has."""
    pixels: list[Tensor] = []
    index_of: dict[tuple[bytes, ...], int] = {}
    image_of: list[int] = []
    for images in stored:
        key = tuple(hashlib.sha256(image["bytes"]).digest() for image in images)
        if key not in index_of:
            index_of[key] = len(pixels)
            made = decoded(images, len(image_of), lambda opened: processor.image(_side_by_side(opened)))
            pixels.append(made)
        image_of.append(index_of[key])
    return torch.stack(pixels), torch.tensor(image_of)


def decoded(stored: Sequence[dict], example: int, make: Callable[[list[Image.Image]], T]) -> T:
    """Return what is made of an example's pictures; ValueError names it if one cannot be decoded."""
    try:
        return make([Image.open(BytesIO(image["bytes"]), formats=FORMATS) for image in stored])
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image of example {example} cannot be decoded ({reason})") from None


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    """Make one picture of any number: of equal height, from left to right."""
    if len(images) == 1:
        return images[0]
    if not images:
        return Image.new("RGB", (1, 1), (128, 128, 128))
    turned = [upright(image) for image in images]
    height = min(image.height for image in turned)
    parts = [image.resize((max(1, image.width * height // image.height), height)) for image in turned]
    whole, left = Image.new("RGB", (sum(part.width for part in parts), height)), 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width
    return whole
