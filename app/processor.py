"""Pictures and texts made into model inputs of one size."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoTokenizer

SETTINGS_FILE = "preprocessor_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Processor:
    """Turns images and texts into model inputs of one size.

    A backbone that was trained to read its answer from a word to fill in gets its texts by `template`, from
    ``text_template`` in its folder's preprocessor_config.json: ``"{} [MASK]"``.

    Every image becomes ``image_size`` × ``image_size``, so that a batch needs no padding and no choice of
    patches. Pixels stay 8-bit until they enter the model: a processed example takes a quarter of the memory.
    A backbone for images alone has None for a `tokenizer`, and its texts become nothing; one for texts alone
    has an `image_size` of 0, and its images become nothing.
    """

    tokenizer: Any
    image_size: int
    text_length: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    template: str = "{}"

    def image(self, image: Image.Image) -> Tensor:
        """Resize one image.

        Returns
        -------
        Tensor
            uint8, shape (3, image_size, image_size).
        """
        size = (self.image_size, self.image_size)
        resized = upright(image).resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).contiguous()

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise texts.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask``, int64, shape (len(texts), text_length), padded on the right;
            without a tokenizer nothing.
        """
        if self.tokenizer is None:
            return {}
        encoded = self.tokenizer(
            [self.template.format(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            padding_side="right",
            return_tensors="pt",
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale uint8 pixels (..., 3, height, width) to the floats that the model was trained on."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return model inputs with their pixels, if there are any and they are bytes, normalised."""
        pixels = batch.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return dict(batch)
        return {**batch, "pixel_values": self.normalise(pixels)}

    def cut(self, longest: int) -> "Processor":
        """Return one that cuts texts to so many tokens."""
        return replace(self, text_length=min(self.text_length, longest))

    def save(self, folder: str | Path) -> None:
        """Write it into a model's folder, for `load_processor`, and its tokenizer for transformers."""
        image = {"image_mean": self.mean, "image_std": self.std, "text_template": self.template}
        Path(folder, SETTINGS_FILE).write_text(json.dumps(image))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def stock_code(self, *, question: bool) -> str:
        """Return lines for a model card: from what `save` wrote to ``inputs``, without this package.

        They read ``folder``, and ``image`` and ``question``. Without `question` no text is read.
        """
        lines = ["import json", 'made = json.load(open(f"{folder}/preprocessor_config.json"))', "inputs = {}"]
        if question:
            lines += [
                "from transformers import AutoTokenizer",
                "tokenizer = AutoTokenizer.from_pretrained(folder)",
                f'how = dict(truncation=True, max_length={self.text_length}, return_tensors="pt")',
                'text = tokenizer(made["text_template"].format(question), **how)',
                *self._stock_text(),
            ]
        if self.image_size:
            lines += [
                "import numpy as np",
                "from PIL import ImageOps",
                f"size = ({self.image_size}, {self.image_size})",
                'seen = ImageOps.exif_transpose(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)',
                'pixels = (np.asarray(seen) / 255 - made["image_mean"]) / made["image_std"]',
                'inputs["pixel_values"] = torch.tensor(pixels).float().permute(2, 0, 1)[None]',
            ]
        return "\n".join(lines)

    def _stock_text(self) -> list[str]:
        """Return lines from a tokenised ``text`` to what is read of it."""
        return ['inputs |= {key: text[key] for key in ("input_ids", "attention_mask")}']

    def facts(self) -> tuple[Any, ...]:
        """Return all that decides what inputs are made, for a fingerprint."""
        words = sorted(self.tokenizer.get_vocab().items()) if self.tokenizer else []
        return (self.image_size, self.text_length, self.mean, self.std, self.template, words)


def upright(image: Image.Image) -> Image.Image:
    """Return an image in 8-bit colours, turned as its camera says."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("RGB")


def load_processor(
    folder: str | Path,
    *,
    image_size: int,
    text_length: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Processor:
    """Load what a model's folder or hub id says of its inputs.

    Parameters
    ----------
    folder : str or Path
        Where the model is.
    image_size, text_length : int
        Pixels a side, and tokens. 0: it sees no images, reads no texts.
    mean, std : sequence of float
        Of each channel, where the folder names none.

    Raises
    ------
    ValueError
        It reads texts, and has no tokenizer.
    """
    tokenizer = None
    if text_length:
        # Where there is none, transformers makes one that knows no word.
        if Path(folder).is_dir() and not any(Path(folder, name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError("it has no tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    path = Path(folder, SETTINGS_FILE)
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return Processor(
        tokenizer,
        image_size=image_size,
        text_length=text_length,
        mean=tuple(settings.get("image_mean", mean)),
        std=tuple(settings.get("image_std", std)),
        template=settings.get("text_template", "{}"),
    )


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Copied to a GPU once: the host waits for such a copy.
    return torch.tensor(values, device=device).view(-1, 1, 1)
