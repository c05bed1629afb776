"""The model card: what it says; the lines in it have a file of their own."""

import pytest

from app.backbones import load_backbone
from server_app.card import model_card
from tests.server_app.test_report import CENTRAL, ROWS, SETTINGS


@pytest.fixture(scope="module")
def tiny_vilt():
    return load_backbone("tiny-vilt")


def front_matter(card):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_describes_the_adapter(tiny_vilt):
    card = model_card({**SETTINGS, "backbone": "dandelin/vilt-b32-mlm"}, ROWS, tiny_vilt)
    assert front_matter(card) == {
        "library_name": "peft",
        "license": "apache-2.0",
        "base_model": "dandelin/vilt-b32-mlm",
        "tags": ["federated-learning", "feddat"],
        "pipeline_tag": "visual-question-answering",
    }
    assert "| sketch | 50.0 | 45.0 | 90.0 | 30.0 | 20.0 |" in card
    assert "no answer head and no local adapter" in card


def test_the_card_imports_the_adapter_type_only_where_peft_lacks_it(tiny_vilt):
    assert "import feddat.app.bottleneck" in model_card(SETTINGS, ROWS, tiny_vilt)
    assert "import feddat.app.bottleneck" not in model_card({**SETTINGS, "adapter": "lora"}, ROWS, tiny_vilt)


@pytest.mark.parametrize(
    ("weights", "call"), [("pretrained", '("tiny-vilt")'), ("random", '("tiny-vilt", "random", seed=7)')]
)
def test_the_card_loads_the_backbone_that_was_trained_on(tiny_vilt, weights, call):
    card = model_card({**SETTINGS, "backbone-weights": weights}, ROWS, tiny_vilt)
    assert f"load_backbone{call}" in card


def test_a_classifiers_card_says_what_it_is(tiny_vilt):
    card = model_card({**SETTINGS, "method": "full"}, CENTRAL, tiny_vilt, ("a", "b"))
    assert front_matter(card)["pipeline_tag"] == "image-classification"
    assert front_matter(card)["library_name"] == "transformers"


def test_a_card_says_what_its_family_is_for(small_vit):
    vit = load_backbone(str(small_vit))
    assert front_matter(model_card(SETTINGS, ROWS, vit))["pipeline_tag"] == "image-classification"
    vlm, settings = load_backbone("tiny-vlm"), {**SETTINGS, "loss": "next-token", "writing.tokens": 4}
    assert front_matter(model_card(settings, ROWS, vlm))["pipeline_tag"] == "image-text-to-text"
