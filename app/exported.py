"""Adapters and heads in files that stock tools load."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from .adapters import Adapter
from .backbones import BUILTIN, Backbone, open_backbone
from .methods import METHODS
from .quantisation import QUANTISED
from .settings import Settings

_BASE = "base_model"


def save_adapter(folder: Path, settings: Settings, backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    """Save an adapter as a PEFT checkpoint, and what PEFT needs beside it to load without this package.

    Parameters
    ----------
    folder : Path
        Is made.
    settings : Settings
        The adapter and the method.
    backbone : Backbone
        What the settings open.
    weights : Mapping
        The adapter's, by their names on the wire; what a method leaves out of them has its first values.
    """
    adapter = Adapter.of(settings)
    model = get_peft_model(backbone.fork(), adapter.config(backbone))
    weights = METHODS[settings.method].exported(weights, backbone, adapter, settings.seed)
    set_peft_model_state_dict(model, dict(weights))
    beside = settings.adapter == "lora" and lies_beside(settings.backbone, settings.backbone_weights)
    # Otherwise PEFT writes the folder that this machine loaded the backbone from.
    model.peft_config["default"].base_model_name_or_path = _BASE if beside else settings.backbone
    # Otherwise PEFT asks the hub whether the vocabulary was changed.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    if settings.adapter == "lora":
        backbone.processor.save(folder)
    if beside:
        if settings.backbone_precision in QUANTISED:  # whoever loads it need not have what made it smaller
            backbone = open_backbone(settings.model_copy(update={"backbone_precision": "float32"}))
        backbone.model.save_pretrained(folder / _BASE)


def lies_beside(backbone: str, weights: str) -> bool:
    """Say whether a backbone has neither a folder nor a hub id of its own, so that a LoRA brings it along."""
    return backbone in BUILTIN or weights == "random"


def save_head(folder: Path, weights: Mapping[str, Tensor], answers: Sequence[str]) -> None:
    """Save a head in ``classifier.safetensors``; its answers, as JSON, are in the file's metadata."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, folder / "classifier.safetensors", {"answers": json.dumps(list(answers))})
