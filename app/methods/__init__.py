"""Federated methods: one file each, found by the setting ``method``."""

import functools

import torch

from ..adapters import Adapter
from ..backbones import Backbone, check_backbone, choose_device, open_backbone
from ..checkpointing import recompute_blocks
from ..discovery import kinds_in
from ..dual_adapter import DualAdapter
from ..families import Family
from ..heads import TRAINED_HEADS
from ..learner import Learner
from ..settings import Settings
from .method import Method

__all__ = ["METHODS", "Method", "check_model", "open_learner"]


METHODS: dict[str, Method] = {kind.name: kind() for kind in kinds_in(__name__, __path__, Method)}  # type: ignore[type-abstract]


def open_learner(settings: Settings) -> Learner:
    """Return the process's learner for a run's settings, with the run's first weights when it is made.

    Building one takes far longer than loading other weights into it, so clients of one process take turns
    with it.

    Raises
    ------
    ValueError
        If the settings' backbone, adapter or device cannot be had, or do not go with the loss.
    """
    backbone = open_backbone(settings, settings.device_map)
    _check_loss(settings, backbone.family)
    learner = _open(
        METHODS[settings.method],
        backbone,
        Adapter.of(settings),
        settings.seed,
        str(choose_device(settings.device)),
        settings.gradient_checkpointing,
    )
    if isinstance(learner, DualAdapter):
        learner.branches["teacher"] = {"frozen": 1 - settings.local_share, "local": settings.local_share}
    return learner


def check_model(settings: Settings) -> None:
    """Raise a ValueError as `open_learner`, for what can be known without the backbone's weights."""
    family = check_backbone(settings)
    _check_loss(settings, family)
    if METHODS[settings.method].artifact == "adapter":
        Adapter.of(settings).check(family, settings.backbone)


def _check_loss(settings: Settings, family: Family) -> None:
    if settings.loss not in family.losses:
        head = "" if settings.head in TRAINED_HEADS else f" and head = {settings.head!r}"
        raise ValueError(
            f"loss = {settings.loss!r} with backbone = {settings.backbone!r}{head}; allowed: "
            f"{', '.join(map(repr, family.losses))}"
        )


@functools.lru_cache(maxsize=1)
def _open(
    method: Method, backbone: Backbone, adapter: Adapter, seed: int, device: str, recompute: bool
) -> Learner:
    learner = method.open(backbone, adapter, seed, torch.device(device))
    if recompute:
        recompute_blocks(learner)
    return learner
