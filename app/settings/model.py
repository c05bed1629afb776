"""The model: the backbone, its adapter, its head."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section


class ModelSettings(Section):
    """Top-level settings of the model."""

    backbone: str = Field(min_length=1)
    backbone_weights: Literal["pretrained", "random"]
    backbone_precision: Literal["float32", "bfloat16", "int8", "nf4"]
    max_tokens: int = Field(ge=0)
    adapter: Literal["bottleneck", "lora", "prompt"]
    reduction_factor: int = Field(gt=0)
    lora_rank: int = Field(gt=0)
    prompt_tokens: int = Field(gt=0)
    adapted_parts: Literal[
        "language",
        "connector",
        "vision",
        "language connector",
        "language vision",
        "connector vision",
        "language connector vision",
    ]
    head: Literal["private", "shared", "prompts", "decoder"]
    answer_prompt: str

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        return self.refuse(
            (
                "{}" not in self.answer_prompt,
                f"answer-prompt = {self.answer_prompt!r}; allowed: a text with {{}} for the answer",
            ),
            (
                self.backbone_weights == "random" and self.backbone_precision in ("int8", "nf4"),
                f"backbone-weights = 'random' with backbone-precision = {self.backbone_precision!r}, which is"
                " made of a model's files; allowed: 'pretrained'",
            ),
        )
