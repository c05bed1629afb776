"""The lines of a model card that use the result: they run as they stand, but for the folder's path."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from app.adapters import REGISTERED_BY
from app.backbones import Backbone
from app.exported import lies_beside
from app.heads import TRAINED_HEADS
from app.methods import METHODS


def use(settings: Mapping[str, Any], backbone: Backbone, answers: Sequence[str] = ()) -> str:
    """Return with what a result is used, on what, and the lines.

    Parameters
    ----------
    settings : Mapping
        The run's, keys as in the run-config.
    backbone : Backbone
        What the run's settings open.
    answers : sequence of str
        What a head that travels chooses from.
    """
    whole, lora = METHODS[settings["method"]].artifact == "model", settings["adapter"] == "lora"
    stock, writes = lora and not whole, settings.get("loss") == "next-token"
    if stock:
        load = _load_by_peft(settings, backbone, writes)
    else:
        load = _load_model(settings, backbone) if whole else _load_by_feddat(settings, backbone)
    if writes:
        steps = [load, *_given(sees=True, asks=True), _writing(settings, stock)]
    else:
        steps = [load, *_choosing(settings, backbone, stock, bool(answers))]
    lines = _imports_first(line for step in steps for line in (*step.splitlines(), ""))
    reads = [
        what for what, name in (("picture", "image"), ("question", "question")) if f"\n{name} =" in lines
    ]
    with_what = "PEFT and transformers" if stock else "the package `feddat` installed"
    merging = (_MERGING_WRITER if writes else _MERGING) if stock else ""
    on = " and ".join(f"one {what}" for what in reads)
    return f"With {with_what}, for {on}:\n\n```python\n{lines}\n```{merging}"


def _imports_first(lines: Iterable[str]) -> str:
    lines = list(lines)
    whole = sorted({line for line in lines if line.startswith("import ")})
    parts = defaultdict(set)
    for line in lines:
        if line.startswith("from "):
            module, _, name = line.partition(" import ")
            parts[module].add(name)
    taken = [f"{module} import {', '.join(sorted(names))}" for module, names in sorted(parts.items())]
    rest = "\n".join(line for line in lines if not _imports(line))
    return "\n".join([*whole, *taken, "", rest.strip()])


def _imports(line: str) -> bool:
    return line.startswith(("import ", "from "))


# --- The model ---


def _load_by_peft(settings: Mapping[str, Any], backbone: Backbone, writes: bool) -> str:
    """Return lines to `model`, the stock one with the adapter inside."""
    kind, name = type(backbone.model).__name__, settings["backbone"]
    beside = lies_beside(name, settings["backbone-weights"])
    named = json.dumps(str(Path(name).expanduser()) if name.startswith("~") else name)
    # PEFT's own wrapper writes and can be merged; a family's lines take the model apart.
    inside = "" if writes else "\nmodel = adapted.get_base_model()"
    wrapped = "model" if writes else "adapted"
    return f"""import torch
from peft import PeftModel
from transformers import {kind}
folder = "path/to/adapter"
base = {kind}.from_pretrained({'f"{folder}/base_model"' if beside else named}, dtype=torch.float32)
{wrapped} = PeftModel.from_pretrained(base, folder).eval(){inside}"""


def _load_by_feddat(settings: Mapping[str, Any], backbone: Backbone) -> str:
    name, seed = json.dumps(settings["backbone"]), settings["seed"]
    drawn = [] if settings["backbone-weights"] == "pretrained" else ['"random"', f"seed={seed}"]
    return f"""import feddat.app.{REGISTERED_BY[settings["adapter"]]}  # registers the adapter type with PEFT
import torch
from feddat.app.backbones import load_backbone
from peft import PeftModel
folder = "path/to/adapter"
backbone = load_backbone({", ".join([name, *drawn, *_opened(settings, backbone)])})
model = PeftModel.from_pretrained(backbone.fork(), folder).eval().get_base_model()"""


def _load_model(settings: Mapping[str, Any], backbone: Backbone) -> str:
    return f"""import torch
from feddat.app.backbones import load_backbone
folder = "path/to/model"
backbone = load_backbone({", ".join(["folder", *_opened(settings, backbone)])})
model = backbone.model"""


def _opened(settings: Mapping[str, Any], backbone: Backbone) -> list[str]:
    """Return how a backbone is opened, as arguments of `load_backbone`."""
    longest = settings.get("max-tokens", 0)
    chosen = [f"max_tokens={longest}"] if longest else []
    if backbone.head not in TRAINED_HEADS:
        chosen += [f"head={json.dumps(backbone.head)}", f"prompt={json.dumps(backbone.prompt)}"]
    return chosen


# --- What it is given, and what it answers ---


def _given(*, sees: bool, asks: bool) -> list[str]:
    image = 'image = Image.new("RGB", (40, 30), "red")  # or your own: Image.open("picture.png")'
    question = 'question = "what colour is the circle?"'
    return ["\n".join([*(["from PIL import Image", image] if sees else []), *([question] if asks else [])])]


def _choosing(settings: Mapping[str, Any], backbone: Backbone, stock: bool, travels: bool) -> list[str]:
    """Return the steps from `model` to the logits of answers."""
    family, processor = backbone.family, backbone.processor
    by_texts, asks = backbone.head not in TRAINED_HEADS, family.asks and processor.tokenizer is not None
    sees = processor.image_size > 0
    given = _given(sees=sees, asks=asks)
    if by_texts:
        given += ['answers = ["red", "green", "blue"]  # what to choose from: any texts']
    if stock:
        inputs = processor.stock_code(question=asks)
        computed = family.stock_code(backbone.model, processor)
    else:
        inputs = f"inputs = {'backbone.processor.texts([question])' if asks else '{}'}"
        inputs += '\ninputs["pixel_values"] = backbone.processor.image(image)[None]' if sees else ""
        inputs += '\ninputs["answers"] = backbone.answers(answers)' if by_texts else ""
        computed = f"{'logits' if by_texts else 'features'} = backbone.features(model, inputs)"
    computed = indent(computed, "    ", lambda line: not _imports(line))
    computed = f"with torch.no_grad():\n{computed}"
    chosen = "answer = answers[logits.argmax()]"
    answered = chosen if by_texts else f"{_SHARED}\n{chosen}" if travels else _PRIVATE
    return ["\n".join(given), inputs, f"{computed}\n{answered}"]


_SHARED = """import json
from safetensors import safe_open
with safe_open(f"{folder}/classifier.safetensors", "pt") as head:
    answers = json.loads(head.metadata()["answers"])
    logits = features @ head.get_tensor("weight").T + head.get_tensor("bias")"""

_PRIVATE = """head = torch.nn.Linear(features.shape[1], 3)  # your own, to be trained on your answers
logits = head(features)"""


def _writing(settings: Mapping[str, Any], stock: bool) -> str:
    """Return the step from `model` to the answer that it writes."""
    load = "backbone.processor.processor"
    if stock:
        load = "AutoProcessor.from_pretrained(folder)\nfrom transformers import AutoProcessor"
    return f"""from PIL import ImageOps
processor = {load}
seen = ImageOps.exif_transpose(image).convert("RGB")
asked = [{{"type": "image", "image": seen}}, {{"type": "text", "text": question}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": asked}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
written = model.generate(**inputs, max_new_tokens={settings["writing.tokens"]}, do_sample=False)
answer = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]"""


_MERGING = """

Merged, it is a model like its base, for programs that know no adapters:

```python
adapted.merge_and_unload().save_pretrained("merged")
```"""

_MERGING_WRITER = """

Merged, it is a model like its base, as lmms-eval takes one by `--model_args pretrained=merged`:

```python
model.merge_and_unload().save_pretrained("merged")
processor.save_pretrained("merged")
```"""
