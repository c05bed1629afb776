"""Prompts in every block as a PEFT method named ``BLOCK_PROMPT``: importing the module registers it.

Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv
2104.08691, in the form for encoders: VPT-Deep of Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv
2203.12119. Learnt tokens follow those that enter a block, and what the block makes of them is left out:

    h ← block([h, Σ_a s_a · P_a]) without its last tokens
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn.functional import pad

from .bottleneck.layer import output_width
from .peft_types import registered


@dataclass
class BlockPromptConfig(PeftConfig):
    """Configure a `BlockPromptModel`; what each field means is written in its ``help``.

    Raises
    ------
    ValueError
        If a field has a value that is not allowed.
    """

    num_tokens: int = field(default=16, metadata={"help": "Learnt tokens a block."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The blocks: a list of name suffixes, or an expression for the whole name. Each takes "
            "hidden states (batch, tokens, width) first, and lets each token see all."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved in full beside the prompts."}
    )
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the initial tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("BLOCK_PROMPT")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if not isinstance(self.num_tokens, int) or self.num_tokens < 1:
            raise ValueError(f"`num_tokens` must be a positive integer, got {self.num_tokens!r}.")


class BlockPromptLayer(nn.Module, BaseTunerLayer):
    """A Transformer block that reads learnt tokens beside those it is given.

    The tokens of active adapters are added to each other, each times its scale.

    Parameters
    ----------
    base_layer : nn.Module
        A block: hidden states (batch, tokens, width) → the same, or a tuple that starts with them. Masks
        among its arguments are (batch or 1, heads or 1, queries, keys), 1 where a key is seen, or added to
        the logits. Its attributes are the layer's too.
    adapter_name : str
        Name of the first adapter.
    config : BlockPromptConfig
        Its configuration.

    Raises
    ------
    ValueError
        The module's width cannot be found, or its attention is causal: nothing before them sees the prompts.
    """

    adapter_layer_names: tuple[str, ...] = ("block_prompt_tokens",)
    other_param_names: tuple[str, ...] = ("scaling",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BlockPromptConfig) -> None:
        super().__init__()
        if any(getattr(module, "is_causal", False) for module in base_layer.modules()):
            kind = type(base_layer).__name__
            raise ValueError(f"`target_modules` must not match {kind}, whose attention is causal.")
        self.base_layer = base_layer
        self.block_prompt_tokens = nn.ParameterDict()
        self.scaling: dict[str, float | Tensor] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BlockPromptConfig) -> None:
        """Add an adapter of the given name."""
        tokens = torch.randn(config.num_tokens, output_width(self.get_base_layer())) * config.init_std
        place = next(self.base_layer.parameters()).device
        self.block_prompt_tokens[adapter_name] = nn.Parameter(tokens.to(place))
        self.scaling[adapter_name] = 1.0
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of their blocks.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # a copy that is still being made
                raise
            return getattr(self.base_layer, name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: tokens are no weights of the block.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("BLOCK_PROMPT adapters cannot be merged into the base model: they are tokens.")

    def unmerge(self) -> None:
        """Do nothing, as nothing is ever merged."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block with the tokens in place; its first argument may be named ``hidden_states``."""
        active = [name for name in self.active_adapters if name in self.block_prompt_tokens]
        if self.disable_adapters or not active:
            return self.base_layer(*args, **kwargs)
        hidden, *args = args or (kwargs.pop("hidden_states"),)  # type: ignore[assignment]
        batch, count, _ = hidden.shape
        own = sum(self.scaling[name] * self.block_prompt_tokens[name] for name in active)
        own = own.to(hidden.dtype).expand(batch, -1, -1)  # type: ignore[union-attr]

        def seen(value: Any) -> Any:
            """Let all see the tokens: no mask hides them."""
            if not isinstance(value, Tensor) or value.ndim != 4 or value.shape[-1] != count:
                return value
            asking = own.shape[1] if value.shape[-2] == count else 0
            return pad(value, (0, own.shape[1], 0, asking), value=not value.is_floating_point())

        output = self.base_layer(
            torch.cat([hidden, own], dim=1),
            *map(seen, args),
            **{name: seen(value) for name, value in kwargs.items()},
        )
        if isinstance(output, tuple):
            return (output[0][:, :count], *output[1:])
        return output[:, :count]


class BlockPromptModel(BaseTuner):
    """Adapt a pretrained encoder with prompts in its blocks; the parameters are those of `BaseTuner`."""

    prefix: str = "block_prompt_"
    tuner_layer_cls = BlockPromptLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: BlockPromptConfig, model_config: dict[str, Any]
    ) -> BlockPromptConfig:
        if peft_config.target_modules is None:
            raise ValueError("`target_modules` must be given: the blocks.")
        return peft_config

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: BlockPromptConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BlockPromptLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            layer = BlockPromptLayer(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT also copies `child.weight`, which a block does not have.
        setattr(parent, child_name, new_module)


BlockPromptConfig, BlockPromptModel = registered(  # type: ignore[misc]
    "block_prompt", BlockPromptConfig, BlockPromptModel
)
BlockPromptLayer = BlockPromptModel.tuner_layer_cls  # type: ignore[misc]
