"""Positions of several axes, made once a conversation: they are those that the model computes itself."""

import pytest
import torch

from app.backbones import load_backbone
from app.conversations import GRIDS
from tests.app.families.test_generative import rows
from tests.app.tiny_generative import made, pictures_alone

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Qwen3-VL"])
def test_of_texts_of_unequal_lengths_with_pictures_and_without(name, tmp_path, monkeypatch):
    with pictures_alone():
        backbone = load_backbone.__wrapped__(str(made(name, tmp_path)))
    asked = rows().to_list()
    asked[1] |= {"images": [], "messages": [{"role": "user", "content": "what ?"}]}
    kept = backbone.examples(type(rows()).from_list(asked), CPU)
    whole = backbone.model.base_model
    for chosen in ([0, 1, 2], [2, 0], [1]):
        batch, _ = kept.batch(torch.tensor(chosen), CPU)
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        own, _ = whole.get_rope_index(
            tokens, batch["mm_token_type_ids"], batch.get(GRIDS), None, attention_mask=mask
        )
        assert torch.equal(batch["position_ids"], own)
    assert (mask == 1).all()
    assert torch.equal(own[:, 0], torch.arange(len(tokens[0])).expand(3, -1))

    def computed(*_, **__):
        raise AssertionError("positions are computed")

    monkeypatch.setattr(whole, "get_rope_index", computed)
    features = backbone.family.split(backbone.model, backbone.processor)
    features.trunk(kept.batch(torch.arange(3), CPU)[0])
    with pytest.raises(AssertionError, match="positions are computed"):
        features.trunk(kept.questions(torch.arange(3), CPU))
