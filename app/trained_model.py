"""What the two ways to train a backbone, by adapters or as a whole, have in common."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .backbones import Backbone

Role = Literal["shared", "frozen", "local"]
Branch = Literal["student", "teacher", "local"]


class TrainedModel(nn.Module):
    """A backbone of which some weights are trained, known by their role.

    Attributes
    ----------
    backbone : Backbone
        It is left as it is.
    parameters_of : dict
        Role → weights by the name they have on the wire.
    initial_shared, initial_local : dict
        The weights as they were made: the federation's first, and every client's first.
    """

    backbone: Backbone
    parameters_of: dict[str, dict[str, Any]]
    initial_shared: dict[str, Tensor]
    initial_local: dict[str, Tensor]

    @property
    def model(self) -> Any:
        """The backbone with what is trained inside."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def state(self, role: Role) -> dict[str, Tensor]:
        """Return a copy of one role's weights by their names on the wire."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters_of[role].items()}

    @torch.no_grad()
    def load(self, role: Role, state: Mapping[str, Tensor]) -> None:
        """Overwrite one role's weights.

        Raises
        ------
        ValueError
            If names or shapes are not its own.
        """
        own = self.parameters_of[role]
        if state.keys() != own.keys():
            odd = sorted(state.keys() ^ own.keys())
            raise ValueError(f"adapter {role!r}: arrays missing or not known: {', '.join(odd[:3])}")
        for name, parameter in own.items():
            if state[name].shape != parameter.shape:
                raise ValueError(
                    f"adapter {role!r}: {name} has shape {tuple(state[name].shape)}, "
                    f"not {tuple(parameter.shape)}"
                )
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def receive(self, shared: Mapping[str, Tensor]) -> None:
        """Take what is shared as it arrives from the server."""
        self.load("shared", shared)

    def trunk(self, inputs: Mapping[str, Tensor]) -> Any:
        """Compute what all branches have in common."""
        raise NotImplementedError

    def features(self, trunk: Any, branch: Branch) -> Tensor:
        """Compute a branch's features (batch, width) from the trunk on."""
        raise NotImplementedError

    def _normalised(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = inputs["pixel_values"]
        if pixels.dtype == torch.uint8:
            pixels = self.backbone.processor.normalise(pixels)
        return {**inputs, "pixel_values": pixels}
