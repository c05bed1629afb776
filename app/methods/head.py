"""The head alone is trained, on the frozen backbone's features: a baseline of FedDAT's paper.

With a private head nothing travels, and a client is by itself.
"""

from collections.abc import Iterable

from torch import nn

from ..heads import TRAINED_HEADS
from ..settings import Settings
from .part_of_model import PartOfModel


class HeadOnly(PartOfModel):
    """No weight of the backbone."""

    name = "head"
    note = "No weight of the backbone was trained: the answer heads alone were."
    trained = ()

    def problems(self, settings: Settings) -> Iterable[tuple[bool, str]]:
        """Refuse a head of which nothing is trained."""
        yield from super().problems(settings)
        yield (
            settings.head not in TRAINED_HEADS,
            f"head = {settings.head!r} with method = 'head', which trains nothing else; allowed:"
            f" {', '.join(map(repr, TRAINED_HEADS))}",
        )

    def names(self, model: nn.Module) -> list[str]:
        """Name none."""
        return []
