"""The method, and its losses and steps."""

from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from .section import Section


class MethodSettings(Section):
    """Top-level settings of the method."""

    method: str
    alpha: float = Field(ge=0)
    beta: float = Field(ge=0)
    temperature: float = Field(gt=0)
    local_share: float = Field(ge=0, le=1)
    loss: Literal["bce-scores", "cross-entropy", "next-token"]
    update: Literal["alternating", "joint"]
    step: Literal["fast", "reference"]

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        from ..methods import METHODS  # they import this folder

        if method not in METHODS:
            allowed = ", ".join(map(repr, METHODS))
            raise PydanticCustomError("allowed", "{allowed}", {"allowed": allowed})
        return method
