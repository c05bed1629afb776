"""Differential privacy of clients."""

from typing import Literal

from pydantic import Field

from .section import Section

Privacy = Literal["none", "server-fixed", "server-adaptive", "client-fixed", "client-adaptive", "local"]


class PrivacySettings(Section):
    """The section ``dp``."""

    mode: Privacy
    clipping_norm: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)
    epsilon: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
