"""An encoder of Transformer blocks in two parts: two branches share what lies before the first adapter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..bottleneck import BottleneckLayer
from ..processor import Processor


class Trunk(NamedTuple):
    """What all branches have in common: hidden states (batch, tokens, width), and the mask of attention."""

    hidden: Tensor
    mask: Any


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
    def embed(self, batch: Mapping[str, Tensor]) -> Trunk:
        """Compute what enters the first block."""

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

    def trunk(self, batch: Mapping[str, Tensor]) -> Trunk:
        """Compute the frozen part up to the first adapter."""
        hidden, mask = self.embed(self.processor.inputs(batch))
        for block in self.blocks()[: self._first]:
            hidden = self.apply(block, hidden, mask)
        return Trunk(hidden, mask)

    def features(self, trunk: Trunk) -> Tensor:
        """Compute the features (batch, width) from the trunk on."""
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
