"""Pretraining on the server, before the first round."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section


class PretrainSettings(Section):
    """The section ``pretrain``."""

    part: Literal["none", "adapter", "backbone"]
    encoder: str
    language_model: str
    images: int = Field(gt=1)
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_pretraining(self) -> Self:
        return self.refuse(
            (
                self.part == "backbone",
                "pretrain.part = 'backbone' makes weights that no round sends; allowed: 'none', 'adapter', or"
                " a backbone made before by `python -m server_app.pretraining dynamic`",
            ),
            (
                self.part == "adapter" and not self.encoder,
                "pretrain.encoder = '' with pretrain.part = 'adapter'; allowed: the folder or hub id of a"
                " CLIP, a vision transformer or a LLaVA",
            ),
            *(
                (
                    self.part == "none" and bool(name),
                    f"pretrain.{key} = {name!r} has no effect; allowed: '', or pretrain.part = 'adapter'",
                )
                for key, name in (("encoder", self.encoder), ("language-model", self.language_model))
            ),
        )
