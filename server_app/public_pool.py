"""The server's public examples, with labels and with what the teacher model says of them."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import one_hot

from app.examples import Examples


@dataclass(frozen=True)
class Pool:
    """Public examples, ready for alignment.

    Attributes
    ----------
    examples : Examples
        Pictures and questions; their scores are one-hot over the pool's answers.
    labels : Tensor
        Index of the true answer, int64, shape (examples,); -1 where there is none.
    target : Tensor
        The teacher model's distribution, float32, shape (examples, answers); zeros where it abstained.
    """

    examples: Examples
    labels: Tensor
    target: Tensor

    def answers(self, labels: str) -> Tensor:
        """Return what is taken for the right answer of each example, (examples, answers).

        With "true" labels these, else the teacher model's first choice; a row of zeros where there is none.
        """
        classes = self.target.shape[1]
        if labels == "true":
            return one_hot(self.labels.clamp_min(0), classes) * (self.labels >= 0).float()[:, None]
        return one_hot(self.target.argmax(1), classes) * (self.target.sum(1) > 0).float()[:, None]
