"""All biases of the backbone are trained and sent: a baseline of FedDAT's paper.

Ben Zaken, Ravfogel, Goldberg, "BitFit", ACL 2022, arXiv 2106.10199.
"""

from torch import nn

from .part_of_model import PartOfModel


class Biases(PartOfModel):
    """What is named bias."""

    name = "bias"
    note = "Of the backbone's weights the biases alone were trained."

    def names(self, model: nn.Module) -> list[str]:
        """Name all biases."""
        return [name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"]
