"""ViLT as this project has it compute, against transformers' own on the same weights."""

import pytest
import torch

from app.families.vilt import fuse_attention, keep_patch_order
from tests.app.conftest import parts


def images(height, width, *valid):
    """Return a batch of one image per (height, width) in `valid` on a canvas, with its pixel mask."""
    generator = torch.Generator().manual_seed(height)
    mask = torch.zeros(len(valid), height, width, dtype=torch.long)
    for row, (rows, columns) in enumerate(valid):
        mask[row, :rows, :columns] = 1
    pixels = torch.randn(len(valid), 3, height, width, generator=generator)
    return {"pixel_values": pixels * mask[:, None], "pixel_mask": mask}


def texts(rows):
    ids = torch.randint(0, 64, (rows, 6), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


class TestPatchOrder:
    """Against transformers' ViltModel, which shuffles the patches, on the same weights."""

    @pytest.mark.parametrize(
        "pixels",
        [
            pytest.param(images(32, 32, (32, 32), (32, 32)), id="configured size"),
            pytest.param(images(48, 80, (48, 80), (48, 80)), id="larger, not square"),
            pytest.param(images(64, 80, (64, 80), (48, 32), (16, 64)), id="padded images"),
            pytest.param(images(64, 80, (48, 64), (48, 32)), id="no image fills the canvas"),
            pytest.param(images(64, 80, (40, 72), (64, 80)), id="cut patches"),
        ],
    )
    def test_features_are_those_of_the_shuffled_model(self, small_vilt, pixels):
        inputs = {**texts(len(pixels["pixel_mask"])), **pixels}
        torch.manual_seed(0)
        with torch.no_grad():
            expected = small_vilt()(**inputs).pooler_output
            features = keep_patch_order(small_vilt())(**inputs).pooler_output
        assert expected.std(dim=0).mean() > 0.01  # the examples differ
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)

    def test_a_full_mask_is_no_mask(self, small_vilt, batch):
        model = keep_patch_order(small_vilt())
        full = {**batch, "pixel_mask": torch.ones(4, 32, 32, dtype=torch.long)}
        assert torch.equal(parts(model).embed(batch)[0], parts(model).embed(full)[0])

    def test_states_do_not_depend_on_chance(self, small_vilt, batch):
        stock, ordered = small_vilt(), keep_patch_order(small_vilt())

        def states(model, seed):
            torch.manual_seed(seed)
            return model(**batch).last_hidden_state

        assert not torch.equal(states(stock, 0), states(stock, 1))
        assert torch.equal(states(ordered, 0), states(ordered, 1))

    def test_one_patch_is_placed_by_hand(self, small_vilt):
        model = keep_patch_order(small_vilt())
        part = model.embeddings
        inputs = {**texts(1), **images(32, 32, (32, 32))}
        hidden, _ = parts(model).embed(inputs)
        # 6 tokens, the class token, then the patches by rows: the third is the lower left.
        patch = inputs["pixel_values"][0, :, 16:, :16].flatten()
        kernel = part.patch_embeddings.projection
        third = kernel.weight.flatten(1) @ patch + kernel.bias + part.position_embeddings[0, 3]
        torch.testing.assert_close(hidden[0, 9], third + part.token_type_embeddings.weight[1])
        assert hidden.shape == (1, 6 + 1 + 4, 32)


class TestFusedAttention:
    """Against transformers' own, on the same weights."""

    def test_features_are_transformers_own(self, small_vilt, batch):
        plain, fused = (keep_patch_order(small_vilt()) for _ in range(2))
        expected = plain(**batch).last_hidden_state
        torch.testing.assert_close(fuse_attention(fused)(**batch).last_hidden_state, expected)
        # Padding counts for nothing.
        other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] == 1, 3)}
        torch.testing.assert_close(fused(**other).pooler_output, fused(**batch).pooler_output)

    def test_weights_of_attention_can_still_be_had(self, small_vilt, batch):
        expected = small_vilt()(**batch, output_attentions=True).attentions
        given = fuse_attention(small_vilt())(**batch, output_attentions=True).attentions
        assert [a.shape for a in given] == [a.shape for a in expected] == [(4, 2, 11, 11)] * 3

    def test_only_those_ask_for_whom_the_mask_has_rows(self, small_vilt, states):
        hidden, mask = states
        attention = fuse_attention(small_vilt()).encoder.layer[0].attention
        torch.testing.assert_close(attention(hidden, mask[:, :, :2])[0], attention(hidden, mask)[0][:, :2])
