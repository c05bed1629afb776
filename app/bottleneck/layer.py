"""The module that adapts the output of another module: ``h ← h + Σ_a s_a · up_a(f(down_a(h)))``."""

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from .config import BottleneckConfig


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module followed by bottleneck adapters (Houlsby et al., 2019, https://arxiv.org/abs/1902.00751).

    Active adapters stand in parallel: each sees the base module's own output.

    Parameters
    ----------
    base_layer : nn.Module
        Any module that returns a tensor of shape ``(..., d)``, or a tuple that starts with one. The width d
        is that of the last linear layer (`nn.Linear`, transformers' `Conv1D`, or another with
        ``out_features``) or layer norm registered in it, or that it is. Its attributes are the layer's too.
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
        self.hidden_size = output_width(self.get_base_layer())
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_act = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter of the given name; raises `ValueError` as the class does."""
        width = bottleneck_width(self.hidden_size, config.reduction_factor)
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

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of their parts, such as the kind of a block.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # a copy that is still being made
                raise
            return getattr(self.base_layer, name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        # A block made of several modules has no weight of its own.
        return super()._get_base_layer_device_and_dtype(_last_projection(base_layer)[0])

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
        """Call the base module with what it takes, and `adapt` what it returns.

        Raises
        ------
        ValueError
            If that is neither a tensor of width d nor a tuple that starts with one, or as `adapt` does.
        """
        output = self.base_layer(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, torch.Tensor) or hidden.shape[-1] != self.hidden_size:
            kind = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
            raise ValueError(
                f"`target_modules` must match modules that return (..., {self.hidden_size}), the width of "
                f"their last projection; {type(self.get_base_layer()).__name__} returned {kind}."
            )
        adapted = self.adapt(hidden, adapter_names)
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

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
                share = self.scaling[name]
                if isinstance(share, torch.Tensor):  # one for each row of the batch
                    result = result + share * delta
                else:
                    result = torch.add(result, delta, alpha=share)
        return result.to(hidden.dtype)


def output_width(module: nn.Module) -> int:
    """Return the width d of what a module returns, as far as its parts tell; see `BottleneckLayer`.

    Raises
    ------
    ValueError
        If none of its parts tells.
    """
    return _last_projection(module)[1]


def bottleneck_width(hidden_size: int, reduction_factor: int) -> int:
    """Return the width of a bottleneck at a place of width `hidden_size`.

    Raises
    ------
    ValueError
        If `reduction_factor` does not divide it.
    """
    width, rest = divmod(hidden_size, reduction_factor)
    if rest:
        raise ValueError(
            f"`reduction_factor` must divide the hidden size {hidden_size}, got {reduction_factor}."
        )
    return width


def _last_projection(module: nn.Module) -> tuple[nn.Module, int]:
    """Find the last linear layer or layer norm in a module, and its width."""
    for part in reversed(list(module.modules())):
        if isinstance(part, Conv1D):
            return part, part.nf
        if isinstance(part, nn.LayerNorm | nn.RMSNorm):
            return part, part.normalized_shape[-1]
        if isinstance(width := getattr(part, "out_features", None), int):
            return part, width
    kind = type(module).__name__
    raise ValueError(f"`target_modules` must match modules with a linear layer or a layer norm, got {kind}.")
