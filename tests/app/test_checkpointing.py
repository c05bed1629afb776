"""Blocks computed again in the backward pass compute under the branch that they were computed under."""

import pytest
import torch

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.checkpointing import recompute_blocks
from app.mkd import Distillation, make_optimizer, mkd_step
from benchmarks.step import peak_memory
from tests.app.families.test_generative import differing, rows
from tests.app.test_contract import METHOD, RATE, STEPS
from tests.app.tiny_generative import made
from tests.app.tiny_models import Nobodys, lora

METHODS = Distillation(**METHOD, loss="next-token")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(str(made("LLaVA", tmp_path_factory.mktemp("llava"))))


@pytest.mark.parametrize("update", ["alternating", "joint"])
@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_steps_are_those_without(backbone, kind, update):
    cpu = torch.device("cpu")
    batch, targets = backbone.examples(rows(), cpu).batch(torch.arange(3), cpu)
    method = Distillation(**METHOD, loss="next-token", update=update)
    ends, most = [], []
    for recompute in (False, True):
        adapter = differing(backbone, kind)
        if recompute:
            recompute_blocks(adapter)
        optimizer = make_optimizer(adapter, RATE, 0.0)
        for _ in range(STEPS):
            mkd_step(adapter, optimizer, batch, targets, method)
        ends.append({**adapter.shared(), **adapter.private()})
        most.append(peak_memory(lambda: mkd_step(adapter, optimizer, batch, targets, method), cpu)[0])  # noqa: B023
        assert adapter.branch_in_place == "student"
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=1e-6, rtol=0)
    assert most[1] < 0.8 * most[0]


def test_a_model_without_such_blocks_is_refused():
    from app import DualAdapter

    dual = DualAdapter(Nobodys(), lora(["first"]), forward=lambda model, batch: model(batch))
    with pytest.raises(ValueError, match="gradient-checkpointing = true with Nobodys"):
        recompute_blocks(dual)


def test_evaluation_computes_nothing_twice(backbone):
    adapter = adapt(backbone, Adapter("lora", lora_rank=3).config(backbone))
    cpu = torch.device("cpu")
    batch, _ = backbone.examples(rows(), cpu).batch(torch.arange(3), cpu)
    with torch.no_grad():
        expected = adapter.features(adapter.trunk(batch), "student")
        recompute_blocks(adapter)
        assert torch.equal(adapter.features(adapter.trunk(batch), "student"), expected)
