"""Flower strategies around Flower strategies; needs flwr and numpy only."""

from .checks import is_private, one_line, reason_to_refuse
from .feddat import FedDAT
from .mllm_alignment import Aligner, MLLMAlignment
from .observer import RoundObserver
from .wrapper import StrategyWrapper

__all__ = [
    "Aligner",
    "FedDAT",
    "MLLMAlignment",
    "RoundObserver",
    "StrategyWrapper",
    "is_private",
    "one_line",
    "reason_to_refuse",
]
