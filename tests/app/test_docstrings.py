"""Every public name has a docstring with an example that runs."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig

import app
import strategies
from app.package import __all__ as public
from tests.app.tiny_models import bert

NAMES = {
    name: getattr(app if hasattr(app, name) else strategies, name) for name in public if name != "__version__"
}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, home):
    documented = NAMES[name]
    assert "Parameters" in documented.__doc__ or "Attributes" in documented.__doc__
    model, batch, targets = bert()
    lora = LoraConfig(r=8, target_modules=["query", "value"])
    known = {
        **NAMES,
        "torch": torch,
        "LoraConfig": LoraConfig,
        "FedAvg": FedAvg,
        "app": ClientApp(),
        "get_model": lambda: bert()[0],
        "model": model,
        "batch": batch,
        "targets": targets,
        "lora": lora,
        "aligner": SimpleNamespace(align=lambda server_round, arrays: (arrays, {})),
        "store": SimpleNamespace(save=lambda checkpoint: None),
    }
    if "dual" in documented.__doc__ and name != "DualAdapter":
        known["dual"] = app.DualAdapter(bert()[0], lora, head="classifier")
    example = doctest.DocTestParser().get_doctest(documented.__doc__, known, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
