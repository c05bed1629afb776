"""The method, and its losses and steps."""

from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from .section import Section

# What papers call a method that has another name here.
_CALLED_BY_OTHERS = {"fedavg": "adapter", "single": "local"}


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
            near = get_close_matches(method, [*_CALLED_BY_OTHERS, *METHODS], n=1)
            meant = f"; did you mean {_CALLED_BY_OTHERS.get(near[0], near[0])}?" if near else ""
            raise PydanticCustomError("allowed", "{allowed}", {"allowed": allowed + meant})
        return method
