"""Flower strategies around Flower strategies; needs flwr and numpy only."""

from .checks import is_private, one_line, reason_to_refuse
from .feddat import FedDAT
from .observer import RoundObserver
from .wrapper import StrategyWrapper

__all__ = ["FedDAT", "RoundObserver", "StrategyWrapper", "is_private", "one_line", "reason_to_refuse"]
