"""Methods of this project in PEFT's registry.

A method is registered once a process. A second copy of the code, imported under another name, is handed the
classes that are registered already, so that ``isinstance`` holds across both names.
"""

from typing import TypeVar

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

C = TypeVar("C", bound=PeftConfig)
M = TypeVar("M", bound=BaseTuner)


def registered(name: str, config: type[C], model: type[M]) -> tuple[type[C], type[M]]:
    """Register a method, and return its classes as they are registered, which may be another copy's."""
    known = name.upper()
    if known not in PEFT_TYPE_TO_TUNER_MAPPING:
        _add_peft_type(known)
        register_peft_method(name=name, config_cls=config, model_cls=model)
    return PEFT_TYPE_TO_CONFIG_MAPPING[known], PEFT_TYPE_TO_TUNER_MAPPING[known]  # type: ignore[index, return-value]


def _add_peft_type(name: str) -> None:
    """Add a member to PEFT's enumeration of methods, which is closed to other packages."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
