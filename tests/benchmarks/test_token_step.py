"""The step of a generative model as it is timed: what is left out of it, and that it is the literal one."""

import pytest
import torch

from app import piecewise
from benchmarks import step, token_step

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def backbone():
    seen = {**SIZES, "image_size": 64, "patch_size": 16}
    text = {
        **SIZES,
        "model_type": "llama",
        "num_key_value_heads": 1,
        "vocab_size": 1200,
        "max_position_embeddings": 128,
        "pad_token_id": 2,
    }
    return token_step.make_backbone(vision_config=seen, text_config=text, scale_factor=2, image_token_id=1100)


@pytest.mark.parametrize("at_once", [2**20, 4 * 1200], ids=["whole", "pieces"])
def test_figures_of_a_tiny_model(backbone, monkeypatch, at_once):
    monkeypatch.setattr(piecewise, "PIECE", at_once)
    figures = step.measure(backbone, 2, 1, CPU, "tokens")
    rows = figures["variants"]
    assert figures["difference"] < 1e-5
    outcome = token_step.make_variants(backbone, 2, CPU)[token_step.OURS]()
    assert (outcome.student[:] - outcome.dat[:]).abs().max() > 1e-3
    flops = {name: row["flops"] for name, row in rows.items()}
    # Two forwards with vision instead of three, and no vision at all.
    assert flops[token_step.KEPT] < flops[token_step.OURS] < 0.8 * flops[token_step.LITERAL]
    assert flops[token_step.ONE] < flops[token_step.LITERAL]
    # The answer's positions, 8 of 76, once a branch.
    logits = {name: row["logits-bytes"] for name, row in rows.items()}
    assert 2 * 76 * 1200 * 4 <= logits[token_step.FORWARD] <= logits[token_step.ONE]
    assert logits[token_step.OURS] < 0.2 * logits[token_step.LITERAL]


def test_logits_do_not_grow_with_the_batch(backbone, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", 8 * 1200)

    def most(batch):
        call = token_step.make_variants(backbone, batch, CPU)[token_step.KEPT]
        return step.peak_memory(call, CPU, lambda made: made.ndim > 1 and 1200 in made.shape)[0]

    assert most(2) == most(6) > 0
