"""The configuration of a bottleneck adapter."""

from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType
from transformers.activations import ACT2FN


@dataclass
class BottleneckConfig(PeftConfig):
    """Configure a `BottleneckModel`; what each field means is written in its ``help``.

    Raises
    ------
    ValueError
        If a field has a value that is not allowed.
    """

    reduction_factor: int = field(
        default=16,
        metadata={
            "help": "Hidden size divided by the bottleneck's width; must divide each place's hidden size."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules whose output is adapted: a list of name suffixes, or a regular expression that "
            "matches the whole name. None: the end of the feed-forward network of every Transformer block."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules that are left alone although `target_modules` matches them."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the Transformer blocks to adapt. None: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Name of the list of blocks that `layers_to_transform` counts, e.g. 'layers'. "
            "None: the first numbered part of a module's name."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved in full beside the adapter."}
    )
    non_linearity: str = field(
        default="relu", metadata={"help": "Activation of the bottleneck, by its name in transformers."}
    )
    scaling: float = field(
        default=1.0, metadata={"help": "Factor of the adapter's output before it is added."}
    )
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "True: normal weights and zero biases, as published. 'zero_up': the same with the weight "
            "of the up-projection zero, to start from the base model. False: as torch.nn.Linear comes."
        },
    )
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the initial weights."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("BOTTLENECK")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

        if not isinstance(self.reduction_factor, int) or self.reduction_factor < 1:
            raise ValueError(f"`reduction_factor` must be a positive integer, got {self.reduction_factor!r}.")
        if self.non_linearity not in ACT2FN:
            allowed = ", ".join(sorted(ACT2FN))
            raise ValueError(f"`non_linearity` must be one of {allowed}, got {self.non_linearity!r}.")
        if self.init_weights not in (True, False, "zero_up"):
            raise ValueError(f"`init_weights` must be True, False or 'zero_up', got {self.init_weights!r}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"`layers_pattern` needs `layers_to_transform`, got {self.layers_pattern!r} alone."
            )
