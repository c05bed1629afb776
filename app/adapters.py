"""Adapters of a kind in a backbone, by name and size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig

from .backbones import Backbone
from .block_prompts import BlockPromptConfig
from .bottleneck import BottleneckConfig
from .dual_adapter import DualAdapter
from .families import Family
from .settings import Settings
from .spreading import is_spread

# What registers a kind that is this project's own with PEFT: a module of this package.
REGISTERED_BY = {"bottleneck": "bottleneck", "prompt": "block_prompts"}


def adapter_config(
    kind: str,
    *,
    reduction_factor: int = 16,
    lora_rank: int = 8,
    prompt_tokens: int = 16,
    width: int,
    lora_targets: str | Sequence[str] = ("query", "value"),
    left_alone: str | None = None,
    prompted: str | None = None,
    task_type: str = "FEATURE_EXTRACTION",
) -> PeftConfig:
    """Describe an adapter in PEFT's terms.

    Parameters
    ----------
    kind : str
        ``"bottleneck"`` (published: after the feed-forward network of every block), ``"lora"`` (on query and
        value) or ``"prompt"`` (learnt tokens in every block).
    reduction_factor : int
        Bottleneck: the backbone's width over the adapter's width.
    lora_rank : int
        LoRA: rank of the update.
    prompt_tokens : int
        Prompts: tokens a block.
    width : int
        The backbone's width.
    lora_targets : str or sequence of str
        LoRA: names of query and value in the backbone.
    left_alone : str, optional
        Bottleneck: modules that get none, as an expression that matches their whole name.
    prompted : str, optional
        Prompts: the blocks that get them, likewise.
    task_type : str
        What PEFT takes the backbone for when it loads the adapter.

    Raises
    ------
    ValueError
        If the kind is unknown, `reduction_factor` does not divide `width`, `lora_rank` exceeds `width`, or no
        block is `prompted`.
    """
    if kind == "bottleneck":
        if reduction_factor > width or width % reduction_factor:
            raise ValueError(
                f"reduction-factor = {reduction_factor}; allowed: a divisor of the backbone's width, {width}"
            )
        return BottleneckConfig(
            task_type=task_type, reduction_factor=reduction_factor, exclude_modules=left_alone
        )
    if kind == "lora":
        if lora_rank > width:
            raise ValueError(f"lora-rank = {lora_rank}; allowed: 1 to the backbone's width, {width}")
        return LoraConfig(
            task_type=task_type,
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=lora_targets if isinstance(lora_targets, str) else list(lora_targets),
        )
    if kind == "prompt":
        if prompted is None:
            raise ValueError("adapter = 'prompt' without blocks; allowed: `prompted`, or another kind")
        return BlockPromptConfig(task_type=task_type, num_tokens=prompt_tokens, target_modules=prompted)
    raise ValueError(f"adapter = {kind!r}; allowed: 'bottleneck', 'lora', 'prompt'")


@dataclass(frozen=True)
class Adapter:
    """A kind of adapter and its size, see `adapter_config`."""

    kind: str = "bottleneck"
    reduction_factor: int = 16
    lora_rank: int = 8
    prompt_tokens: int = 16

    @classmethod
    def of(cls, settings: Settings) -> "Adapter":
        """Return that of a run."""
        return cls(settings.adapter, settings.reduction_factor, settings.lora_rank, settings.prompt_tokens)

    def check(self, family: Family, backbone: str) -> None:
        """Raise a ValueError if a family, that of the backbone of this name, takes none of this kind."""
        if not family.adapters:
            raise ValueError(
                f"backbone = {backbone!r} has no Transformer blocks for adapters;"
                " allowed with method = 'full'"
            )
        if self.kind == "prompt" and family.prompted is None:
            raise ValueError(
                f"adapter = 'prompt' with backbone = {backbone!r}; allowed: 'bottleneck', 'lora'"
            )

    def config(self, backbone: Backbone) -> PeftConfig:
        """Describe it for a backbone; ValueError as `check` and `adapter_config`."""
        family = backbone.family
        self.check(family, backbone.name)
        return adapter_config(
            self.kind,
            reduction_factor=self.reduction_factor,
            lora_rank=self.lora_rank,
            prompt_tokens=self.prompt_tokens,
            width=family.adapted_width(backbone.model.config),
            lora_targets=family.lora_places(backbone.model) if self.kind == "lora" else (),
            left_alone=family.places_left_alone(backbone.model) if self.kind == "bottleneck" else None,
            prompted=family.prompted,
            task_type=family.task_type,
        )


def adapt(
    backbone: Backbone,
    config: PeftConfig,
    seed: int = 0,
    device: torch.device | str | None = None,
    kind: type[DualAdapter] = DualAdapter,
) -> DualAdapter:
    """Put three adapters into a backbone that is left as it is; its features are what a head is to take.

    `device` is where it computes; None, and always where it is spread: where the backbone is. `kind` may be a
    subclass.
    """
    split = backbone.family.split
    adapter = kind(
        backbone.fork(),
        config,
        seed=seed,
        forward=backbone.features,
        split=lambda model: split(model, backbone.processor),
    )
    return adapter if device is None or is_spread(backbone.model) else adapter.to(device)
