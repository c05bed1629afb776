"""Each client by itself: an adapter that is trained and never sent, the control of every federation."""

from collections.abc import Mapping

from torch import Tensor

from ..learner import Learner
from .adapter import SharedAdapter


class Local(SharedAdapter):
    """The local adapter and the head; nothing travels."""

    name = "local"
    branches = ("local",)
    trained = ("local",)

    def travelling(self, learner: Learner) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def receive(self, learner: Learner, arrays: Mapping[str, Tensor]) -> None:
        """Take nothing; ValueError if something came."""
        if arrays:
            raise ValueError(
                f"'{next(iter(arrays))}' was received with method = 'local', which sends nothing"
            )
