"""The data: which benchmark, how it is shared out, where a client keeps its private state."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section, is_relative


class DataSettings(Section):
    """Top-level settings of the clients' data."""

    benchmark: str
    heterogeneity: str
    data_dir: str
    hub_data: str = Field(max_length=300)
    num_answers: int = Field(gt=1)
    train_examples: int = Field(ge=0)
    test_examples: int = Field(ge=0)
    split_by: Literal["iid", "dirichlet"]
    dirichlet_alpha: float = Field(gt=0)
    imbalance_factor: float = Field(ge=1)
    public_per_class: int = Field(ge=0)
    on_bad_row: Literal["error", "skip"]
    missing_modality: float = Field(ge=0, lt=1)
    private_state: Literal["files", "context"]

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        return self.refuse(
            (
                is_relative(self.data_dir),
                f"data-dir = {self.data_dir!r} is relative; allowed: an absolute path",
            ),
        )
