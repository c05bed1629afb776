"""The PEFT tuner that puts bottleneck adapters into a model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .config import BottleneckConfig
from .layer import BottleneckLayer

# After the feed-forward network: at the block's end where a module ends it, else before the residual sum.
TRANSFORMERS_MODELS_TO_BOTTLENECK_TARGET_MODULES_MAPPING = {
    "bert": r".*encoder\.layer\.\d+\.output",
    "clip": r".*layers\.\d+\.mlp",
    "clip_text_model": r".*layers\.\d+\.mlp",
    "clip_vision_model": r".*layers\.\d+\.mlp",
    "vilt": r".*encoder\.layer\.\d+\.output",
    "vit": r".*layers\.\d+\.mlp",
}


class BottleneckModel(BaseTuner):
    """Adapt a pretrained model with bottleneck adapters.

    The method is described in https://arxiv.org/abs/1902.00751 (Houlsby et al., 2019); its placement, one
    adapter a block after the feed-forward network, in https://arxiv.org/abs/2005.00247 (Pfeiffer et al.,
    2021). The parameters are those of `BaseTuner`.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import ViltModel
    >>> backbone = ViltModel.from_pretrained("dandelin/vilt-b32-mlm")
    >>> model = get_peft_model(backbone, BottleneckConfig(reduction_factor=16))
    """

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_BOTTLENECK_TARGET_MODULES_MAPPING  # type: ignore[assignment]

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
