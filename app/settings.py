"""The run's settings: read once from Flower's run-config, typed and checked.

Keys, defaults and what each trades are documented in one place: ``[tool.flwr.app.config]`` of
``pyproject.toml``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

Strategy = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum"
]
Privacy = Literal["none", "server-fixed", "server-adaptive", "client-fixed", "client-adaptive", "local"]

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # it names folders, here and at the clients


class SettingsError(ValueError):
    """A setting that cannot be used; one line naming the key, the value and what is allowed."""


class Settings(BaseModel):
    """All settings of a run; a field's key is its name with hyphens. Build one with `read_settings`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # else `true` is the number 1, and text is read as a number
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    run_name: str = Field(pattern=rf"^({RUN_NAME})?$", max_length=100)
    resume: str = Field(pattern=rf"^({RUN_NAME})?$", max_length=100)
    seed: int = Field(ge=0, lt=2**31)
    num_rounds: int = Field(gt=0)
    num_clients: int = Field(ge=0)
    node_partitions: str = Field(pattern=r"^(any|(\d+=\d+( \d+=\d+)*)?)$")
    wait_seconds: float = Field(gt=0)
    round_timeout: float = Field(gt=0)

    method: str
    alpha: float = Field(ge=0)
    beta: float = Field(ge=0)
    temperature: float = Field(gt=0)
    loss: Literal["bce-scores", "cross-entropy"]
    update: Literal["alternating", "joint"]
    step: Literal["fast", "reference"]

    backbone: str = Field(min_length=1)
    backbone_weights: Literal["pretrained", "random"]
    adapter: Literal["bottleneck", "lora"]
    reduction_factor: int = Field(gt=0)
    lora_rank: int = Field(gt=0)
    head: Literal["private", "shared"]

    pretrain: Literal["none", "adapter", "backbone"]
    pretrain_encoder: str
    pretrain_language_model: str
    pretrain_images: int = Field(gt=1)
    pretrain_steps: int = Field(gt=0)
    pretrain_learning_rate: float = Field(gt=0)

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1)
    schedule: Literal["linear", "constant"]
    augment: bool
    batch_size: int = Field(gt=0)
    local_epochs: int = Field(gt=0)
    device: str

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

    strategy: Strategy
    weighting: Literal["uniform", "num-examples"]
    max_change: float = Field(gt=0)
    clip_change: float = Field(ge=0)
    min_clients: int = Field(gt=0)
    max_failure_rate: float = Field(ge=0, le=1)
    server_learning_rate: float = Field(gt=0)
    proximal_mu: float = Field(ge=0)
    wire_precision: Literal["float32", "bfloat16", "int8", "int4"]
    fraction_train: float = Field(gt=0, le=1)
    evaluate_every: int = Field(gt=0)

    align: Literal["none", "each-round", "end"]
    align_steps: int = Field(ge=0)
    align_batch_size: int = Field(gt=0)
    align_learning_rate: float = Field(gt=0)
    align_labels: Literal["true", "none"]
    align_beta: float = Field(ge=0)
    align_temperature: float = Field(gt=0)
    align_target: Literal["teacher", "pooled"]
    align_part: Literal["all", "head"]
    align_radius: float = Field(gt=0)
    teacher: str
    teacher_prompt: str
    caption_prompt: str
    teacher_normalise: Literal["sum", "mean", "pmi"]
    teacher_temperature: float = Field(gt=0)
    teacher_margin: float = Field(ge=0, lt=1)
    public_data: str
    public_examples: int = Field(gt=1)
    server_device: str

    dp: Privacy
    dp_clipping_norm: float = Field(gt=0)
    dp_noise_multiplier: float = Field(gt=0)
    dp_epsilon: float = Field(gt=0, lt=1)
    dp_delta: float = Field(gt=0, lt=1)

    @property
    def places(self) -> Literal["first", "any"] | dict[int, int]:
        """Whose partition is whose, as `strategies.FedDAT` takes it."""
        if self.node_partitions in ("", "any"):
            return "any" if self.node_partitions else "first"
        return {int(partition): int(node) for partition, node in self._named()}

    def _named(self) -> list[list[str]]:
        return [pair.split("=") for pair in self.node_partitions.split() if "=" in pair]

    def _is_one_to_one(self) -> bool:
        return all(
            len({int(name) for name in names}) == len(names) for names in zip(*self._named(), strict=True)
        )

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        from .methods import METHODS  # they import this file

        if method not in METHODS:
            allowed = ", ".join(map(repr, METHODS))
            raise PydanticCustomError("allowed", "{allowed}", {"allowed": allowed})
        return method

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        from .methods import METHODS

        for wrong, message in (
            *METHODS[self.method].problems(self),
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
            (
                self.benchmark in ("vqa-domains", "cifar10-lt", "cifar100-lt") and not self.data_dir,
                f"data-dir = '' with benchmark = {self.benchmark!r}; allowed: the absolute path of a folder",
            ),
            (
                self.align != "none" and self.align_beta > 0 and not self.teacher,
                f"teacher = '' with align = {self.align!r}; allowed: a folder, a hub id, a parquet file of "
                "annotations, or align-beta = 0.0 to align by labels alone",
            ),
            (
                self.align != "none" and self.align_beta == 0 and self.align_labels == "none",
                "align-labels = 'none' with align-beta = 0.0 leaves nothing to align by; allowed: one alone",
            ),
            (
                self.align_target == "pooled" and self.align_labels == "none",
                "align-target = 'pooled' measures reliability on labels; allowed with align-labels = 'true'",
            ),
            (
                self.align_part == "head" and self.head == "private",
                "align-part = 'head' with head = 'private', where the server has no head that travels;"
                " allowed: 'all', or head = 'shared'",
            ),
            (
                bool(self.public_data) and not Path(self.public_data).expanduser().is_absolute(),
                f"public-data = {self.public_data!r} is relative; allowed: an absolute path",
            ),
            (
                not self._is_one_to_one(),
                f"node-partitions = {self.node_partitions!r} names one twice; allowed: each partition and"
                " each node once",
            ),
            (
                0 < self.num_clients < self.min_clients,
                f"min-clients = {self.min_clients} with num-clients = {self.num_clients};"
                f" allowed: at most num-clients",
            ),
            (
                bool(self.resume) and self.run_name not in ("", self.resume),
                f"run-name = {self.run_name!r} with resume = {self.resume!r}; allowed: '' or the same",
            ),
            (
                self.dp not in ("none", "local") and self.strategy not in ("fedavg", "fedprox"),
                f"dp = {self.dp!r} with strategy = {self.strategy!r}; allowed: 'fedavg' and 'fedprox', for"
                " whose plain mean its noise is made",
            ),
            (
                self.dp not in ("none", "local") and self.weighting != "uniform",
                f"dp = {self.dp!r} with weighting = {self.weighting!r}; allowed: 'uniform', the plain mean"
                " for which its noise is made",
            ),
            (
                self.dp not in ("none", "local") and self.num_clients == 0,
                f"num-clients = 0 with dp = {self.dp!r}; allowed: the number of clients, for which its noise"
                " is made whoever replies",
            ),
            (
                self.dp == "local" and self.weighting != "uniform",
                f"dp = 'local' with weighting = {self.weighting!r}; allowed: 'uniform', since clients do not"
                " say how many examples they have",
            ),
            (
                self.wire_precision != "float32" and self.dp in ("client-fixed", "client-adaptive", "local"),
                f"wire-precision = {self.wire_precision!r} with dp = {self.dp!r} would change what a client "
                "has clipped; allowed: 'float32', or a dp at the server",
            ),
            (
                self.pretrain == "backbone",
                "pretrain = 'backbone' makes weights that no round sends; allowed: 'none', 'adapter', or a "
                "backbone made before by `python -m server_app.pretraining dynamic`",
            ),
            (
                self.pretrain == "adapter" and not self.pretrain_encoder,
                "pretrain-encoder = '' with pretrain = 'adapter'; allowed: the folder or hub id of a CLIP, "
                "a vision transformer or a LLaVA",
            ),
            *(
                (
                    self.pretrain == "none" and bool(name),
                    f"{key} = {name!r} has no effect; allowed: '', or pretrain = 'adapter'",
                )
                for key, name in (
                    ("pretrain-encoder", self.pretrain_encoder),
                    ("pretrain-language-model", self.pretrain_language_model),
                )
            ),
            (
                self.pretrain == "adapter" and self.benchmark in ("vqa-domains", "cifar10-lt", "cifar100-lt"),
                f"pretrain = 'adapter' with benchmark = {self.benchmark!r}, which has no captioned public "
                "images; allowed: 'none', or benchmark = 'scenes'",
            ),
            (
                bool(self.data_dir) and not Path(self.data_dir).expanduser().is_absolute(),
                # A Flower app does not run in the folder that the user typed the command in.
                f"data-dir = {self.data_dir!r} is relative; allowed: an absolute path",
            ),
        ):
            if wrong:
                raise PydanticCustomError("combination", "{message}", {"message": message})
        return self


def read_settings(run_config: Mapping[str, bool | float | int | str]) -> Settings:
    """Check a run-config.

    Raises
    ------
    SettingsError
        One line naming the first wrong key, its value and what is allowed.
    """
    try:
        return Settings.model_validate(dict(run_config))
    except ValidationError as error:
        raise SettingsError(one_line_of(error)) from None


def one_line_of(error: ValidationError) -> str:
    """Say the first thing that is wrong: the key, the value and what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    key = key if key.isprintable() else repr(key)
    value = first["input"]
    match first["type"]:
        case "combination":
            return first["msg"]
        case "missing":
            return f"{key} is missing from the run-config"
        case "extra_forbidden":
            known = sorted(str(field.alias) for field in Settings.model_fields.values())
            return f"{key} = {value!r} is not a setting; allowed: {', '.join(known)}"
        case "literal_error":
            return f"{key} = {value!r}; allowed: {first['ctx']['expected']}"
        case _:
            return f"{key} = {value!r}; allowed: {first['msg'].removeprefix('Input should be ')}"


def feddat_home() -> Path:
    """Return the folder for everything that is kept: ``FEDDAT_HOME``, else ``~/.feddat``."""
    return Path(os.environ.get("FEDDAT_HOME") or "~/.feddat").expanduser().absolute()
