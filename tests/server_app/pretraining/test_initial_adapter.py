"""The shared adapter's start: pretrained in a run, and what clients then get."""

import json

import pytest
import torch

from app.methods import open_learner
from app.records import from_record
from app.settings import read_settings
from server_app.pretraining.initial_adapter import AdapterPretraining

FEW = {"pretrain.part": "adapter", "pretrain.steps": 3, "pretrain.images": 20}


@pytest.fixture
def settings(run_config, llava):
    return read_settings(run_config(**FEW, pretrain__encoder=str(llava)))


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_start_is_a_function_of_the_settings_and_the_adapter_is_left_as_it_was(settings, captioned):
    adapter = open_learner(settings)
    adapter.begin_anew()
    first = adapter.state("shared")
    torch.manual_seed(5)
    start = AdapterPretraining(settings, adapter, captioned).run()
    assert not same(start, first)
    assert same(adapter.state("shared"), first)
    torch.manual_seed(6)
    adapter.load("shared", {name: value + 1 for name, value in start.items()})
    assert same(AdapterPretraining(settings, adapter, captioned).run(), start)


@pytest.mark.parametrize("pretrain", ["adapter", "none"])
def test_a_run_starts_from_it(federation, llava, home, pretrain):
    keywords = FEW if pretrain == "adapter" else {}
    encoder = str(llava) if pretrain == "adapter" else ""
    clients = federation(**keywords, pretrain__encoder=encoder, num_rounds=1)
    folder = clients.serve()
    sent = [message for way, message in clients.wire if way == "to client"]
    first = next(message for message in sent if message.metadata.message_type == "train")
    (record,) = first.content.array_records.values()
    learner = open_learner(read_settings(clients.run_config))
    learner.begin_anew()
    made = learner.state("shared")
    assert same(from_record(record), made) == (pretrain == "none")
    assert json.loads((folder / "settings.json").read_text())["pretrain.part"] == pretrain
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


def test_a_backbone_for_images_alone_is_pretrained_too(run_config, llava, small_vit, captioned):
    settings = read_settings(run_config(**FEW, pretrain__encoder=str(llava), backbone=str(small_vit)))
    adapter = open_learner(settings)
    adapter.begin_anew()
    first = adapter.state("shared")
    assert not same(AdapterPretraining(settings, adapter, captioned).run(), first)


def test_a_backbone_without_patches_is_refused_in_one_line(run_config, llava, captioned, tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (tmp_path / "words").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    BertModel(BertConfig(**sizes, vocab_size=6)).save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "words")).save_pretrained(tmp_path / "bert")
    settings = read_settings(run_config(**FEW, pretrain__encoder=str(llava), backbone=str(tmp_path / "bert")))
    with pytest.raises(
        ValueError, match=r"^backbone = '.*bert' has no grid of patches .*; allowed: a ViLT or a ViT$"
    ):
        AdapterPretraining(settings, open_learner(settings), captioned)
