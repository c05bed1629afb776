"""The shared adapter that a federation starts from: as it was made, or pretrained on the server."""

import torch
from datasets import Dataset
from torch import Tensor

from app.dual_adapter import DualAdapter
from app.settings import Settings

from .dynamic_weighting import DynamicWeighting, Student, split_aside
from .frozen_models import load_frozen
from .trainer import train


def pretrain_adapter(settings: Settings, adapter: DualAdapter, captioned: Dataset) -> dict[str, Tensor]:
    """Train the shared adapter by dynamic weighted pretraining, on the adapter's device.

    Parameters
    ----------
    settings : Settings
        Name encoder, language model, steps, batch size, learning rate and seed.
    adapter : DualAdapter
        Training starts at its `initial_shared`, which its shared adapter is again afterwards.
    captioned : Dataset
        Columns image and captions (list of str).

    Returns
    -------
    dict
        A_s by its names on the wire, to start the federation from in place of `initial_shared`.

    Raises
    ------
    ValueError
        If a model cannot be loaded or the captions cannot be used; one line.
    """
    data, held_out = split_aside(captioned)
    models = load_frozen(
        settings.pretrain_encoder,
        settings.pretrain_language_model or settings.pretrain_encoder,
        adapter.device,
    )
    adapter.load("shared", adapter.initial_shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        objective = DynamicWeighting(Student(adapter.backbone, adapter), *models, data, held_out)
    train(
        objective.to(adapter.device),
        steps=settings.pretrain_steps,
        batch_size=settings.batch_size,
        peak=settings.pretrain_learning_rate,
        seed=settings.seed,
    )
    pretrained = adapter.state("shared")
    adapter.load("shared", adapter.initial_shared)
    return pretrained
