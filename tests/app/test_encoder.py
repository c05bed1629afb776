"""The parts of an encoder are the model, and its first token can be had alone."""

import pytest
import torch

from app.backbones import load_backbone
from app.encoder import apply, apply_to_first, blocks, embed, pool
from app.vilt import fuse_attention, keep_patch_order


def test_embedding_blocks_and_pooling_are_the_model(small_vilt, batch):
    model = keep_patch_order(small_vilt())
    hidden, mask = embed(model, batch)
    for layer in model.encoder.layer:
        hidden = layer(hidden, mask)[0]
    torch.testing.assert_close(pool(model, hidden), model(**batch).pooler_output, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("prepare", "asking"), [(fuse_attention, 1), (lambda model: model, 11)], ids=["fused", "plain"]
)
def test_the_first_token_alone_is_what_it_is_among_all(small_vilt, states, prepare, asking):
    block = blocks(prepare(keep_patch_order(small_vilt())))[2]
    expected, shapes = apply(block, *states)[:, :1], []
    for part in (block.attention.output.dense, block.intermediate, block.output.dense):
        part.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    first = apply_to_first(block, *states)
    torch.testing.assert_close(first, expected)
    assert shapes == [(4, asking, 32), (4, 1, 32), (4, 1, block.output.dense.in_features)]


def test_the_first_token_of_a_vit(small_vit):
    model = load_backbone(str(small_vit)).model
    hidden, mask = embed(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    block = blocks(model)[0]
    assert torch.equal(apply_to_first(block, hidden, mask), apply(block, hidden, mask)[:, :1])
