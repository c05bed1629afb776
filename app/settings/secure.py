"""Secure aggregation."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from .section import Section

if TYPE_CHECKING:
    from .settings import Settings

LEAST_PARTIES = 3  # a sum of two tells each of them the other's change
_DEVIATIONS = 4


class SecureSettings(Section):
    """The section ``secure``."""

    aggregation: bool
    threshold: float = Field(gt=0.5, le=1)
    bits: int = Field(ge=2, le=24)
    range: float = Field(gt=0)

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> "SecureSettings":
        """Read this section alone, which takes far less time than all of them."""
        prefix = "secure."
        own = {key.removeprefix(prefix): v for key, v in run_config.items() if key.startswith(prefix)}
        return cls.model_validate(own)

    def problems(self, settings: "Settings") -> Iterable[tuple[bool, str]]:
        """Refuse what needs to know a single change, or to change what is masked."""
        deviation, clients = settings.dp.local_deviation, settings.num_clients * settings.fraction_train
        for wrong, what, why, allowed in (
            (
                settings.strategy in ("fedmedian", "fedtrimmedavg", "krum"),
                f"strategy = {settings.strategy!r}",
                "whose server has no single changes to choose among",
                "strategies that average",
            ),
            (
                settings.weighting != "uniform",
                f"weighting = {settings.weighting!r}",
                "whose server could not bound what a client's own count weighs",
                "'uniform'",
            ),
            (
                settings.dp.mode not in ("none", "local"),
                f"dp.mode = {settings.dp.mode!r}",
                "whose server cannot see to it that a change is clipped",
                "'none' or 'local'",
            ),
            (
                settings.dp.mode == "local" and self.range < _DEVIATIONS * deviation,
                f"secure.range = {self.range:g}",
                f"and local noise of standard deviation {deviation:.3g}",
                f"{_DEVIATIONS} times that",
            ),
            (
                settings.wire_precision != "float32",
                f"wire-precision = {settings.wire_precision!r}",
                "under which masked whole numbers travel",
                "'float32'",
            ),
            (
                settings.private_state == "context",
                "private-state = 'context'",
                "whose secrets lie in files alone",
                "'files'",
            ),
            (
                0 < clients < LEAST_PARTIES,
                f"num-clients = {settings.num_clients}, fraction-train = {settings.fraction_train:g}",
                "where a sum of two would tell each of them the other's change",
                f"{LEAST_PARTIES} clients in a round",
            ),
        ):
            yield (
                self.aggregation and wrong,
                f"{what} with secure.aggregation = true, {why}; allowed: {allowed}",
            )
