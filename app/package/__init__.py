"""feddat: federated fine-tuning of foundation models with adapters that teach each other.

The public names. Each is imported when it is first used: the strategies need Flower and NumPy alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

from feddat.app import __version__

if TYPE_CHECKING:
    from feddat.app import Distillation, DualAdapter, FedDATClient, PrivateStore, mkd_step, reference_step
    from feddat.strategies import FedDAT, MLLMAlignment, Resumable

__all__ = [
    "Distillation",
    "DualAdapter",
    "FedDAT",
    "FedDATClient",
    "MLLMAlignment",
    "PrivateStore",
    "Resumable",
    "__version__",
    "mkd_step",
    "reference_step",
]

_OF_STRATEGIES = {"FedDAT", "MLLMAlignment", "Resumable"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'feddat' has no attribute {name!r}")
    package = "feddat.strategies" if name in _OF_STRATEGIES else "feddat.app"
    try:
        return getattr(importlib.import_module(package), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}: pip install 'feddat[client]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
