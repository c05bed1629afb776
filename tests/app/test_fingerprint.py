"""What a backbone is known by: its configuration, its weights, and how its inputs are made."""

import dataclasses
import json

import pytest
import torch
from transformers import ViltModel

from app.backbones import fingerprint
from app.families.vilt import keep_patch_order
from tests.app.conftest import fresh


class TestFingerprint:
    def test_of_equal_models_is_equal(self, small_vilt):
        assert fingerprint(small_vilt()) == fingerprint(keep_patch_order(small_vilt()))
        assert len(bytes.fromhex(fingerprint(small_vilt()))) == 32

    def test_one_weight_changes_it(self, small_vilt):
        model, before = small_vilt(), fingerprint(small_vilt())
        with torch.no_grad():
            weight = model.encoder.layer[2].output.dense.bias
            weight[5] = torch.nextafter(weight[5], torch.tensor(9.0))
        assert fingerprint(model) != before

    @pytest.mark.parametrize(
        "entry", [{"num_attention_heads": 4}, {"layer_norm_eps": 1e-6}, {"hidden_act": "relu"}]
    )
    def test_one_entry_of_the_configuration_changes_it(self, small_vilt, entry):
        other = small_vilt(**entry)
        other.load_state_dict(small_vilt().state_dict())
        assert fingerprint(other) != fingerprint(small_vilt())

    def test_files_do_not_change_it(self, small_backbone, tmp_path):
        original = fresh(small_backbone)
        original.model.save_pretrained(tmp_path, max_shard_size="20KB")
        original.processor.tokenizer.save_pretrained(tmp_path)
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        again = fresh(tmp_path)
        assert again.fingerprint == original.fingerprint
        assert again.fingerprint == fingerprint(ViltModel.from_pretrained(small_backbone), original.processor)

    @pytest.mark.parametrize(
        "way", [{"mean": (0.4, 0.5, 0.5)}, {"text_length": 9}, {"template": "{} [MASK]"}]
    )
    def test_how_inputs_are_made_changes_it(self, small_vilt, small_backbone, way):
        processor = fresh(small_backbone).processor
        other = dataclasses.replace(processor, **way)
        assert fingerprint(small_vilt(), other) != fingerprint(small_vilt(), processor)

    def test_words_about_the_origin_do_not_change_it(self, folder):
        before = fresh(folder).fingerprint
        entries = json.loads((folder / "config.json").read_text())
        entries |= {
            "transformers_version": "4.0.0",
            "architectures": ["X"],
            "_name_or_path": "hub/x",
            "owner": 1,
        }
        (folder / "config.json").write_text(json.dumps(entries))
        assert fresh(folder).fingerprint == before
