"""Frozen weights in fewer bits than they are computed with.

``int8``: torchao's, with a scale for each row of a linear layer's weight, on any device. ``nf4``: the four
bits of bitsandbytes (Dettmers et al., "QLoRA", NeurIPS 2023, arXiv 2305.14314), on CUDA. Adapters stay
float32. Both packages are extras.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, TorchAoConfig

QUANTISED = ("int8", "nf4")


def loading(precision: str) -> dict[str, Any]:
    """Return what ``from_pretrained`` is given for a value of the setting `backbone-precision`.

    Raises
    ------
    ValueError
        What it needs is not there, a package or a GPU.
    """
    match precision:
        case "int8":
            _need("torchao", precision)
            from torchao.quantization import Int8WeightOnlyConfig

            return {"dtype": torch.float32, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
        case "nf4":
            if not torch.cuda.is_available():
                raise ValueError(
                    "backbone-precision = 'nf4' without CUDA; allowed: 'float32', 'bfloat16', 'int8'"
                )
            _need("bitsandbytes", precision)
            four_bits = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            return {"dtype": torch.bfloat16, "quantization_config": four_bits, "device_map": {"": "cuda"}}
        case _:
            return {"dtype": getattr(torch, precision)}


def _need(package: str, precision: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"backbone-precision = {precision!r} needs the package {package}, which is not there; allowed:"
            f" 'float32', 'bfloat16', or pip install 'feddat[{precision}]'"
        )


def tensors_in(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor is made of: its values and scales, or it alone."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in tensors_in(getattr(tensor, name))]
