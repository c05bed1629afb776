"""The wrapper passes every hook on, and weights are named by the innermost strategy."""

import inspect

import pytest
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, Strategy

from strategies import FedDAT, StrategyWrapper
from strategies.wrapper import weight_key

HOOKS = sorted(Strategy.__abstractmethods__)


class Recorder:
    """Return each hook's name and the arguments it was called with."""

    def __getattr__(self, name):
        return lambda *args: (name, args)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_reaches_the_strategy_inside(hook):
    count = len(inspect.signature(getattr(Strategy, hook)).parameters) - 1
    args = tuple(object() for _ in range(count))
    result = getattr(StrategyWrapper(StrategyWrapper(Recorder())), hook)(*args)
    assert result == (None if hook == "summary" else (hook, args))


def test_summary_reaches_the_strategy_inside():
    called = []
    inner = Recorder()
    inner.summary = lambda: called.append(True)
    StrategyWrapper(inner).summary()
    assert called == [True]


def test_weight_key_is_found_through_wrappers():
    inner = FedAvg(weighted_by_key="tokens")
    assert weight_key(DifferentialPrivacyClientSideFixedClipping(inner, 1.0, 1.0, 2)) == "tokens"
    assert weight_key(StrategyWrapper(FedDAT(inner))) == "tokens"
    assert weight_key(object()) == "num-examples"
