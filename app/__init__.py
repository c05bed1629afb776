"""The core: what server and clients compute with. The public names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dual_adapter import DualAdapter
    from .federated_client import FedDATClient
    from .learner import Learner
    from .mkd import Distillation, Outcome, mkd_step, reference_step
    from .private_store import PrivateStore

__version__ = "0.1.0"

_PLACES = {
    "Distillation": "mkd",
    "DualAdapter": "dual_adapter",
    "FedDATClient": "federated_client",
    "Learner": "learner",
    "Outcome": "mkd",
    "PrivateStore": "private_store",
    "mkd_step": "mkd",
    "reference_step": "mkd",
}
__all__ = [
    "Distillation",
    "DualAdapter",
    "FedDATClient",
    "Learner",
    "Outcome",
    "PrivateStore",
    "mkd_step",
    "reference_step",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
