"""The backbone's normalisation layers are trained and sent: a baseline of FedDAT's paper."""

from torch import nn

from .part_of_model import PartOfModel


class LayerNorms(PartOfModel):
    """What lies in a layer norm, of either kind."""

    name = "layernorm"
    note = "Of the backbone's weights those of its normalisation layers alone were trained."

    def names(self, model: nn.Module) -> list[str]:
        """Name the parameters of all normalisation layers."""
        return [
            f"{place}.{name}"
            for place, module in model.named_modules()
            if isinstance(module, nn.LayerNorm | nn.RMSNorm)
            for name, _ in module.named_parameters(recurse=False)
        ]
