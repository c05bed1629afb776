"""Flower strategies around Flower strategies; needs flwr and numpy only."""

from .checks import is_private, one_line, reason_to_refuse
from .codec import Codec
from .feddat import FedDAT
from .mllm_alignment import Aligner, MLLMAlignment
from .observer import RoundObserver
from .privacy import central_privacy
from .resume import Checkpoint, CheckpointStore, Resumable
from .wrapper import StrategyWrapper

__all__ = [
    "Aligner",
    "Checkpoint",
    "CheckpointStore",
    "Codec",
    "FedDAT",
    "MLLMAlignment",
    "Resumable",
    "RoundObserver",
    "StrategyWrapper",
    "central_privacy",
    "is_private",
    "one_line",
    "reason_to_refuse",
]
