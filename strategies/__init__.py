"""Flower strategies around Flower strategies; needs flwr and numpy only."""

from .checks import is_private, reason_to_refuse
from .feddat import FedDAT
from .observer import RoundObserver
from .privacy import central_privacy
from .resume import Checkpoint, CheckpointStore, Resumable
from .wrapper import StrategyWrapper

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "FedDAT",
    "Resumable",
    "RoundObserver",
    "StrategyWrapper",
    "central_privacy",
    "is_private",
    "reason_to_refuse",
]
