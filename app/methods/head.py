"""The head alone is trained, on the frozen backbone's features: a baseline of FedDAT's paper.

With a private head nothing travels, and a client is by itself.
"""

from torch import nn

from .part_of_model import PartOfModel


class HeadOnly(PartOfModel):
    """No weight of the backbone."""

    name = "head"
    note = "No weight of the backbone was trained: the answer heads alone were."
    trained = ()

    def names(self, model: nn.Module) -> list[str]:
        """Name none."""
        return []
