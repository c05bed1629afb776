"""How pictures and texts are made into a ViLT's inputs."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from app.processor import Processor
from tests.app.conftest import fresh


class TestImages:
    processor = Processor(None, image_size=4, text_length=8, mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0))

    def test_a_uniform_colour_normalised_by_hand(self):
        pixels = self.processor.image(Image.new("RGB", (9, 5), (255, 0, 51)))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 4, 4))
        assert pixels.is_contiguous()
        values = self.processor.normalise(torch.stack([pixels, torch.zeros_like(pixels)]))
        assert values.dtype == torch.float32
        # (1 - 0.5) / 0.5, (0 - 0.4) / 0.2, (0.2 - 0) / 1; black: -1, -2, 0.
        expected = torch.tensor([[1.0, -2.0, 0.2], [-1.0, -2.0, 0.0]])[:, :, None, None].expand(2, 3, 4, 4)
        torch.testing.assert_close(values, expected)

    def test_an_image_of_the_right_size_is_kept_as_it_is(self):
        array = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        assert np.array_equal(self.processor.image(Image.fromarray(array)).permute(1, 2, 0).numpy(), array)

    def test_sides_keep_their_places(self):
        image = Image.new("RGB", (40, 10), "red")
        image.paste("blue", (20, 0, 40, 10))
        pixels = self.processor.image(image)
        assert pixels[:, 3, 0].tolist() == [255, 0, 0]
        assert pixels[:, 0, 3].tolist() == [0, 0, 255]

    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("L", 128, [128, 128, 128]),
            ("1", 1, [255, 255, 255]),
            ("RGBA", (10, 20, 30, 128), [10, 20, 30]),
            ("LA", (77, 0), [77, 77, 77]),
        ],
    )
    def test_other_modes_become_rgb(self, mode, colour, expected):
        pixels = self.processor.image(Image.new(mode, (8, 8), colour))
        assert pixels[:, 1, 2].tolist() == expected

    def test_a_palette_becomes_its_colours(self):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 100, 50])
        assert self.processor.image(image)[:, 0, 0].tolist() == [200, 100, 50]

    def test_mean_and_deviation_are_the_checkpoints_else_vilts(self, folder):
        assert (fresh(folder).processor.mean, fresh(folder).processor.std) == ((0.5,) * 3, (0.5,) * 3)
        settings = {
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "size": {"shortest_edge": 384},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        processor = fresh(folder).processor
        assert (processor.mean, processor.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert processor.image_size == 32


class TestTexts:
    def test_short_texts_are_padded_and_long_ones_cut(self, small_backbone):
        processor = fresh(small_backbone).processor
        tokenizer = processor.tokenizer
        encoded = processor.texts(["", "a", "red circle " * 50])
        assert set(encoded) == {"input_ids", "attention_mask"}
        for tensor in encoded.values():
            assert (tensor.dtype, tensor.shape) == (torch.int64, (3, 16))
        assert encoded["attention_mask"].sum(1).tolist() == [2, 3, 16]
        empty, letter, cut = encoded["input_ids"].tolist()
        cls, sep, padding = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        assert empty == [cls, sep, *[padding] * 14]
        assert letter == [cls, tokenizer.get_vocab()["a"], sep, *[padding] * 13]
        assert (cut[0], cut[-1]) == (cls, sep)
        assert tokenizer.decode(cut[1:-1]).startswith("red circle red")

    def test_any_sequence_of_texts_will_do(self, small_backbone):
        processor = fresh(small_backbone).processor
        from_tuple = processor.texts(("is there a red square ?",))["input_ids"]
        assert torch.equal(from_tuple, processor.texts(["is there a red square ?"])["input_ids"])


def test_a_template_goes_around_every_text(small_backbone):
    processor = dataclasses.replace(fresh(small_backbone).processor, template="{} [MASK]")
    tokenizer = processor.tokenizer
    (ids,) = processor.texts(["is there a red square ?"])["input_ids"].tolist()
    assert ids[: ids.index(tokenizer.sep_token_id)][-1] == tokenizer.mask_token_id


def test_a_picture_is_seen_as_its_taker_saw_it(small_backbone):
    """Turned by its EXIF orientation (6: a quarter clockwise), and 16 bits of grey scaled to 8."""
    processor = fresh(small_backbone).processor
    wide = Image.new("RGB", (64, 32), "white")
    wide.paste("black", (0, 0, 32, 32))
    turned = wide.copy()
    turned.getexif()[0x0112] = 6
    upright = processor.image(turned)
    assert upright[:, :12].float().mean() < 30
    assert upright[:, -12:].float().mean() > 225
    grey = Image.fromarray(np.full((32, 32), 0x8000, np.uint16))
    assert (processor.image(grey) == 128).all()
