"""The exported adapter: a PEFT checkpoint with the student branch's features, to the bit."""

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from app import backbones
from app.adapters import adapt, adapter_config
from app.backbones import load_backbone, open_backbone
from app.heads import new_head
from app.methods import open_learner
from app.records import from_record
from app.settings import read_settings
from server_app.card import model_card
from server_app.export import export_result
from tests.cards import code_of

# A stranger's process, which cannot import this project, and runs the card's own lines.
STRANGER = r"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "feddat app strategies server_app client_app data_partitions".split():
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import save_file
code, out = sys.argv[1:]
names = {}
exec(code, names)
with torch.no_grad():
    inputs = names["inputs"]
    inputs["pixel_values"] = inputs["pixel_values"].contiguous().double()
    exact = names["model"].double()(**inputs).pooler_output
save_file({**inputs, "features": names["features"], "exact": exact}, out)
"""

# A process that knows the adapter's folder and nothing of the run.
FRESH = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
import app.bottleneck
from app.backbones import load_backbone, open_backbone
backbone, adapter, inputs, out = sys.argv[1:]
model = PeftModel.from_pretrained(load_backbone(backbone).fork(), adapter)
with torch.no_grad():
    save_file({"features": model(**load_file(inputs)).pooler_output}, out)
"""


@pytest.fixture(scope="module")
def inputs(small_backbone):
    """Return a normalised batch."""
    processor = load_backbone(str(small_backbone)).processor
    pixels = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    questions = [
        "is there a red square ?",
        "what color is the small circle ?",
        "what",
        "red ?",
        "is it red ?",
    ]
    return {**processor.texts(questions), "pixel_values": processor.normalise(pixels)}


@pytest.fixture(scope="module")
def student(finished, inputs, small_backbone):
    """Return the features of the student branch with the arrays that the run ended with."""
    last = [m for way, m in finished.federation.wire if way == "to client"][-1]
    assert last.metadata.message_type == "evaluate"
    config = adapter_config("bottleneck", reduction_factor=4, width=32)
    adapter = adapt(load_backbone(str(small_backbone)), config, seed=5)
    adapter.receive(from_record(last.content["arrays"]))
    with torch.no_grad():
        return adapter(inputs, "student")


def test_peft_loads_the_student_branch_bit_for_bit(finished, inputs, student, small_backbone):
    backbone = load_backbone(str(small_backbone))
    model = PeftModel.from_pretrained(backbone.fork(), str(finished.folder / "adapter"))
    head = new_head(32, 7, seed=1)
    with torch.no_grad():
        features = model(**inputs).pooler_output
        assert torch.equal(features, student)
        assert torch.equal(head(features), head(student))
        assert not torch.equal(backbone.model(**inputs).pooler_output, student)


def test_a_fresh_process_loads_it_bit_for_bit(finished, inputs, student, small_backbone, tmp_path):
    save_file(inputs, tmp_path / "inputs")
    paths = [small_backbone, finished.folder / "adapter", tmp_path / "inputs", tmp_path / "out"]
    subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, paths)],
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=120,
    )
    assert torch.equal(load_file(tmp_path / "out")["features"], student)


def test_the_files_are_pefts(finished, small_backbone):
    folder = finished.folder / "adapter"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK"
    assert config["base_model_name_or_path"] == str(small_backbone)
    assert config["inference_mode"] is True
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_no_name_of_a_local_adapter_or_head_is_in_the_file(finished):
    names = set(load_file(finished.folder / "adapter" / "adapter_model.safetensors"))
    assert names == set(finished.federation.wire[-2][1].content["arrays"])
    assert not any(part in name for name in names for part in ("local", "frozen", "shared", "clf"))


@pytest.fixture
def settings(run_config):
    return lambda **overrides: read_settings(run_config(**overrides))


@pytest.mark.parametrize("kind", ["bottleneck", "lora", "prompt"])
def test_all_kinds_are_exported_as_they_are(settings, tmp_path, inputs, kind):
    chosen = settings(adapter=kind, lora_rank=4)
    shared = {name: torch.randn_like(value) for name, value in open_learner(chosen).state("shared").items()}
    export_result(tmp_path / "adapter", chosen, shared, "the card")
    backbone = load_backbone(chosen.backbone)
    model = PeftModel.from_pretrained(backbone.fork(), str(tmp_path / "adapter"))
    adapter = open_learner(chosen)
    adapter.receive(shared)
    with torch.no_grad():
        assert torch.equal(model(**inputs).pooler_output, adapter(inputs, "student"))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert stored.keys() == shared.keys()
    assert all(torch.equal(stored[name], shared[name]) for name in shared)


def test_a_built_in_backbone_goes_by_its_name_not_by_where_it_lies(
    settings, tmp_path, monkeypatch, small_backbone
):
    """Whoever gets the adapter has no folder of the machine that made it."""
    monkeypatch.setattr(backbones, "builtin_folder", lambda name: small_backbone)
    monkeypatch.setattr(backbones, "load_backbone", functools.cache(load_backbone.__wrapped__))
    chosen = settings(backbone="tiny-vilt")
    export_result(tmp_path / "adapter", chosen, open_learner(chosen).state("shared"), "the card")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny-vilt"
    assert str(small_backbone) not in text


@pytest.mark.parametrize(
    ("name", "weights"), [("tiny-vilt", "pretrained"), ("tiny-vilt", "random"), (None, "pretrained")]
)
def test_a_lora_opens_in_stock_peft_without_this_package(settings, tmp_path, monkeypatch, name, weights):
    """By the lines of its card, on the stock model, with the features that were trained.

    Stock attention sums in another order, and draws the order of the patches: in float32 either is up to
    4e-6 from the exact features. In float64 the two are one.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    overrides = {"backbone": name} if name else {}
    chosen = settings(adapter="lora", lora_rank=4, backbone_weights=weights, **overrides)
    adapter = open_learner(chosen)
    generator = torch.Generator().manual_seed(3)
    shared = {
        key: torch.randn(value.shape, generator=generator) / 10
        for key, value in adapter.state("shared").items()
    }
    facts = {**chosen.run_config(), "run-name": "a run"}
    export_result(tmp_path / "adapter", chosen, shared, model_card(facts, [], open_backbone(chosen)))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "picture.png")
    code = code_of(tmp_path / "adapter", tmp_path / "picture.png")
    given = ["-c", STRANGER, code, str(tmp_path / "out")]
    subprocess.run([sys.executable, "-I", *given], cwd=tmp_path, check=True, timeout=120)
    backbone = open_backbone(chosen)
    processor = backbone.processor
    inputs = processor.texts(["what colour is the circle?"])
    inputs["pixel_values"] = processor.normalise(processor.image(picture)[None])
    adapter.receive(shared)
    with torch.no_grad():
        expected = adapter(inputs, "student")
        assert (expected - backbone.model(**inputs).pooler_output).abs().max() > 1e-3
    found = load_file(tmp_path / "out")
    torch.testing.assert_close(found["features"], expected, rtol=0, atol=2e-5)
    exact, stranger = copy.deepcopy(adapter).double(), found.pop("exact")
    given = {key: value for key, value in found.items() if key != "features"}
    with torch.no_grad():
        torch.testing.assert_close(exact(given, "student"), stranger, rtol=0, atol=1e-9)
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == ("base_model" if name else chosen.backbone)
    assert (tmp_path / "adapter" / "base_model").is_dir() == bool(name)
