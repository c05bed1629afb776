"""An encoder of Transformer blocks in two parts: two branches share what lies before the first adapter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..bottleneck import BottleneckLayer
from ..processor import Processor
from .family import Inputs, one_picture_each


class Trunk(NamedTuple):
    """What all branches have in common: hidden states (batch, tokens, width), and the mask of attention.

    Where an example has several pictures these are its first one's; `further` has the others'.
    """

    hidden: Tensor
    mask: Any
    further: tuple["Trunk", ...] = ()


class Blocks(ABC):
    """A model's forward as embedding, blocks and pooling (a `dual_adapter.Split`).

    Parameters
    ----------
    model : nn.Module
        With its adapters inside.
    processor : Processor
        Normalises its pixels.

    """

    def __init__(self, model: Any, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self._first, self._output = self._find_first_adapter()

    def or_none(self) -> Self | None:
        """Return it where branches have anything in common: the first adapter lies in the blocks."""
        adapted_before = any(isinstance(m, BaseTunerLayer) for m in self.model.embeddings.modules())
        nothing = self._first == len(self.blocks()) and self._output is None
        return None if adapted_before or nothing else self

    @abstractmethod
    def embed(self, batch: Inputs) -> tuple[Tensor, Any]:
        """Compute what enters the first block, and the mask of attention."""

    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Return the blocks."""

    @abstractmethod
    def pool(self, hidden: Tensor) -> Tensor:
        """Compute features (batch, width) from the last block's hidden states."""

    def apply(self, block: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        """Compute a block's hidden states from those before it."""
        output = block(hidden, mask)
        return output if isinstance(output, Tensor) else output[0]

    def apply_last(self, block: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        """Compute what `pool` reads of the last block."""
        return self.apply(block, hidden, mask)

    def passes(self, inputs: Inputs) -> list[Inputs]:
        """Return the inputs of each pass that examples with several pictures take, as the family does."""
        return one_picture_each(inputs)

    def trunk(self, batch: Mapping[str, Tensor]) -> Trunk:
        """Compute the frozen part up to the first adapter."""
        first, *further = map(self._trunk, self.passes(batch))
        return first._replace(further=tuple(further))

    def features(self, trunk: Trunk) -> Tensor:
        """Compute the features (batch, pictures · width) from the trunk on."""
        return torch.cat([self._features(one) for one in (trunk, *trunk.further)], dim=1)

    def _trunk(self, inputs: Inputs) -> Trunk:
        # Normalised here, so that pixels as floats are let go before the blocks.
        hidden, mask = self.embed(self.processor.inputs(inputs))
        for block in self.blocks()[: self._first]:
            hidden = self.apply(block, hidden, mask)
        return Trunk(hidden, mask)

    def _features(self, trunk: Trunk) -> Tensor:
        hidden = trunk.hidden if self._output is None else self._output.adapt(trunk.hidden)
        rest = self.blocks()[self._first :]
        for block in rest[:-1]:
            hidden = self.apply(block, hidden, trunk.mask)
        for block in rest[-1:]:
            hidden = self.apply_last(block, hidden, trunk.mask)
        return self.pool(hidden)

    def _find_first_adapter(self) -> tuple[int, BottleneckLayer | None]:
        """Return the number of blocks in the trunk, and the adapter right after it, if there is one."""
        for index, block in enumerate(self.blocks()):
            tuned = [module for module in block.modules() if isinstance(module, BaseTunerLayer)]
            last = getattr(block, "output", None)
            if tuned == [last] and isinstance(last, BottleneckLayer):
                return index + 1, last
            if tuned:
                return index, None
        return len(self.blocks()), None
