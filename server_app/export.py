"""The federation's result in files that stock tools load."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from app.adapters import Adapter
from app.backbones import Backbone, open_backbone
from app.exported import save_adapter, save_head
from app.learner import CLASSIFIER
from app.methods import METHODS
from app.settings import Settings


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
    save = {"adapter": save_adapter, "model": _save_model}[METHODS[settings.method].artifact]
    save(fresh, settings, backbone, shared)
    if classifier:
        save_head(fresh, classifier, answers)
    (fresh / "README.md").write_text(card, encoding="utf-8")
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def _save_model(folder: Path, settings: Settings, backbone: Backbone, shared: Mapping[str, Tensor]) -> None:
    method = METHODS[settings.method]
    whole = method.open(backbone, Adapter(), settings.seed, backbone.model.device)
    whole.load("shared", shared)
    whole.model.save_pretrained(folder)
    backbone.processor.save(folder)
