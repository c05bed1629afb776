"""The federation's result as a PEFT checkpoint."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from peft import get_peft_model, set_peft_model_state_dict
from torch import Tensor

from app.backbones import open_backbone
from app.dual_adapter import adapter_config
from app.settings import Settings


def export_adapter(folder: Path, settings: Settings, shared: Mapping[str, Tensor], card: str) -> None:
    """Save the shared adapter so that ``PeftModel.from_pretrained`` loads it.

    Parameters
    ----------
    folder : Path
        Gets ``adapter_model.safetensors``, ``adapter_config.json`` and the model card; one that is there is
        replaced.
    settings : Settings
        Name the backbone and the adapter.
    shared : Mapping
        A_s by its names on the wire.
    card : str
        The model card.
    """
    backbone = open_backbone(settings)
    config = adapter_config(
        settings.adapter,
        reduction_factor=settings.reduction_factor,
        lora_rank=settings.lora_rank,
        width=backbone.width,
    )
    model = get_peft_model(backbone.fork(), config)
    set_peft_model_state_dict(model, dict(shared))
    # Otherwise PEFT writes the folder that this machine loaded the backbone from.
    model.peft_config["default"].base_model_name_or_path = settings.backbone
    fresh = folder.with_name(f".{folder.name}.new")
    model.save_pretrained(str(fresh))
    (fresh / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
