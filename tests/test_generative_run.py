"""Whole runs of the real apps on a generative backbone, in one process."""

import json

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.records import from_record
from tests.app.tiny_generative import made, pictures_alone


@pytest.fixture(scope="module", params=["LLaVA", "Qwen2.5-VL"])
def folder(request, tmp_path_factory):
    return made(request.param, tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def writing(federation, folder):
    """Build an in-process federation of clients that write; keywords are settings."""

    def build(num_clients=2, **overrides):
        fixed = {"backbone": str(folder), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
        return federation(num_clients, **{**fixed, **overrides})

    with pictures_alone():
        yield build


def test_a_run_ends_in_an_adapter_that_stock_peft_loads(writing, folder):
    clients = writing(answer_tokens=4)
    run = clients.serve()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["partition"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert not any("refused" in row for row in rows)
    assert all(row["delta-shared"] > 1e-4 and row["delta-local"] > 1e-4 for row in rows)
    assert all(0 <= row[branch] <= 1 for row in rows for branch in ("student", "local", "teacher"))
    # The adapter with the stock model and the processor beside it, on a picture and a question.
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    stock = PeftModel.from_pretrained(base, run / "adapter").eval()
    processor = AutoProcessor.from_pretrained(run / "adapter")
    asked = [{"type": "image"}, {"type": "text", "text": "what color ?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=[Image.new("RGB", (40, 24), "red")], text=[text], return_tensors="pt")
    sent = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "evaluate"][-1]
    backbone = load_backbone(str(folder))
    ours = adapt(backbone, Adapter("lora", lora_rank=3).config(backbone))
    ours.receive(from_record(sent.content["arrays"]))
    with torch.no_grad():
        expected = ours(dict(inputs), "student")
        assert (expected - backbone.model(**inputs).logits).abs().max() > 1e-4
        torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert stock.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_no_head_is_kept_and_what_travels_is_the_shared_adapter_alone(writing):
    clients = writing(num_rounds=1)
    run = clients.serve()
    assert not (run / "adapter" / "classifier.safetensors").exists()
    down = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "train"]
    assert all("lora_" in name and "language_model" in name for m in down for name in m.content["arrays"])
