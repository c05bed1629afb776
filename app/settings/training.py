"""Local training."""

from typing import Literal

from pydantic import Field

from .section import Section

# Values of `device` that are values of transformers' ``device_map``.
SPREAD = ("balanced", "sequential")


class TrainingSettings(Section):
    """Top-level settings of a client's training."""

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1)
    schedule: Literal["linear", "constant"]
    augment: bool
    batch_size: int = Field(gt=0)
    gradient_accumulation: int = Field(gt=0)
    local_epochs: int = Field(gt=0)
    gradient_checkpointing: bool
    device: str

    @property
    def device_map(self) -> str:
        """How the backbone is spread over several GPUs, in transformers' terms; ``""``: it is not."""
        return self.device if self.device in SPREAD else ""
