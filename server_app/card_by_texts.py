"""What a model card says where answers are chosen by their texts: by what, and the lines that do it again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import markdown


@dataclass(frozen=True)
class ByTexts:
    """A kind of head that reads the answers.

    Attributes
    ----------
    chosen : callable
        The run's settings → a sentence: what an answer is chosen by.
    purpose : str
        The pipeline's tag on the hub.
    model : str
        Its class in transformers.
    scoring : callable
        The run's settings → lines from `model`, `base`, `folder`, `pixels` and `answers` to `logits`.
    """

    chosen: Callable[[Mapping[str, Any]], str]
    purpose: str
    model: str
    scoring: Callable[[Mapping[str, Any]], str]


def _prompts(settings: Mapping[str, Any]) -> str:
    return f"""prompt = {json.dumps(settings["answer-prompt"])}
prompts = [prompt.replace("{{}}", answer) for answer in answers]
length = base.config.text_config.max_position_embeddings
tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
with torch.no_grad():  # there is no adapter in the text encoder
    told = torch.nn.functional.normalize(model.get_text_features(tokens["input_ids"]).pooler_output, dim=-1)
    seen = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
    logits = seen @ told.T * base.logit_scale.exp() + getattr(base, "logit_bias", 0)"""


def _decoder(settings: Mapping[str, Any]) -> str:
    return """question = made["text_template"].format("what colour is the circle?")
inputs = tokenizer(question, return_tensors="pt")
first, end = base.config.text_config.bos_token_id, base.config.text_config.sep_token_id
logits = []
for answer in answers:  # the log-likelihood of its tokens and its end, of which the loss is the mean
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[first, *tokens, end]])
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        loss = model.get_base_model()(**given, pixel_values=pixels, labels=labels).loss
    logits.append(-loss * (len(tokens) + 1))
logits = torch.stack(logits)[None]"""


BY_TEXTS = {
    "prompts": ByTexts(
        lambda settings: (
            "An answer is chosen by how near the picture is to its text, in the prompt"
            f" {markdown.text(settings['answer-prompt'])}, which the frozen text encoder reads; the"
            " question is not read."
        ),
        "zero-shot-image-classification",
        "AutoModel",
        _prompts,
    ),
    "decoder": ByTexts(
        lambda settings: "An answer is chosen by how likely the backbone's decoder is to write it.",
        "visual-question-answering",
        "AutoModelForVisualQuestionAnswering",
        _decoder,
    ),
}


def use(settings: Mapping[str, Any], whole: bool, base: str) -> tuple[str, str]:
    """Return with what a result is used, and the lines.

    Parameters
    ----------
    settings : Mapping
        The run's.
    whole : bool
        Whether the result is a whole model.
    base : str
        The backbone's folder or id, as Python writes it.
    """
    by = BY_TEXTS[settings["head"]]
    answers = 'answers = ["red", "green", "blue"]  # what to choose from: any texts'
    if whole or settings["adapter"] != "lora":
        return "With the package `feddat` installed", _with_feddat(settings, whole, answers)
    return (
        "With PEFT and transformers",
        f"""import json
import numpy as np
import torch
from peft import PeftModel
from transformers import {by.model}, AutoTokenizer

folder = "path/to/adapter"
base = {by.model}.from_pretrained({base}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
{answers}

made = json.load(open(f"{{folder}}/preprocessor_config.json"))
side = base.config.vision_config.image_size
pixels = np.asarray(image.convert("RGB").resize((side, side), 3)) / 255  # 3: bicubic
pixels = torch.tensor((pixels - made["image_mean"]) / made["image_std"], dtype=torch.float32)
pixels = pixels.permute(2, 0, 1)[None]
{by.scoring(settings)}""",
    )


def _with_feddat(settings: Mapping[str, Any], whole: bool, answers: str) -> str:
    answering = f"head={json.dumps(settings['head'])}, prompt={json.dumps(settings['answer-prompt'])}"
    random = "" if settings["backbone-weights"] == "pretrained" else '"random", '
    load = f"""import feddat.app.bottleneck  # registers the adapter type with PEFT
from feddat.app.backbones import load_backbone
from peft import PeftModel

folder = "path/to/adapter"
backbone = load_backbone({json.dumps(settings["backbone"])}, {random}{answering})
model = PeftModel.from_pretrained(backbone.fork(), folder)"""
    if whole:
        load = f"""from feddat.app.backbones import load_backbone

folder = "path/to/model"
backbone = load_backbone(folder, {answering})
model = backbone.model"""
    return f"""{load}
{answers}

inputs = backbone.processor.texts(["what colour is the circle?"])
inputs["pixel_values"] = backbone.processor.image(image)[None]
inputs["answers"] = backbone.answers(answers)
logits = backbone.features(model, inputs).detach()"""
