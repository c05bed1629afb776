"""What is personal beside the shared adapter, where a method leaves it open."""

from pydantic import Field

from .section import Section


class PersonalSettings(Section):
    """The section ``personal``."""

    pull: float = Field(ge=0)
    epochs: int = Field(gt=0)
