"""The model card: what it says, and that the code in it runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

from server_app.card import model_card
from tests.server_app.test_report import CENTRAL, ROWS, SETTINGS


def front_matter(card):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_describes_the_adapter():
    card = model_card({**SETTINGS, "backbone": "dandelin/vilt-b32-mlm"}, ROWS)
    assert front_matter(card) == {
        "library_name": "peft",
        "license": "apache-2.0",
        "base_model": "dandelin/vilt-b32-mlm",
        "tags": ["federated-learning", "feddat"],
        "pipeline_tag": "visual-question-answering",
    }
    assert "| sketch | 50.0 | 45.0 | 90.0 | 30.0 | 20.0 |" in card
    assert "no answer head and no local adapter" in card


def test_the_card_imports_the_adapter_type_only_where_peft_lacks_it():
    assert "import feddat.app.bottleneck" in model_card(SETTINGS, ROWS)
    assert "import feddat.app.bottleneck" not in model_card({**SETTINGS, "adapter": "lora"}, ROWS)


@pytest.mark.parametrize(
    ("weights", "call"), [("pretrained", '("tiny-vilt")'), ("random", '("tiny-vilt", "random")')]
)
def test_the_card_loads_the_backbone_that_was_trained_on(weights, call):
    assert f"load_backbone{call}" in model_card({**SETTINGS, "backbone-weights": weights}, ROWS)


@pytest.fixture
def small_vilt(tmp_path) -> Path:
    """Save a ViLT of a few thousand weights with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "vilt"
    config = transformers.ViltConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        vocab_size=10,
        max_position_embeddings=8,
    )
    transformers.ViltModel(config).save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde"]))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    return folder


def test_the_code_in_the_card_runs(tmp_path, small_vilt):
    pytest.importorskip("feddat.app")
    import torch
    from peft import get_peft_model

    from app.adapters import adapter_config
    from app.backbones import load_backbone

    backbone = load_backbone(str(small_vilt))
    torch.manual_seed(0)
    trained = get_peft_model(backbone.fork(), adapter_config("bottleneck", reduction_factor=4, width=16))
    trained.save_pretrained(tmp_path / "adapter")
    card = model_card({**SETTINGS, "backbone": str(small_vilt)}, ROWS)
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    names = {"image": Image.new("RGB", (40, 30), "red"), "head": torch.nn.Linear(16, 3)}
    exec(code.replace("path/to/adapter", str(tmp_path / "adapter")), names)
    assert names["logits"].shape == (1, 3)
    inputs = {**names["inputs"], "pixel_values": names["pixels"]}
    assert torch.equal(names["features"], trained.eval()(**inputs).pooler_output)
    assert not torch.equal(names["features"], backbone.model(**inputs).pooler_output)


@pytest.mark.parametrize(("method", "adapter"), [("full", "bottleneck"), ("adapter", "bottleneck")])
def test_the_code_in_a_classifiers_card_runs(tmp_path, run_config, small_vit, method, adapter):
    import torch

    from app.heads import answer_with_new_head
    from app.methods import open_learner
    from app.settings import read_settings
    from server_app.export import export_result

    settings = read_settings(
        run_config(method=method, adapter=adapter, head="shared", backbone=str(small_vit))
    )
    model = open_learner(settings)
    answer_with_new_head(model, 32, 3, 0, "shared")
    card = model_card(settings.run_config(), CENTRAL, ("a", "b", "c"))
    assert front_matter(card)["pipeline_tag"] == "image-classification"
    model.begin_anew()
    shared = {name: value + 0.1 for name, value in model.shared().items()}
    export_result(tmp_path / "out", settings, shared, card, ("a", "b", "c"))
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    code = code.replace(f"path/to/{'model' if method == 'full' else 'adapter'}", str(tmp_path / "out"))
    names = {"image": Image.new("RGB", (40, 30), "red")}
    exec(code.replace("feddat.app", "app"), names)
    model.receive(shared)
    with torch.no_grad():
        expected = model({"pixel_values": names["pixels"]}, "student")
    torch.testing.assert_close(names["logits"], expected)
