"""The teacher model: which one, what it is asked, how its answers become probabilities."""

from typing import Literal

from pydantic import Field

from .section import Section


class TeacherSettings(Section):
    """The section ``teacher``."""

    model: str
    prompt: str
    caption_prompt: str
    normalise: Literal["sum", "mean", "pmi"]
    temperature: float = Field(gt=0)
    margin: float = Field(ge=0, lt=1)
