"""The federation: what aggregates, what is refused, what travels and how often is evaluated."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section

Strategy = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum"
]


class FederationSettings(Section):
    """Top-level settings of the federation."""

    strategy: Strategy
    weighting: Literal["uniform", "num-examples"]
    max_change: float = Field(gt=0)
    clip_change: float = Field(ge=0)
    min_clients: int = Field(gt=0)
    max_failure_rate: float = Field(ge=0, le=1)
    server_learning_rate: float = Field(gt=0)
    server_momentum: float = Field(ge=0, lt=1)
    proximal_mu: float = Field(ge=0)
    wire_precision: Literal["float32", "bfloat16", "int8", "int4"]
    fraction_train: float = Field(gt=0, le=1)
    evaluate_every: int = Field(gt=0)
    evaluate_on: Literal["test", "validation"]

    @model_validator(mode="after")
    def _check_federation(self) -> Self:
        return self.refuse(
            (
                self.strategy != "fedprox" and self.proximal_mu > 0,
                f"proximal-mu = {self.proximal_mu} has no effect; allowed: 0, or strategy = 'fedprox'",
            ),
            (
                self.weighting == "num-examples" and self.strategy in ("fedmedian", "fedtrimmedavg", "krum"),
                f"weighting = 'num-examples' has no effect under {self.strategy!r}; allowed: 'uniform'",
            ),
            (
                self.strategy == "fedprox" and self.proximal_mu == 0,
                "proximal-mu = 0 makes strategy = 'fedprox' plain 'fedavg'; allowed: more than 0",
            ),
        )
