"""The federation's result in files that stock tools load."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from app.adapters import Adapter
from app.backbones import BUILTIN, Backbone, open_backbone
from app.learner import CLASSIFIER
from app.methods import METHODS
from app.quantisation import QUANTISED
from app.settings import Settings

_BASE = "base_model"


def export_result(
    folder: Path, settings: Settings, arrays: Mapping[str, Tensor], card: str, answers: Sequence[str] = ()
) -> None:
    """Save what was shared, with the model card.

    Parameters
    ----------
    folder : Path
        Gets a PEFT checkpoint for ``PeftModel.from_pretrained`` (``adapter_model.safetensors``,
        ``adapter_config.json``), or under ``method = "full"`` a whole model for `load_backbone`. A head that
        travels is in ``classifier.safetensors``, its answers in that file's metadata. What PEFT loads without
        this package also gets how inputs are made, and in ``base_model`` a backbone that has no address of
        its own. What is there is replaced; of a link, the link alone.
    settings : Settings
        Name the backbone, and the adapter or method.
    arrays : Mapping
        What was shared, by its names on the wire.
    card : str
        The model card.
    answers : sequence of str
        What a head that travels chooses from.
    """
    backbone = open_backbone(settings)
    shared = {name: value for name, value in arrays.items() if not name.startswith(CLASSIFIER)}
    classifier = {n.removeprefix(CLASSIFIER): v for n, v in arrays.items() if n.startswith(CLASSIFIER)}
    fresh = folder.with_name(f".{folder.name}.new")
    save = {"adapter": _save_adapter, "model": _save_model}[METHODS[settings.method].artifact]
    save(fresh, settings, backbone, shared)
    if classifier:
        weights = {name: value.contiguous() for name, value in classifier.items()}
        save_file(weights, fresh / "classifier.safetensors", {"answers": json.dumps(list(answers))})
    (fresh / "README.md").write_text(card, encoding="utf-8")
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def _save_adapter(folder: Path, settings: Settings, backbone: Backbone, shared: Mapping[str, Tensor]) -> None:
    adapter = Adapter(settings.adapter, settings.reduction_factor, settings.lora_rank)
    model = get_peft_model(backbone.fork(), adapter.config(backbone))
    shared = METHODS[settings.method].exported(shared, backbone, adapter, settings.seed)
    set_peft_model_state_dict(model, dict(shared))
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


def _save_model(folder: Path, settings: Settings, backbone: Backbone, shared: Mapping[str, Tensor]) -> None:
    method = METHODS[settings.method]
    whole = method.open(backbone, Adapter(), settings.seed, backbone.model.device)
    whole.load("shared", shared)
    whole.model.save_pretrained(folder)
    backbone.processor.save(folder)
