"""Frozen foundation models by name, loaded once a process.

A backbone is a ViLT (Kim et al., 2021, arXiv 2102.03334): one Transformer encoder over text tokens and image
patches. For images alone it may be a ViT (Dosovitskiy et al., 2021, arXiv 2010.11929) or the `resnet8` of the
long-tailed protocol; the question is then not read.
"""

import copy
import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ViltModel,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

from .resnet8 import WIDTHS, ResNet8, ResNet8Config
from .settings import Settings
from .vilt import fuse_attention, keep_patch_order

BUILTIN = ("tiny-vilt",)
_IMAGE_SETTINGS = "preprocessor_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_MODELS: dict[str, type[PreTrainedModel]] = {
    "vilt": ViltModel,
    "vit": ViTModel,
    ResNet8Config.model_type: ResNet8,
}
# Of CIFAR-10's training images, as the long-tailed protocol has them.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Processor:
    """Turns images and texts into model inputs of one size.

    A backbone that was trained to read its answer from a word to fill in gets its texts by `template`, from
    ``text_template`` in its folder's preprocessor_config.json: ``"{} [MASK]"``.

    Every image becomes ``image_size`` × ``image_size``, so that a batch needs no padding and no choice of
    patches. Pixels stay 8-bit until they enter the model: a processed example takes a quarter of the memory.
    A backbone for images alone has None for a `tokenizer`, and its texts become nothing.
    """

    tokenizer: Any
    image_size: int
    text_length: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    template: str = "{}"

    def image(self, image: Image.Image) -> Tensor:
        """Resize one image.

        Returns
        -------
        Tensor
            uint8, shape (3, image_size, image_size).
        """
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        size = (self.image_size, self.image_size)
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
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
            return_tensors="pt",
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale uint8 pixels (batch, 3, height, width) to the floats that the model was trained on."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Copied to a GPU once: the host waits for such a copy.
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder with its processor.

    Attributes
    ----------
    name : str
        The name it was asked by.
    model : PreTrainedModel
        A ViltModel, ViTModel or ResNet8; in evaluation mode, no parameter requires a gradient.
    processor : Processor
        How its inputs are made.
    fingerprint : str
        SHA-256 over configuration and weights, in hexadecimal. Equal fingerprints compute equal features.
    """

    name: str
    model: Any
    processor: Processor
    fingerprint: str

    @property
    def width(self) -> int:
        """Width of the hidden states and of the features."""
        return self.model.config.hidden_size

    def fork(self) -> Any:
        """Return a second module tree over the *same* weight tensors, for adapters to be put into."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})


class FirstToken(nn.Module):
    """The pooler of a ViT that comes without one: the class token, as its own classifier reads it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Take (batch, tokens, width) to (batch, width)."""
        return hidden[:, 0]


def open_backbone(settings: Settings) -> Backbone:
    """Return the process's backbone for a run's settings; random weights follow the run's seed."""
    seed = settings.seed if settings.backbone_weights == "random" else 0
    return load_backbone(settings.backbone, settings.backbone_weights, seed)


@functools.lru_cache(maxsize=2)
def load_backbone(name: str, weights: str = "pretrained", seed: int = 0) -> Backbone:
    """Load a frozen backbone, once a process.

    Parameters
    ----------
    name : str
        ``"tiny-vilt"`` (built in), ``"resnet8"`` or ``"resnet8-narrow"`` (built in, random weights only), or
        the folder or hub id of a ViLT or ViT, such as ``"dandelin/vilt-b32-mlm"``.
    weights : str
        ``"pretrained"``, or ``"random"``: the same architecture with weights drawn from `seed` (a control).
    seed : int
        Used for random weights only.

    Raises
    ------
    ValueError
        If nothing of that name can be loaded from safetensors.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if name in WIDTHS:
        if weights == "pretrained":
            raise ValueError(f"backbone-weights = 'pretrained' with backbone = {name!r}; allowed: 'random'")
        made = _random(ResNet8, ResNet8Config(channels=WIDTHS[name]), seed)
        return _frozen(name, made, Processor(None, made.config.image_size, 0, _CIFAR_MEAN, _CIFAR_STD))
    folder = builtin_folder(name) if name in BUILTIN else Path(name).expanduser() if "~" in name else name
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if (architecture := _MODELS.get(config.model_type)) is None:
            raise ValueError(f"its model_type is {config.model_type!r}")
        if weights == "random":
            model: Any = _random(architecture, config, seed)
        else:
            loaded: Any = architecture.from_pretrained(
                folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            missing = sorted(report["missing_keys"])
            if isinstance(model, ViTModel) and missing == ["pooler.dense.bias", "pooler.dense.weight"]:
                model.pooler, missing = FirstToken(), []  # type: ignore[assignment]
            # transformers would leave them random.
            if missing:
                raise ValueError(f"no weights for {missing[0]}")
        processor = _load_processor(folder, config)
    # A RuntimeError says that shapes do not fit.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"backbone = {name!r} cannot be loaded; allowed: {', '.join((*BUILTIN, *WIDTHS))}, the path of a "
            f"folder with a ViLT or ViT in safetensors, or the id of one on the hub if it can be reached "
            f"({reason})"
        ) from None
    if isinstance(model, ViltModel):
        model = fuse_attention(keep_patch_order(model))
    return _frozen(name, model, processor)


def _random(architecture: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture(config)


def _frozen(name: str, model: PreTrainedModel, processor: Processor) -> Backbone:
    model.eval().requires_grad_(False)
    return Backbone(name, model, processor, fingerprint(model, processor))


def _load_processor(folder: str | Path, config: Any) -> Processor:
    tokenizer = None
    if config.model_type == "vilt":
        # Where there is none, transformers makes one that knows no word.
        if Path(folder).is_dir() and not any(Path(folder, name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError("it has no tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings: dict = {}
    if (path := Path(folder, _IMAGE_SETTINGS)).is_file():
        settings = json.loads(path.read_text())
    return Processor(
        tokenizer,
        image_size=cast(int, config.image_size),
        text_length=config.max_position_embeddings if tokenizer else 0,
        # ViLT's and ViT's own values, where a checkpoint names none.
        mean=tuple(settings.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(settings.get("image_std", (0.5, 0.5, 0.5))),
        template=settings.get("text_template", "{}"),
    )


def builtin_folder(name: str) -> Path:
    """Find a built-in backbone: beside this file, else where the package is installed.

    Inside a Flower run this file comes from the FAB, which carries no weights.

    Raises
    ------
    ValueError
        If its weights are in neither place.
    """
    places = [Path(__file__).parent]
    if (
        importlib.util.find_spec("feddat")
        and (spec := importlib.util.find_spec("feddat.app"))
        and spec.origin
    ):
        places.append(Path(spec.origin).parent)
    for place in places:
        folder = place / "assets" / name
        if (folder / "model.safetensors").is_file():
            return folder
    looked = " and ".join(str(place) for place in places)
    raise ValueError(
        f"backbone = {name!r}: its weights are not in {looked}; install the package: pip install ."
    )


# Configuration entries that say where a model came from, not what it computes.
_NOT_COMPUTED = {"transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype"}


def fingerprint(model: PreTrainedModel, processor: Processor | None = None) -> str:
    """Hash what a backbone computes: configuration, weights and how inputs are made (SHA-256, hexadecimal).

    The hash depends on names, shapes and values, not on how the files are cut or which hub they came from.
    """
    config = model.config.to_dict()
    known = type(model.config)().to_dict().keys() - _NOT_COMPUTED
    shape = {key: config[key] for key in sorted(config) if key in known}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    if processor is not None:
        words = sorted(processor.tokenizer.get_vocab().items()) if processor.tokenizer else []
        settings = (
            processor.image_size,
            processor.text_length,
            processor.mean,
            processor.std,
            processor.template,
            words,
        )
        digest.update(json.dumps(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on.

    Parameters
    ----------
    device : str
        ``"auto"`` (CUDA where there is one, else CPU), or any name that torch knows.

    Raises
    ------
    ValueError
        If the device is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()  # "meta" can be made, but not read
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"device = {device!r} is not available; allowed: auto, cpu, cuda, cuda:N") from None
    return chosen
