"""What all sections of the settings have in common."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class SettingsError(ValueError):
    """A setting that cannot be used; one line naming the key, the value and what is allowed."""


class Section(BaseModel):
    """Settings of one concern; a field's key is its name with hyphens."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # else `true` is the number 1, and text is read as a number
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    def refuse(self, *problems: tuple[bool, str]) -> Self:
        """Return the section if no problem is one; a problem is whether it is so, and the line to say."""
        for wrong, message in problems:
            if wrong:
                raise PydanticCustomError("combination", "{message}", {"message": message})
        return self


def is_relative(path: str) -> bool:
    """Whether a path depends on the working directory, which in a Flower app is not the user's."""
    return bool(path) and not Path(path).expanduser().is_absolute()
