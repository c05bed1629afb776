"""The module that adapts the output of another module: ``h ← h + Σ_a s_a · up_a(f(down_a(h)))``."""

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN

from .config import BottleneckConfig


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module followed by bottleneck adapters (Houlsby et al., 2019, https://arxiv.org/abs/1902.00751).

    Active adapters stand in parallel: each sees the base module's own output.

    Parameters
    ----------
    base_layer : nn.Module
        Any module that returns a tensor of shape ``(..., d)``, or a tuple that starts with one. The width d
        is that of the last `nn.Linear` or `nn.LayerNorm` registered in it, or that it is.
    adapter_name : str
        Name of the first adapter.
    config : BottleneckConfig
        Its configuration.

    Raises
    ------
    ValueError
        If d cannot be found, or `reduction_factor` does not divide it.
    """

    adapter_layer_names: tuple[str, ...] = ("bottleneck_down", "bottleneck_act", "bottleneck_up")
    other_param_names: tuple[str, ...] = ("scaling",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        last = _last_projection(self.get_base_layer())
        self.hidden_size = last.out_features if isinstance(last, nn.Linear) else last.normalized_shape[-1]
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_act = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter of the given name; raises `ValueError` as the class does."""
        width, rest = divmod(self.hidden_size, config.reduction_factor)
        if rest:
            size, factor = self.hidden_size, config.reduction_factor
            raise ValueError(f"`reduction_factor` must divide the hidden size {size}, got {factor}.")
        down, up = nn.Linear(self.hidden_size, width), nn.Linear(width, self.hidden_size)
        if config.init_weights:
            for linear in (down, up):
                nn.init.normal_(linear.weight, std=config.init_std)
                nn.init.zeros_(linear.bias)
        if config.init_weights == "zero_up":
            nn.init.zeros_(up.weight)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_act[adapter_name] = ACT2FN[config.non_linearity]
        self.bottleneck_up[adapter_name] = up
        self.scaling[adapter_name] = config.scaling
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        # A block made of several modules has no weight of its own.
        return super()._get_base_layer_device_and_dtype(_last_projection(base_layer))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: the non-linearity cannot be folded into the base module's weights.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("BOTTLENECK adapters cannot be merged into the base model: they are not linear.")

    def unmerge(self) -> None:
        """Do nothing, as nothing is ever merged."""

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """Call the base module with what it takes, and `adapt` what it returns."""
        output = self.base_layer(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.adapt(output[0], adapter_names), *output[1:])
        return self.adapt(output, adapter_names)

    def adapt(self, hidden: torch.Tensor, adapter_names: list[str] | None = None) -> torch.Tensor:
        """Apply the adapters to an output of the base module.

        Parameters
        ----------
        hidden : torch.Tensor
            The output, of shape ``(..., d)``.
        adapter_names : list of str or None
            The adapter of each row of the batch (``"__base__"``: none); ``None`` applies the active adapters.

        Returns
        -------
        torch.Tensor
            ``h + Σ_a s_a · up_a(f(down_a(h)))``, of the shape and dtype of `hidden`.

        Raises
        ------
        ValueError
            If `adapter_names` does not have one name a row.
        """
        if self.disable_adapters:
            return hidden
        if adapter_names is None:
            return self._add_adapters(hidden, self.active_adapters)
        if len(adapter_names) != len(hidden):
            raise ValueError(
                f"`adapter_names` must have {len(hidden)} names, one a row, got {len(adapter_names)}."
            )
        result = hidden.clone()
        for name in set(adapter_names):
            rows = [row for row, row_name in enumerate(adapter_names) if row_name == name]
            result[rows] = self._add_adapters(hidden[rows], [name])
        return result

    def _add_adapters(self, hidden: torch.Tensor, names: Iterable[str]) -> torch.Tensor:
        result = hidden
        for name in names:
            if name in self.bottleneck_up:  # an adapter need not be on every layer
                down, act = self.bottleneck_down[name], self.bottleneck_act[name]
                x = self._cast_input_dtype(hidden, down.weight.dtype)  # type: ignore[arg-type]
                delta = self.bottleneck_up[name](act(down(x)))
                result = torch.add(result, delta, alpha=self.scaling[name])
        return result.to(hidden.dtype)


def _last_projection(module: nn.Module) -> nn.Linear | nn.LayerNorm:
    """Find the last `nn.Linear` or `nn.LayerNorm` in a module: their outputs are of one width."""
    found = [part for part in module.modules() if isinstance(part, nn.Linear | nn.LayerNorm)]
    if not found:
        kind = type(module).__name__
        raise ValueError(
            f"`target_modules` must match modules with an nn.Linear or nn.LayerNorm, got {kind}."
        )
    return found[-1]
