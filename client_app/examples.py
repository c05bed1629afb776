"""A client's examples as tensors: processed once, then only sliced."""

import hashlib
from dataclasses import dataclass
from io import BytesIO

import datasets
import torch
from PIL import Image
from torch import Tensor

from app.backbones import Processor


@dataclass(frozen=True)
class Examples:
    """One split of a partition, ready for the model.

    Attributes
    ----------
    pixels : Tensor
        Distinct images, uint8, shape (images, 3, size, size).
    image_of : Tensor
        Index into `pixels` for each example, shape (examples,).
    input_ids, attention_mask : Tensor
        Questions, int64, shape (examples, tokens).
    scores : Tensor
        Answer scores in [0, 1], float32, shape (examples, answers).
    """

    pixels: Tensor
    image_of: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.image_of)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model inputs and answer scores of some rows, texts cut to the longest among them."""
        mask = self.attention_mask[rows]
        longest = int(mask.sum(1).max())
        inputs = {
            "input_ids": self.input_ids[rows, :longest],
            "attention_mask": mask[:, :longest],
            "pixel_values": self.pixels[self.image_of[rows]],
        }
        return {key: value.to(device) for key, value in inputs.items()}, self.scores[rows].to(device)


def process(dataset: datasets.Dataset, processor: Processor) -> Examples:
    """Decode, resize and tokenise a data set with columns image, question, scores.

    Questions about one picture share its pixels.
    """
    encoded = dataset.cast_column("image", datasets.Image(decode=False))
    pixels: list[Tensor] = []
    index_of: dict[bytes, int] = {}
    image_of = []
    for image in encoded["image"]:
        key = hashlib.sha256(image["bytes"]).digest()
        if key not in index_of:
            index_of[key] = len(pixels)
            pixels.append(processor.image(Image.open(BytesIO(image["bytes"]))))
        image_of.append(index_of[key])
    texts = processor.texts(dataset["question"])
    return Examples(
        pixels=torch.stack(pixels),
        image_of=torch.tensor(image_of),
        input_ids=texts["input_ids"],
        attention_mask=texts["attention_mask"],
        scores=torch.tensor(dataset.with_format("numpy")["scores"][:], dtype=torch.float32),
    )
