"""The program that weighs clients on one machine: shared pages count once, and too many bytes fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViltConfig, ViltModel

from app.backbones import load_backbone
from benchmarks import memory, token_step

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc")


@linux
def test_what_is_written_to_counts_in_full():
    before = memory.proportional_set_size()
    block = torch.ones(16 * 2**20)
    assert memory.proportional_set_size() - before == pytest.approx(block.nbytes, rel=0.05)


def test_a_saved_backbone_is_the_backbone_in_float32(small_backbone, tmp_path):
    backbone = load_backbone(str(small_backbone))
    memory.save(backbone, tmp_path)
    assert load_backbone(str(tmp_path)).fingerprint == backbone.fingerprint
    saved = load_file(tmp_path / "model.safetensors").values()
    assert {tensor.dtype for tensor in saved} == {torch.float32}


def test_recomputing_keeps_less_and_learns_the_same(small_backbone):
    steps = memory.activations(load_backbone(str(small_backbone)), batch=64)
    assert steps["checkpointed"]["losses"] == pytest.approx(steps["kept"]["losses"], rel=1e-6)
    assert steps["checkpointed"]["peak-bytes"] < 0.9 * steps["kept"]["peak-bytes"]


def test_gradients_are_those_of_a_step_that_keeps_all(small_backbone):
    """The branches take turns, and the last one before the backward pass is the student's."""
    backbone = load_backbone(str(small_backbone))
    _, _, inputs, scores = memory.draw(backbone, 3, memory.CPU)
    ends = []
    for kind in (lambda adapter: adapter, memory.Checkpointed):
        config = memory.adapter_config("bottleneck", reduction_factor=4, width=32)
        adapter = memory.adapt(backbone, config)
        memory.answer_with_new_head(adapter, 32, memory.ANSWERS, 0, "private")
        start = adapter.state("local")
        optimizer = memory.make_optimizer(adapter, learning_rate=1e-2, weight_decay=0.0, kind="sgd")
        memory.mkd_step(kind(adapter), optimizer, inputs, scores, memory.Distillation())
        ends.append({role: adapter.state(role) for role in ("shared", "local")})
    for role, state in ends[0].items():
        for name, kept in state.items():
            torch.testing.assert_close(ends[1][role][name], kept, atol=1e-7, rtol=1e-5)
    assert any((ends[0]["local"][name] - start[name]).abs().max() > 1e-5 for name in start)


@pytest.mark.parametrize(("each", "status"), [(40, 0), (60, 1)])
def test_all_workers_together_decide(small_backbone, tmp_path, monkeypatch, capsys, each, status):
    """Three workers of 40 or 60 % of a backbone each: 1.2 or 1.8 in all."""
    size = sum(t.nbytes for t in load_backbone(str(small_backbone)).model.parameters())
    monkeypatch.setattr(memory, "weigh", lambda _, number: [(10**6, size * each / 100)] * number)
    path = tmp_path / "figures.json"
    options = ["--backbone", str(small_backbone), "--batch-size", "2", "--json", str(path)]
    assert memory.main([*options, "--workers", "1", "3"]) == status
    assert json.loads(path.read_text())["backbone-bytes"] == size
    printed = capsys.readouterr().out
    assert f"{'FAILED' if status else 'passed'}: at most {3 * each / 100:.2f} backbones" in printed


@pytest.mark.parametrize(("each", "status"), [(32, 0), (33, 1)])
def test_of_a_backbone_that_writes_four_may_take_less(monkeypatch, tmp_path, capsys, each, status):
    """It is saved so that a worker loads it; four of 32 or 33 % of it are 1.28 or 1.32 in all."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen, text = {**sizes, "image_size": 64}, {**sizes, "model_type": "llama", "vocab_size": 1200}
    entries = {"vision_config": seen, "text_config": text, "scale_factor": 2, "image_token_id": 1100}
    backbone = token_step.make_backbone(**entries)
    monkeypatch.setattr(token_step, "make_backbone", lambda: backbone)
    size = sum(tensor.nbytes for tensor in backbone.model.parameters())
    loaded = []

    def weigh(folder, number):
        loaded.append(load_backbone(folder))
        return [(10**6, size * each // 100)] * number

    monkeypatch.setattr(memory, "weigh", weigh)
    assert memory.main(["--backbone", "smolvlm-256m", "--workers", "4"]) == status
    assert memory.adapter_of(loaded[0]).peft_type == "LORA"
    assert all(
        torch.equal(loaded[0].model.get_parameter(name), weight)
        for name, weight in backbone.model.named_parameters()
    )
    assert f"at most 1.{4 * each - 100} backbones in all, limit 1.3" in capsys.readouterr().out


@linux
@pytest.mark.slow
def test_two_processes_share_a_backbone(small_backbone, tmp_path):
    """It is large enough for what loading needs besides not to matter."""
    backbone = load_backbone(str(small_backbone))
    large = ViltModel(ViltConfig(**{**backbone.model.config.to_dict(), "vocab_size": 2_000_000}))
    memory.save(replace(backbone, model=large), tmp_path)
    size = sum(tensor.nbytes for tensor in large.parameters())
    added = [bytes_ for _, bytes_ in memory.weigh(str(tmp_path), 2)]
    assert len(added) == 2
    assert 0.9 * size < sum(added) < 1.5 * size
