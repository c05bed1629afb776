"""Several batches to one step of an optimizer, on the gradient of one large batch.

The mean over a large batch is the mean of its parts' means, each weighted by what it counts: examples, or
told tokens, of which batches of as many texts may have unequal numbers.
"""

from torch import Tensor
from torch.optim import Optimizer


class Accumulation:
    """Stands for an optimizer while several batches are worked on; `finish` takes their one step.

    A batch may bring two updates, of which each moves weights that the other one leaves alone: one step then
    moves all of them. Weights that both would move cannot be told apart here.

    Parameters
    ----------
    optimizer : Optimizer
        What takes the step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._weight: float | Tensor = 0.0
        self._total: float | Tensor = 0.0
        self._sums: dict[Tensor, Tensor] = {}

    def weigh(self, weight: float | Tensor) -> None:
        """Say what the next batch counts."""
        self._weight, self._total = weight, self._total + weight

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients in place; those gathered stay."""
        self.optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Gather gradients."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                share = parameter.grad * _beside(parameter.grad, self._weight)
                gathered = self._sums.get(parameter)
                self._sums[parameter] = share if gathered is None else gathered + share

    def finish(self) -> None:
        """Take a step on the weighted mean of what was gathered."""
        self.optimizer.zero_grad()
        for parameter, gathered in self._sums.items():
            parameter.grad = gathered / _beside(gathered, self._total)
        self.optimizer.step()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _beside(tensor: Tensor, number: float | Tensor) -> float | Tensor:
    """Return a number where a tensor is: of a spread model parameters lie on several devices."""
    return number.to(tensor.device) if isinstance(number, Tensor) else number
