"""The parts of an encoder are the model, and its first token can be had alone."""

import pytest
import torch
from peft import LoraConfig

from app.adapters import adapt
from app.backbones import load_backbone
from app.families.vilt import fuse_attention, keep_patch_order
from app.families.vit import ViTBlocks
from tests.app.conftest import parts


def test_embedding_blocks_and_pooling_are_the_model(small_vilt, batch):
    model = keep_patch_order(small_vilt())
    split = parts(model)
    hidden, mask = split.embed(batch)
    for layer in model.encoder.layer:
        hidden = layer(hidden, mask)[0]
    torch.testing.assert_close(split.pool(hidden), model(**batch).pooler_output, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("prepare", "asking"), [(fuse_attention, 1), (lambda model: model, 11)], ids=["fused", "plain"]
)
def test_the_first_token_alone_is_what_it_is_among_all(small_vilt, states, prepare, asking):
    split = parts(prepare(keep_patch_order(small_vilt())))
    block = split.blocks()[2]
    expected, shapes = split.apply(block, *states)[:, :1], []
    for part in (block.attention.output.dense, block.intermediate, block.output.dense):
        part.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    first = split.apply_last(block, *states)
    torch.testing.assert_close(first, expected)
    assert shapes == [(4, asking, 32), (4, 1, 32), (4, 1, block.output.dense.in_features)]


def test_a_vit_in_its_parts(small_vit):
    backbone = load_backbone(str(small_vit))
    split, pixels = ViTBlocks(backbone.model, backbone.processor), torch.randn(2, 3, 32, 32)
    hidden, mask = split.embed({"pixel_values": pixels})
    for block in split.blocks():
        hidden = split.apply(block, hidden, mask)
    expected = backbone.model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(split.pool(hidden), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "targets",
    [["pooler.dense"], ["patch_embeddings.projection", "query"]],
    ids=["behind the blocks alone", "before the blocks too"],
)
def test_what_cannot_be_parted_is_computed_whole(backbone, batch, targets):
    adapter = adapt(backbone, LoraConfig(target_modules=targets, init_lora_weights=False))
    for branch in ("student", "teacher", "local"):
        features = adapter.features(adapter.trunk(batch), branch)
        assert torch.equal(features, adapter(batch, branch))
        assert features.requires_grad
