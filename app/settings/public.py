"""The server's public examples."""

from typing import Self

from pydantic import Field, model_validator

from .section import Section, is_relative


class PublicSettings(Section):
    """The section ``public``."""

    data: str
    examples: int = Field(gt=1)

    @model_validator(mode="after")
    def _check_public(self) -> Self:
        return self.refuse(
            (is_relative(self.data), f"public.data = {self.data!r} is relative; allowed: an absolute path")
        )
