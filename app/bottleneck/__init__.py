"""Bottleneck adapters (Houlsby et al., 2019; Pfeiffer et al., 2021) as a PEFT method named ``BOTTLENECK``.

Importing the package registers the method, see `peft_types`.
"""

from ..peft_types import registered
from .config import BottleneckConfig
from .layer import BottleneckLayer
from .model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

BottleneckConfig, BottleneckModel = registered(  # type: ignore[misc]
    "bottleneck", BottleneckConfig, BottleneckModel
)
BottleneckLayer = BottleneckModel.tuner_layer_cls  # type: ignore[misc]  # noqa: F811
