"""A step that is counted without values: as many FLOPs as with them."""

import json

import pytest
import torch

from benchmarks import large_step, step
from benchmarks.token_step import FORWARD, KEPT, LITERAL, ONE, OURS

SIZES = {"hidden_size": 32, "intermediate_size": 48}
TINY = {
    "vision_config": {**SIZES, "depth": 2, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14},
    "text_config": {
        **SIZES,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 1200,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    },
    "image_token_id": 1100,
}
GRID = (12, 8)


def test_flops_are_those_of_a_model_that_has_values():
    cpu = torch.device("cpu")
    there = large_step.make_variants(large_step.make_backbone(cpu, **TINY), cpu, GRID)
    counted = {name: step.count_flops(call) for name, call in there.items()}
    assert large_step.count(large_step.make_variants(large_step.make_backbone(**TINY), grid=GRID)) == counted
    assert counted[KEPT] < counted[OURS] < counted[LITERAL]
    assert counted[FORWARD] < counted[ONE] < counted[LITERAL]


def test_the_architecture_is_the_one_that_is_named():
    backbone = large_step.make_backbone()
    assert {p.device.type for p in backbone.model.parameters()} == {"meta"}
    # 3.75 billion, with embeddings and head as one.
    assert sum(p.numel() for p in backbone.model.parameters()) == 3_754_622_976


@pytest.mark.parametrize(("kept", "status"), [(54, 0), (56, 1)])
def test_the_share_decides(monkeypatch, tmp_path, capsys, kept, status):
    monkeypatch.setattr(large_step, "make_variants", lambda _: {})
    monkeypatch.setattr(large_step, "count", lambda _: {LITERAL: 100, KEPT: kept})
    path = tmp_path / "figures.json"
    assert large_step.main(["--json", str(path)]) == status
    assert json.loads(path.read_text())["flops"][KEPT] == kept
    assert f"0.{kept} of the literal step's FLOPs, limit 0.55" in capsys.readouterr().out
