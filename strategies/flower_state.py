"""What Flower's own strategies carry from one round to the next, as arrays."""

import json

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvgM, Strategy
from flwr.serverapp.strategy.dp_adaptive_clipping import DifferentialPrivacyAdaptiveBase
from flwr.serverapp.strategy.dp_fixed_clipping import DifferentialPrivacyFixedClippingBase
from flwr.serverapp.strategy.fedopt import FedOpt

MOMENTS = ("m_t", "v_t")


def flower_state(strategy: Strategy) -> dict[str, np.ndarray]:
    """Return the state of one strategy, without that of the strategy inside it.

    FedAdam, FedYogi and FedAdagrad have moments; FedAvgM its momentum and its own copy of the aggregate;
    adaptive clipping its norm; fixed clipping its accountant, if it was given one. The others have none.
    """
    state: dict[str, np.ndarray] = {}
    if isinstance(strategy, FedOpt):
        for moment in MOMENTS:
            state |= {f"{moment}/{name}": array for name, array in (getattr(strategy, moment) or {}).items()}
    elif isinstance(strategy, FedAvgM):
        current = strategy.current_arrays or ArrayRecord()
        state |= {f"current/{name}": array.numpy() for name, array in current.items()}
        state |= {f"momentum/{i}": array for i, array in enumerate(strategy.momentum_vector or [])}
    elif isinstance(strategy, DifferentialPrivacyAdaptiveBase):
        state["clipping-norm"] = np.array(strategy.clipping_norm)
    elif isinstance(strategy, DifferentialPrivacyFixedClippingBase) and strategy.accountant is not None:
        ledger = json.dumps(strategy.accountant.state_dict())
        state["accountant"] = np.frombuffer(ledger.encode(), np.uint8)
    return state


def load_flower_state(strategy: Strategy, state: dict[str, np.ndarray]) -> None:
    """Put back what `flower_state` returned, in the same order."""

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {
            key.removeprefix(f"{prefix}/"): array
            for key, array in state.items()
            if key.startswith(f"{prefix}/")
        }

    if isinstance(strategy, FedOpt):
        for moment in MOMENTS:
            setattr(strategy, moment, part(moment) or None)
    elif isinstance(strategy, FedAvgM):
        current = {name: Array(array) for name, array in part("current").items()}
        strategy.current_arrays = ArrayRecord(current) if current else None
        strategy.momentum_vector = list(part("momentum").values()) or None
    elif isinstance(strategy, DifferentialPrivacyAdaptiveBase):
        strategy.clipping_norm = float(state["clipping-norm"])
    elif isinstance(strategy, DifferentialPrivacyFixedClippingBase) and strategy.accountant is not None:
        strategy.accountant.load_state_dict(json.loads(state["accountant"].tobytes()))
