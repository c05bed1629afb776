"""The model card of an exported result: what it is, what it scored, the lines that load it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from app.methods import METHODS

from . import card_by_texts, markdown
from .export import lies_beside
from .rows import Rows
from .scores import measured_on, scores, what_ran


def model_card(settings: Mapping[str, Any], rows: Rows, answers: Sequence[str] = ()) -> str:
    """Return the README.md of an exported adapter or model.

    Parameters
    ----------
    settings : Mapping
        The run's settings, keys as in the run-config.
    rows : sequence of dict
        The run's rows up to the round that is exported.
    answers : sequence of str
        What a head that travels chooses from; without, heads never left their clients.
    """
    whole, writes = METHODS[settings["method"]].artifact == "model", settings.get("loss") == "next-token"
    by_texts = card_by_texts.BY_TEXTS.get(settings.get("head", ""))
    chooses = "image-classification" if answers else "visual-question-answering"
    chooses = by_texts.purpose if by_texts else chooses
    about = ModelCardData(
        library_name="transformers" if whole else "peft",
        license="apache-2.0",
        base_model=settings["backbone"],
        tags=["federated-learning", "feddat"],
        pipeline_tag="image-text-to-text" if writes else chooses,
    )
    kind = "Weights" if whole else f"A {settings['adapter']} adapter"
    head = (
        "Its head, which all clients share, is in `classifier.safetensors`; `answers` in that file's metadata"
        " are what it chooses from."
        if answers
        else "It holds the shared adapter A_s only, and no local adapter: those never left their clients. The"
        " backbone's own head writes the answers. Deployed is the student."
        if writes
        else "No head was trained, and no local adapter left its client."
        f" {by_texts.chosen(settings)} Deployed is the student."
        if by_texts
        else "It holds the shared adapter A_s only: no answer head and no local adapter. Those never left"
        " their clients, and the scores are with the client's own private head. Deployed is the student."
    )
    parts = [
        f"# {markdown.text(settings['run-name'])}",
        f"{kind} for the backbone {markdown.text(settings['backbone'])}, trained by clients that kept their"
        f" images, texts and answers to themselves. {what_ran(settings, rows)}",
        head,
        *([note] if (note := METHODS[settings["method"]].note) else []),
        "## Scores",
        measured_on(rows),
        markdown.table(*scores(rows), align="---:"),
        "## Use",
        _use_writing(settings)
        if writes
        else _use_by_texts(settings, whole)
        if by_texts
        else _use(settings, whole, bool(answers)),
    ]
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").content


def _use_writing(settings: Mapping[str, Any]) -> str:
    lora = settings["adapter"] == "lora"
    with_what, first = "PEFT and transformers", ""
    if not lora:
        with_what = "the package `feddat` installed"
        first = "import feddat.app.bottleneck  # registers the adapter type with PEFT\n"
    base = _base(settings)
    merging = _MERGING if lora else ""
    return f"""With {with_what}, for one PIL image and one question:

```python
{first}import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path/to/adapter"
base = AutoModelForImageTextToText.from_pretrained({base}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, folder).eval()
processor = AutoProcessor.from_pretrained({"folder" if lora else base})

asked = [{{"type": "image"}}, {{"type": "text", "text": "what colour is the circle?"}}]
text = processor.apply_chat_template([{{"role": "user", "content": asked}}], add_generation_prompt=True)
inputs = processor(images=[image], text=[text], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens={settings["writing.tokens"]}, do_sample=False)
answer = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
```{merging}"""


_MERGING = """

Merged, it is a model like its base, as lmms-eval takes one by `--model_args pretrained=merged`:

```python
model.merge_and_unload().save_pretrained("merged")
processor.save_pretrained("merged")
```"""


def _use(settings: Mapping[str, Any], whole: bool, has_head: bool) -> str:
    alone = settings["adapter"] == "lora" and not whole
    with_what, code = _with_peft_alone(settings) if alone else _with_feddat(settings, whole)
    if has_head:
        code = f"from safetensors.torch import load_file\n{code}"
        code += """
head = load_file(f"{folder}/classifier.safetensors")
logits = features @ head["weight"].T + head["bias"]"""
    else:
        code += """
logits = head(features)  # such as torch.nn.Linear(features.shape[1], num_answers), trained on your answers"""
    return f"{with_what}, for one PIL image and one question:\n\n```python\n{code}\n```"


def _use_by_texts(settings: Mapping[str, Any], whole: bool) -> str:
    with_what, code = card_by_texts.use(settings, whole, _base(settings))
    return f"{with_what}, for one PIL image and one question:\n\n```python\n{code}\n```"


def _base(settings: Mapping[str, Any]) -> str:
    """Return where PEFT loads a LoRA's backbone from, as Python writes it."""
    beside = lies_beside(settings["backbone"], settings["backbone-weights"])
    return 'f"{folder}/base_model"' if beside else json.dumps(settings["backbone"])


def _with_feddat(settings: Mapping[str, Any], whole: bool) -> tuple[str, str]:
    backbone = json.dumps(settings["backbone"])
    call = backbone if settings["backbone-weights"] == "pretrained" else f'{backbone}, "random"'
    load = f"""import feddat.app.bottleneck  # registers the adapter type with PEFT
from feddat.app.backbones import load_backbone
from peft import PeftModel

folder = "path/to/adapter"
backbone = load_backbone({call})
model = PeftModel.from_pretrained(backbone.fork(), folder)"""
    if whole:
        load = """from feddat.app.backbones import load_backbone

folder = "path/to/model"
backbone = load_backbone(folder)
model = backbone.model"""
    return (
        "With the package `feddat` installed",
        f"""{load}

pixels = backbone.processor.normalise(backbone.processor.image(image)[None])
inputs = backbone.processor.texts(["what colour is the circle?"])  # nothing for one that sees images alone
features = model(**inputs, pixel_values=pixels).pooler_output""",
    )


def _with_peft_alone(settings: Mapping[str, Any]) -> tuple[str, str]:
    base = _base(settings)
    return (
        "With PEFT and transformers",
        f"""import json
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

folder = "path/to/adapter"
base = AutoModel.from_pretrained({base}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, folder).eval()

made = json.load(open(f"{{folder}}/preprocessor_config.json"))
pixels = np.asarray(image.convert("RGB").resize((base.config.image_size,) * 2, 3)) / 255  # 3: bicubic
pixels = torch.tensor((pixels - made["image_mean"]) / made["image_std"], dtype=torch.float32)
question = made["text_template"].format("what colour is the circle?")
inputs = AutoTokenizer.from_pretrained(folder)(question, return_tensors="pt")  # ViT: inputs = {{}}
features = model(**inputs, pixel_values=pixels.permute(2, 0, 1)[None]).pooler_output""",
    )
