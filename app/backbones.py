"""Frozen foundation models by name, loaded once a process."""

import copy
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .families import FAMILIES, Family, family_of
from .hub import check_hub
from .quantisation import loading, tensors_in
from .settings import Settings
from .settings.training import SPREAD
from .spreading import check_spread

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN = ("tiny-vilt", "tiny-vlm")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder with its processor.

    Attributes
    ----------
    name : str
        The name it was asked by.
    model : PreTrainedModel
        In evaluation mode; no parameter requires a gradient.
    processor : Processor or ChatProcessor
        How its inputs are made.
    fingerprint : str
        SHA-256 over configuration and weights, in hexadecimal. Equal fingerprints compute equal features.
    head, prompt : str
        What it answers by, see `families.Family.answering_by`.
    parts : str
        Where its adapters go, see `families.Family.adapting`.
    """

    name: str
    model: Any
    processor: Any
    fingerprint: str
    head: str = "private"
    prompt: str = "{}"
    parts: str = "language"

    @property
    def family(self) -> Family:
        """What its kind needs, as it answers and is adapted here."""
        config = self.model.config
        return family_of(config.model_type).answering_by(self.head, config, self.prompt).adapting(self.parts)

    @property
    def width(self) -> int:
        """Width of the features of one picture."""
        return self.family.width(self.model.config)

    def all_width(self, pictures: int) -> int:
        """Width of the features of so many pictures an example."""
        return self.family.all_width(self.model.config, pictures)

    def fork(self) -> Any:
        """Return a second module tree over the *same* weight tensors, for adapters to be put into."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})

    def examples(
        self, rows: "Dataset", device: torch.device, answers: Sequence[str] = (), pictures: int = 0
    ) -> Any:
        """Make examples, ready for the model, of a benchmark's rows and its answer list.

        What is computed for it is so on `device`. `pictures` is how many an example has, see
        `examples.process`.

        Raises
        ------
        ValueError
            A row cannot be used; or it answers by texts, and examples have several pictures.
        """
        made = self.family.examples(rows, self.model, self.processor, device, pictures)
        told = self.answers(answers, device)
        if told is None:
            return made
        if made.pictures > 1:
            raise ValueError(
                f"head = {self.head!r} with {made.pictures} pictures an example; allowed: 'private'"
            )
        return replace(made, answers=told)

    def answers(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor | None:
        """Return what stands for each answer where it reads their texts, else None; the process keeps it."""
        return _answers(self, tuple(texts), torch.device(device))

    def features(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute features (batch, width) by plain forwards of `model`, a fork or copy of this one's.

        ``pixel_values`` are (batch, 3, height, width); or, where each example has several pictures,
        (batch, pictures, 3, height, width), and the width is `all_width`.
        """
        return self.family.all_features(model, self.processor.inputs(batch))


def open_backbone(settings: Settings, device_map: str = "") -> Backbone:
    """Return the process's backbone for a run's settings; random weights follow the run's seed.

    `device_map` is `Settings.device_map` where it is for a client to compute with.
    """
    seed = settings.seed if settings.backbone_weights == "random" else 0
    return load_backbone(
        settings.backbone,
        settings.backbone_weights,
        seed,
        settings.backbone_precision,
        settings.max_tokens,
        settings.head,
        settings.answer_prompt,
        settings.adapted_parts,
        device_map,
    )


@functools.lru_cache(maxsize=16)
def _answers(backbone: Backbone, texts: tuple[str, ...], device: torch.device) -> Tensor | None:
    return backbone.family.answers(texts, backbone.model, backbone.processor, device)


@functools.lru_cache(maxsize=2)
def load_backbone(
    name: str,
    weights: str = "pretrained",
    seed: int = 0,
    precision: str = "float32",
    max_tokens: int = 0,
    head: str = "private",
    prompt: str = "{}",
    parts: str = "language",
    device_map: str = "",
) -> Backbone:
    """Load a frozen backbone, once a process.

    Parameters
    ----------
    name : str
        ``"tiny-vilt"`` or ``"tiny-vlm"`` (built in), a name that a family builds, such as ``"resnet8"``
        (random weights only), or the folder or hub id of a model of a known family, such as
        ``"dandelin/vilt-b32-mlm"``.
    weights : str
        ``"pretrained"``, or ``"random"``: the same architecture with weights drawn from `seed` (a control).
    seed : int
        Used for random weights only.
    precision : str
        What weights are held in: ``"float32"``, or what the family allows.
    max_tokens : int
        Tokens of a text at most; 0: as many as the model reads.
    head, prompt, parts : str
        The settings `head`, `answer-prompt` and `adapted-parts`.
    device_map : str
        How it is spread over several GPUs, in transformers' terms; ``""``: it is not.

    Raises
    ------
    ValueError
        If nothing of that name can be loaded from safetensors, or it has no such head or no such parts.
    """
    family, folder, config = _described(name, weights, precision)
    if not folder:
        backbone = _frozen(name, family.draw(config, seed), family.processor("", config))
        return _chosen(backbone, head, prompt, parts)
    how = loading(precision) | ({"device_map": device_map} if device_map else {})
    with _told_in_one_line(name):
        if weights == "random":
            model = family.draw(config, seed, how["dtype"])
        else:
            model = family.load(folder, config, **how)
        processor = family.processor(folder, config)
    check_spread(model, device_map)
    processor = processor.cut(max_tokens) if max_tokens else processor
    return _chosen(_frozen(name, family.prepare(model), processor), head, prompt, parts)


def check_backbone(settings: Settings) -> Family:
    """Return the family of a run's backbone as it answers, without loading its weights.

    Raises
    ------
    ValueError
        As `load_backbone`, for what can be known without them.
    """
    name, head = settings.backbone, settings.head
    family, folder, config = _described(name, settings.backbone_weights, settings.backbone_precision)
    with _told_in_one_line(name):
        family.processor(folder, config)
    _check_head(name, family, head)
    return family.answering_by(head, config, settings.answer_prompt).adapting(settings.adapted_parts)


def _described(name: str, weights: str, precision: str) -> tuple[Family, str | Path, Any]:
    """Find a backbone: its family, its folder or hub id ("": its family builds it), and its configuration."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for family in FAMILIES:
        if name in family.built_in:
            if weights == "pretrained":
                raise ValueError(
                    f"backbone-weights = 'pretrained' with backbone = {name!r}; allowed: 'random'"
                )
            return family, "", family.configure(**family.built_in[name])
    folder = builtin_folder(name) if name in BUILTIN else Path(name).expanduser() if "~" in name else name
    with _told_in_one_line(name):
        check_hub(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        family = family_of(config.model_type)
        if precision not in family.precisions:
            raise ValueError(f"backbone-precision = {precision!r}; allowed: {', '.join(family.precisions)}")
    return family, folder, config


@contextmanager
def _told_in_one_line(name: str) -> Iterator[None]:
    """Make one line of whatever a backbone's files have their readers raise."""
    try:
        yield
    # A RuntimeError says that shapes do not fit, an ImportError that a processor needs another package.
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        names = ", ".join((*BUILTIN, *(name for family in FAMILIES for name in family.built_in)))
        kinds = ", ".join(family.words for family in FAMILIES)
        raise ValueError(
            f"backbone = {name!r} cannot be loaded; allowed: {names}, the path of a folder with {kinds} in"
            f" safetensors, or the id of one on the hub if it can be reached ({reason})"
        ) from None


def _check_head(name: str, family: Family, head: str) -> None:
    if head not in family.heads:
        allowed = ", ".join(map(repr, family.heads))
        raise ValueError(f"head = {head!r} with backbone = {name!r}; allowed: {allowed}")


def _chosen(backbone: Backbone, head: str, prompt: str, parts: str) -> Backbone:
    _check_head(backbone.name, backbone.family, head)
    backbone.family.adapting(parts)
    return replace(backbone, head=head, prompt=prompt, parts=parts)


def _frozen(name: str, model: PreTrainedModel, processor: Any) -> Backbone:
    model.eval().requires_grad_(False)
    return Backbone(name, model, processor, fingerprint(model, processor))


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


def fingerprint(model: PreTrainedModel, processor: Any = None) -> str:
    """Hash what a backbone computes: configuration, weights and how inputs are made (SHA-256, hexadecimal).

    The hash depends on names, shapes and values, not on how the files are cut or which hub they came from.
    """
    config = model.config.to_dict()
    known = type(model.config)().to_dict().keys() - _NOT_COMPUTED
    shape = {key: config[key] for key in sorted(config) if key in known}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    if processor is not None:
        digest.update(json.dumps(processor.facts(), default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in tensors_in(tensor.detach()):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on.

    Parameters
    ----------
    device : str
        ``"auto"`` (CUDA where there is one, else CPU), or any name that torch knows. What spreads a model
        over several GPUs is the current one.

    Raises
    ------
    ValueError
        If the device is unknown or not there.
    """
    if device in SPREAD and not torch.cuda.is_available():
        raise ValueError(f"device = {device!r} without CUDA; allowed: auto, cpu")
    if device == "auto" or device in SPREAD:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()  # "meta" can be made, but not read
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"device = {device!r} is not available; allowed: auto, cpu, cuda, cuda:N") from None
    return chosen
