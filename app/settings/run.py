"""The run: its name, its length, who takes part, how long is waited."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # it names folders, here and at the clients
NAME_PATTERN = rf"^({RUN_NAME})?$"


class RunSettings(Section):
    """Top-level settings of the run."""

    run_name: str = Field(pattern=NAME_PATTERN, max_length=100)
    resume: str = Field(pattern=NAME_PATTERN, max_length=100)
    seed: int = Field(ge=0, lt=2**31)
    num_rounds: int = Field(gt=0)
    num_clients: int = Field(ge=0)
    node_partitions: str = Field(pattern=r"^(any|([0-9]+=[0-9]+( [0-9]+=[0-9]+)*)?)$")
    wait_seconds: float = Field(gt=0)
    round_timeout: float = Field(gt=0)
    server_device: str
    tracker: str

    @property
    def places(self) -> Literal["first", "any"] | dict[int, int]:
        """Whose partition is whose, as `strategies.FedDAT` takes it."""
        if self.node_partitions in ("", "any"):
            return "any" if self.node_partitions else "first"
        return {int(partition): int(node) for partition, node in self._named()}

    def _named(self) -> list[list[str]]:
        return [pair.split("=") for pair in self.node_partitions.split() if "=" in pair]

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        one_to_one = all(
            len({int(name) for name in names}) == len(names) for names in zip(*self._named(), strict=True)
        )
        return self.refuse(
            (
                not one_to_one,
                f"node-partitions = {self.node_partitions!r} names one twice; allowed: each partition and"
                " each node once",
            ),
            (
                bool(self.resume) and self.run_name not in ("", self.resume),
                f"run-name = {self.run_name!r} with resume = {self.resume!r}; allowed: '' or the same",
            ),
        )
