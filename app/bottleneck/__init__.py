"""Bottleneck adapters (Houlsby et al., 2019; Pfeiffer et al., 2021) as a PEFT method named ``BOTTLENECK``.

Importing the package registers the method, once a process. A second copy of the code, imported under another
name, hands out the classes that are registered already, so that ``isinstance`` holds across both names.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from .config import BottleneckConfig
from .layer import BottleneckLayer
from .model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]


def _add_peft_type(name: str) -> None:
    """Add a member to PEFT's enumeration of methods, which is closed to other packages."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member


if "BOTTLENECK" in PEFT_TYPE_TO_TUNER_MAPPING:
    BottleneckConfig = PEFT_TYPE_TO_CONFIG_MAPPING["BOTTLENECK"]  # type: ignore[misc, assignment, index]
    BottleneckModel = PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"]  # type: ignore[misc, assignment, index]
    BottleneckLayer = BottleneckModel.tuner_layer_cls  # type: ignore[misc]
else:
    _add_peft_type("BOTTLENECK")
    register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)
