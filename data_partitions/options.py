"""What a benchmark is asked for. Imports no library: a client may have its examples without one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Everything that a benchmark may need to know.

    Attributes
    ----------
    cache_dir : Path
        Where drawn and prepared data are kept.
    seed : int
        Seed of drawing, sampling and splitting.
    heterogeneity : str
        `scenes`: in what clients differ: `domain`, `function`, `scene` or `task`.
    data_dir : str
        `vqa-domains`: folder of parquet files, one a domain. `cifar10-lt`, `cifar100-lt`: folder with theirs.
        `files`: folder of data in common forms. Others: what their owners publish.
    hub_data : str
        `files` without a `data_dir`: a data set of the Hugging Face hub, ``owner/name`` or
        ``owner/name@revision``.
    num_answers : int
        Length of a client's answer list, its most frequent training answers.
    train_examples, test_examples : int
        Most training and test examples a client; validation gets half as many as test. 0: all there are
        (`scenes`: 600 and 200).
    split_by : str
        How one natural client's data are shared by several clients: `iid`, or `dirichlet` over the answers.
    dirichlet_alpha : float
        Concentration of that Dirichlet distribution, and of the one that shares out `cifar10-lt` and
        `cifar100-lt`; smaller is more uneven.
    on_bad_row : str
        `error` ends the run at a row that cannot be used, `skip` leaves it out and counts it.
    evaluate_on : str
        Which rows a partition has to be scored on, as its ``test``: `test`, or `validation`.
    missing_modality : float
        `files`, `hflb`, `feddat-…`: share of a client's training examples that lack their pictures or, every
        other one, their text.
    public_data : str
        Parquet file of the server's public examples, in the format of `vqa-domains`. "": the benchmark's own.
    public_examples : int
        Most public examples for the server.
    imbalance_factor : float
        `cifar10-lt`, `cifar100-lt`: training examples of the largest class over those of the smallest.
    public_per_class : int
        There, how many examples of each class are reserved for the server.
    """

    cache_dir: Path
    seed: int = 0
    heterogeneity: str = "domain"
    data_dir: str = ""
    hub_data: str = ""
    num_answers: int = 100
    train_examples: int = 0
    test_examples: int = 0
    split_by: str = "iid"
    dirichlet_alpha: float = 0.5
    on_bad_row: str = "error"
    evaluate_on: str = "test"
    missing_modality: float = 0.0
    public_data: str = ""
    public_examples: int = 500
    imbalance_factor: float = 100.0
    public_per_class: int = 0

    @classmethod
    def of(cls, run_config: Mapping[str, Any], cache_dir: Path) -> "DataOptions":
        """Take, of a run-config's settings, those that are options: `public_data` is ``public.data``."""
        asked = {field.name for field in fields(cls)} - {"cache_dir"}
        named = {re.sub("[.-]", "_", key): value for key, value in run_config.items()}
        return cls(**{name: value for name, value in named.items() if name in asked}, cache_dir=cache_dir)

    def folder(self, wanted: str) -> Path:
        """Return `data_dir` as a path; a ValueError says if it is none, and what is `wanted`."""
        path = Path(self.data_dir).expanduser().absolute()
        if self.data_dir and path.is_dir():
            return path
        wrong = "does not exist" if self.data_dir and not path.exists() else "is not a folder"
        raise ValueError(f"data-dir = {self.data_dir!r} {wrong}; allowed: {wanted}")
