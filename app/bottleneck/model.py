"""The PEFT tuner that puts bottleneck adapters into a model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .config import BottleneckConfig
from .layer import BottleneckLayer, bottleneck_width, output_width
from .places import as_expression, feed_forward_places


class BottleneckModel(BaseTuner):
    """Adapt a pretrained model with bottleneck adapters.

    The method is described in https://arxiv.org/abs/1902.00751 (Houlsby et al., 2019); its placement, one
    adapter a block after the feed-forward network, in https://arxiv.org/abs/2005.00247 (Pfeiffer et al.,
    2021). The parameters are those of `BaseTuner`. Where a configuration names no `target_modules`, the
    places are found by the model's structure, see `places.feed_forward_places`. Each has a bottleneck of its
    own width.

    Raises
    ------
    ValueError
        If a target fits no module, or one that cannot be adapted. The model is then left as it was.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import ViltModel
    >>> backbone = ViltModel.from_pretrained("dandelin/vilt-b32-mlm")
    >>> model = get_peft_model(backbone, BottleneckConfig(reduction_factor=16))
    """

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        if peft_config.target_modules is None:
            places = feed_forward_places(self.model)
            if not places:
                raise NoMatchingPeftModuleError(
                    f"`target_modules` must be given: no block of {type(self.model).__name__} has a "
                    f"feed-forward network; there are {_names(self.model)}."
                )
            peft_config.target_modules = as_expression(places, self.model)
        return peft_config

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:  # type: ignore[override]
        # PEFT replaces one module after the other: what can go wrong is looked for before the first.
        _maybe_include_all_linear_layers(peft_config, model)
        _check_targets(self, peft_config, model)
        for module in model.modules():
            # In evaluation these two take the weights out of their parts and do not call them.
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            elif isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0

    @staticmethod
    def _check_target_module_exists(peft_config: BottleneckConfig, key: str) -> Any:  # type: ignore[override]
        # PEFT lets `layers_to_transform` narrow lists of names alone; the known placements are expressions.
        found = BaseTuner._check_target_module_exists(peft_config, key)
        layers = peft_config.layers_to_transform
        if not found or not isinstance(peft_config.target_modules, str) or layers is None or layers == []:
            return found
        patterns = peft_config.layers_pattern or r"[^.]*"
        pattern = patterns if isinstance(patterns, str) else "|".join(patterns)
        match = re.match(rf"(?:.*?\.)?(?:{pattern})\.(\d+)(?:\.|$)", key)
        return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            new_module = BottleneckLayer(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, new_module, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT also copies `child.weight`, which a block made of several modules does not have.
        setattr(parent, child_name, new_module)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a weighted sum of weights is not the weighted sum of what bottlenecks compute.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "BOTTLENECK adapters cannot be added up in their weights: they are not linear. To sum what they "
            "compute, activate them together by `base_model.set_adapter([...])`, with weights in the layers' "
            "`scaling`."
        )

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        # For one forward pass, hand `adapter_names`, one a row of the batch, to every adapted module.
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("`adapter_names` is for inference: call `eval()` first.")
        if unknown := sorted(set(adapter_names) - {"__base__", *self.peft_config}):
            raise ValueError(
                f"`adapter_names` must be among {['__base__', *self.peft_config]}, got {unknown}."
            )

        def add_names(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "adapter_names": adapter_names}

        routed = [m for m in self.modules() if isinstance(m, BottleneckLayer | AuxiliaryTrainingWrapper)]
        handles = [module.register_forward_pre_hook(add_names, with_kwargs=True) for module in routed]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _check_targets(tuner: BaseTuner, config: BottleneckConfig, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    targets = [
        name
        for name in modules
        if name and not name.startswith(inside) and tuner._check_target_module_exists(config, name)  # type: ignore[arg-type]
    ]
    targets_given = config.target_modules or []
    asked = [] if isinstance(targets_given, str) else targets_given
    unused = sorted(t for t in asked if not any(f".{name}".endswith(f".{t}") for name in modules))
    if unused or not targets:
        narrowed = "".join(
            f" with `{field}` = {value!r}"
            for field in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
            if not unused and (value := getattr(config, field)) is not None
        )
        raise NoMatchingPeftModuleError(
            f"`target_modules` = {unused or config.target_modules!r} fits nothing{narrowed} in "
            f"{type(model).__name__}; there are {_names(model)}."
        )
    for name in targets:
        parent = name.rpartition(".")[0]
        if outer := [other for other in targets if name.startswith(f"{other}.")]:
            raise ValueError(f"`target_modules` must not match a module and its part: {outer[0]} and {name}.")
        target = modules[name]
        if isinstance(target, nn.ModuleList | nn.ModuleDict):
            kind = type(target).__name__
            raise ValueError(f"`target_modules` must not match {name}: an nn.{kind} is never called.")
        if isinstance(modules[parent], nn.MultiheadAttention):
            raise ValueError(
                f"`target_modules` must not match {name}, which nn.MultiheadAttention never calls; "
                f"allowed: {parent}."
            )
        try:
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            bottleneck_width(output_width(base), config.reduction_factor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _names(model: nn.Module) -> str:
    """List the last parts of the names of what can be adapted, as `target_modules` takes them."""
    names = {
        name.rpartition(".")[2]: None
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict) and _has_width(module)
    }
    listed, most = [name for name in names if not name.isdigit()], 40
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _has_width(module: nn.Module) -> bool:
    try:
        return output_width(module) > 0
    except ValueError:
        return False
