"""The shared adapter that a federation starts from: as it was made, or pretrained on the server."""

import torch
from datasets import Dataset
from torch import Tensor

from app.backbones import open_backbone
from app.dual_adapter import DualAdapter
from app.settings import Settings

from .dynamic_weighting import DynamicWeighting, Student, split_aside
from .frozen_models import load_frozen
from .trainer import train


class AdapterPretraining:
    """Dynamic weighted pretraining of the shared adapter, on the adapter's device.

    The models are loaded when it is made, so that what cannot be used is known before anybody waits for it.

    Parameters
    ----------
    settings : Settings
        Name encoder, language model, steps, batch size, learning rate and seed.
    adapter : DualAdapter
        Training starts at its first weights, which its shared adapter has again afterwards.
    captioned : Dataset
        Columns image and captions (list of str).

    Raises
    ------
    ValueError
        If a model cannot be loaded or the captions cannot be used; one line.
    """

    def __init__(self, settings: Settings, adapter: DualAdapter, captioned: Dataset) -> None:
        data, held_out = split_aside(captioned)
        models = load_frozen(
            settings.pretrain.encoder,
            settings.pretrain.language_model or settings.pretrain.encoder,
            adapter.device,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            objective = DynamicWeighting(Student(open_backbone(settings), adapter), *models, data, held_out)
        self.settings, self.adapter, self.objective = settings, adapter, objective.to(adapter.device)

    def run(self) -> dict[str, Tensor]:
        """Train, and return A_s by its names on the wire: what the federation starts from."""
        settings, adapter = self.settings, self.adapter
        adapter.begin_anew()
        train(
            self.objective,
            steps=settings.pretrain.steps,
            batch_size=settings.batch_size,
            peak=settings.pretrain.learning_rate,
            seed=settings.seed,
        )
        pretrained = adapter.state("shared")
        adapter.begin_anew()
        return pretrained
