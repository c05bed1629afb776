"""What is asked of a backbone that writes its answers."""

from typing import Literal

from pydantic import Field

from .section import Section


class WritingSettings(Section):
    """The section ``writing``."""

    tokens: int = Field(gt=0)
    score: Literal["exact", "token-f1", "rouge-l", "choice"]
