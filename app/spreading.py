"""A model that lies on several GPUs, its modules hooked by Accelerate (transformers' ``device_map``).

Each module moves what it is given to where its weights are. PEFT puts an adapter beside what it wraps.
"""

from torch import nn


def is_spread(model: nn.Module) -> bool:
    """Whether a model's modules lie on several devices, so that it must not be moved as a whole."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def check_spread(model: nn.Module, device: str) -> None:
    """Raise a ValueError that names the setting `device` if weights lie on none, for want of memory.

    They would be fetched in each forward, and stay on the GPU for the backward pass anyway.
    """
    away = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if away:
        raise ValueError(
            f"device = {device!r}: the GPUs have no memory for {away}; allowed: more GPUs, or a"
            " backbone-precision of fewer bits"
        )
