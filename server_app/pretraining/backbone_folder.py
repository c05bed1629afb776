"""A pretrained backbone as a folder that `load_backbone` takes."""

import copy
import json
import tempfile
from pathlib import Path

from transformers import PreTrainedModel

from app.backbones import BUILTIN, builtin_folder
from app.chat import ChatProcessor
from app.processor import SETTINGS_FILE, Processor


def save(model: PreTrainedModel, processor: Processor | ChatProcessor, folder: Path, card: str) -> None:
    """Write fp16 weights, configuration, tokenizer, image settings and model card, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as name:
        draft = Path(name)
        copy.deepcopy(model).half().save_pretrained(draft)
        processor.save(draft)
        if isinstance(processor, Processor):  # transformers' own class wants to know more than ours
            path = draft / SETTINGS_FILE
            size = {"height": processor.image_size, "width": processor.image_size}
            settings = {"image_processor_type": "ViltImageProcessor", "size": size}
            path.write_text(json.dumps(settings | json.loads(path.read_text()), indent=2) + "\n")
        (draft / "README.md").write_text(card, encoding="utf-8")
        for path in draft.iterdir():
            path.replace(folder / path.name)


def read_card(name: str) -> str:
    """Return the model card of a backbone, for what goes on from it to add to; without one, a first line."""
    folder = builtin_folder(name) if name in BUILTIN else Path(name).expanduser()
    path = folder / "README.md"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return f"---\nlibrary_name: transformers\n---\nThe backbone `{name}`, trained on.\n"
