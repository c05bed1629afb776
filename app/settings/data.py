"""The data: which benchmark, how it is shared out, where a client keeps its private state."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .section import Section, is_relative


class DataSettings(Section):
    """Top-level settings of the clients' data."""

    benchmark: str
    heterogeneity: str
    data_dir: str
    num_answers: int = Field(gt=1)
    train_examples: int = Field(ge=0)
    test_examples: int = Field(ge=0)
    split_by: Literal["iid", "dirichlet"]
    dirichlet_alpha: float = Field(gt=0)
    imbalance_factor: float = Field(ge=1)
    public_per_class: int = Field(ge=0)
    on_bad_row: Literal["error", "skip"]
    private_state: Literal["files", "context"]

    @property
    def of_files(self) -> bool:
        """Whether the benchmark's data are files in `data_dir`."""
        return self.benchmark in ("vqa-domains", "cifar10-lt", "cifar100-lt")

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        return self.refuse(
            (
                self.of_files and not self.data_dir,
                f"data-dir = '' with benchmark = {self.benchmark!r}; allowed: the absolute path of a folder",
            ),
            (
                is_relative(self.data_dir),
                f"data-dir = {self.data_dir!r} is relative; allowed: an absolute path",
            ),
        )
