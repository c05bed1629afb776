"""Differential privacy of clients."""

from math import log, sqrt
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

    @property
    def local_deviation(self) -> float:
        """The standard deviation of local noise, 2 C √(2 ln 1.25/δ) / ε.

        Two changes of norm C are at most 2 C apart. Dwork & Roth, "The Algorithmic Foundations of
        Differential Privacy", 2014, theorem A.1, for ε in (0, 1).
        """
        return 2 * self.clipping_norm * sqrt(2 * log(1.25 / self.delta)) / self.epsilon
