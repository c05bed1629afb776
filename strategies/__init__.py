"""Flower strategies around Flower strategies; needs flwr and numpy only."""

from .checked import Checked
from .checks import one_line, reason_to_refuse
from .codec import Codec
from .combined import Combined
from .feddat import FedDAT
from .layout import Layout
from .membership import Admission
from .mllm_alignment import Aligner, MLLMAlignment
from .names import is_private
from .observer import RoundObserver
from .outliers import Limits
from .privacy import central_privacy
from .quorum import Quorum
from .resume import Checkpoint, CheckpointStore, Resumable
from .secure_aggregation import SecureAggregation, SecureSum
from .wrapper import StrategyWrapper

__all__ = [
    "Admission",
    "Aligner",
    "Checked",
    "Checkpoint",
    "CheckpointStore",
    "Codec",
    "Combined",
    "FedDAT",
    "Layout",
    "Limits",
    "MLLMAlignment",
    "Quorum",
    "Resumable",
    "RoundObserver",
    "SecureAggregation",
    "SecureSum",
    "StrategyWrapper",
    "central_privacy",
    "is_private",
    "one_line",
    "reason_to_refuse",
]
