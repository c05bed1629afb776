"""A federation that goes on after its last whole round, as if it had never stopped."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from .flower_state import flower_state, load_flower_state
from .wrapper import StrategyWrapper, layers

log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Checkpoint:
    """A federation after a round.

    Attributes
    ----------
    server_round : int
        The round that is over; 0 before the first.
    arrays : ArrayRecord
        What the next round begins with.
    state : dict[str, np.ndarray]
        What the strategies carry from round to round, by ``<depth>.<class>/<key>``.
    """

    server_round: int
    arrays: ArrayRecord
    state: dict[str, np.ndarray]


class CheckpointStore(Protocol):
    """Whoever keeps checkpoints."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; it is there whole or not at all."""


@runtime_checkable
class Stateful(Protocol):
    """A strategy that says what it carries from round to round; every `StrategyWrapper` does."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the state by any names; a strategy inside has its own."""

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `state_dict` returned, in the same order."""


class Resumable(StrategyWrapper):
    """Keep a checkpoint after every round, and go on from one.

    It belongs outermost: `Resumable(FedDAT(FedAvg()), store)`. The state of every layer is kept: of a wrapper
    by its `state_dict`, of Flower's own strategies by `flower_state`. Sampling has none: it is a function of
    seed and round.

    Parameters
    ----------
    strategy : Strategy
        The strategy inside, made with the same settings as the one that wrote the checkpoint.
    store : CheckpointStore
        Gets a checkpoint before the first round and after each.
    checkpoint : Checkpoint, optional
        Where to go on. None: from the first round.

    Raises
    ------
    ValueError
        The checkpoint has state of other strategies than these.

    Examples
    --------
    >>> strategy = Resumable(FedDAT(FedAvg()), store)
    """

    def __init__(
        self, strategy: Strategy, store: CheckpointStore, checkpoint: Checkpoint | None = None
    ) -> None:
        super().__init__(strategy)
        self.store = store
        self.checkpoint = checkpoint
        self._done = checkpoint.server_round if checkpoint else 0
        if checkpoint:
            _load(strategy, checkpoint.state)

    def first(self, arrays: ArrayRecord) -> Checkpoint:
        """Return the checkpoint of a federation that begins with `arrays`."""
        return Checkpoint(0, arrays, _state(self.strategy))

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds up to `num_rounds` that are still to be run, as Flower does.

        Flower's loop counts from 1, and so does what it logs; strategies, clients, `evaluate_fn` and the
        result have the true number of the round. The result's metrics are of the rounds run here.
        """
        done = self._done
        arrays = self.checkpoint.arrays if self.checkpoint else initial_arrays
        if done:
            log.info("going on after round %d of %d", done, num_rounds)

        def end_round(counted: int, arrays: ArrayRecord) -> MetricRecord | None:
            if counted == 0 and self.checkpoint:
                return None
            metrics = evaluate_fn(done + counted, arrays) if evaluate_fn else None
            # Last: what is kept of the round elsewhere is complete when its checkpoint is there.
            self.store.save(Checkpoint(done + counted, arrays, _state(self.strategy)))
            return metrics

        result = super().start(
            grid, arrays, num_rounds - done, timeout, train_config, evaluate_config, end_round
        )
        result.arrays = result.arrays or arrays
        for name in (
            "train_metrics_clientapp",
            "evaluate_metrics_clientapp",
            "evaluate_metrics_serverapp",
        ):
            setattr(result, name, {done + counted: m for counted, m in getattr(result, name).items()})
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes of the round that Flower counts as `server_round`."""
        return super().configure_train(self._done + server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies of the round that Flower counts as `server_round`."""
        return super().aggregate_train(self._done + server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes of the evaluation that Flower counts as `server_round`."""
        return super().configure_evaluate(self._done + server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Combine the replies of the evaluation that Flower counts as `server_round`."""
        return super().aggregate_evaluate(self._done + server_round, replies)


def _state(strategy: Strategy) -> dict[str, np.ndarray]:
    states = {
        place: layer.state_dict() if isinstance(layer, Stateful) else flower_state(layer)
        for place, layer in _places(strategy).items()
    }
    return {f"{place}/{key}": array for place, state in states.items() for key, array in state.items()}


def _load(strategy: Strategy, state: dict[str, np.ndarray]) -> None:
    places = _places(strategy)
    if strange := next((key for key in state if key.partition("/")[0] not in places), None):
        raise ValueError(
            f"the checkpoint has state of {strange!r}; the strategies here are {', '.join(places)}"
        )
    for place, layer in places.items():
        own = {
            key.removeprefix(f"{place}/"): array
            for key, array in state.items()
            if key.startswith(f"{place}/")
        }
        if isinstance(layer, Stateful):
            layer.load_state_dict(own)
        else:
            load_flower_state(layer, own)


def _places(strategy: Strategy) -> dict[str, Strategy]:
    return {f"{depth}.{type(layer).__name__}": layer for depth, layer in enumerate(layers(strategy))}
