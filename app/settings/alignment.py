"""The server's alignment of the aggregate."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section


class AlignSettings(Section):
    """The section ``align``."""

    when: Literal["none", "each-round", "end"]
    steps: int = Field(ge=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    labels: Literal["true", "none"]
    beta: float = Field(ge=0)
    temperature: float = Field(gt=0)
    target: Literal["teacher", "pooled"]
    part: Literal["all", "head"]
    radius: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_alignment(self) -> Self:
        return self.refuse(
            (
                self.target == "pooled" and self.labels == "none",
                "align.target = 'pooled' measures reliability on labels; allowed with align.labels = 'true'",
            ),
        )
