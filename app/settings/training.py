"""Local training."""

from typing import Literal

from pydantic import Field

from .section import Section


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
