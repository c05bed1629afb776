"""A backbone of which all weights are trained and sent, as in the published long-tailed protocol."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .backbones import Backbone, choose_device, open_backbone
from .dual_adapter import open_adapter
from .settings import Settings
from .trained_model import Branch, TrainedModel


class FullModel(TrainedModel):
    """A copy of a backbone's weights, to be trained; its one branch is the student.

    The running statistics of batch normalisation are among what is shared: averaged, and not trained. The
    counters of batches, which nothing reads, are not.

    Parameters
    ----------
    backbone : Backbone
        What it starts as.
    device : torch.device
        Where it computes.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        super().__init__()
        self.backbone = backbone
        self.whole: Any = copy.deepcopy(backbone.model).to(device).requires_grad_(True)
        statistics = {name: b for name, b in self.whole.named_buffers() if b.is_floating_point()}
        self.parameters_of = {"shared": {**dict(self.whole.named_parameters()), **statistics}, "local": {}}
        self.initial_shared, self.initial_local = self.state("shared"), {}
        self.eval()

    @property
    def model(self):
        """The backbone's copy."""
        return self.whole

    def trunk(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise the inputs: no weight is frozen."""
        return self._normalised(inputs)

    def features(self, trunk: Mapping[str, Tensor], branch: Branch) -> Tensor:
        """Compute the features (batch, width)."""
        return self.whole(**trunk).pooler_output


def open_model(settings: Settings) -> TrainedModel:
    """Return the process's model for a run's settings, with the run's first weights when it is made.

    Clients of one process take turns with it, whatever is trained.

    Raises
    ------
    ValueError
        If the settings' backbone, adapter or device cannot be had.
    """
    if settings.method != "full":
        return open_adapter(settings)
    return _open_full(open_backbone(settings), str(choose_device(settings.device)))


@functools.lru_cache(maxsize=1)
def _open_full(backbone: Backbone, device: str) -> FullModel:
    return FullModel(backbone, torch.device(device))
