"""Annotating: each image is asked about once, whatever interrupts it; and what a teacher must not answer."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from server_app.teachers.annotating import annotate, annotate_captions
from server_app.teachers.annotations import Annotations, image_sha256
from server_app.teachers.teacher import open_teacher
from tests.server_app.teachers.fake import CANDIDATES, PROMPT, FakeTeacher


class TestAnnotate:
    def test_distributions(self, pictures, cache):
        found = annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES, cache=cache)
        expected = [[picture.getpixel((0, 0))[0] / 100 * index for index in range(3)] for picture in pictures]
        assert torch.allclose(found, torch.tensor(expected).softmax(-1))
        assert found.dtype == torch.float32

    def test_temperature_and_margin_need_no_new_question(self, pictures, cache):
        annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES, cache=cache)
        again = FakeTeacher()
        sharp = annotate(again, pictures, PROMPT, CANDIDATES, cache=cache, temperature=0.5, margin=0.8)
        assert not again.asked
        assert {round(total, 4) for total in sharp.sum(1).tolist()} == {0.0, 1.0}

    def test_equal_images_are_asked_about_once(self, pictures, cache):
        teacher = FakeTeacher(batch_size=10)
        twice = [*pictures, *(picture.copy() for picture in pictures)]
        found = annotate(teacher, twice, PROMPT, CANDIDATES, cache=cache)
        assert teacher.asked == [6]
        assert torch.equal(found[:6], found[6:])

    def test_each_image_its_prompt(self, pictures, random_llava):
        teacher = open_teacher(str(random_llava), device="cpu", batch_size=4)
        prompts = ["what ?", PROMPT, "is there a red square ?"] * 2
        found = annotate(teacher, pictures, prompts, CANDIDATES)
        for row in (1, 5):
            alone = annotate(teacher, [pictures[row]], prompts[row], CANDIDATES)
            assert torch.allclose(found[row], alone[0], atol=1e-5)
        others = annotate(teacher, pictures, prompts[1:] + prompts[:1], CANDIDATES)
        assert (others - found).abs().max() > 1e-3

    def test_captions(self, pictures, cache):
        teacher = FakeTeacher()
        captions = annotate_captions(teacher, pictures, "see", cache=cache)
        assert captions == [f"see {picture.getpixel((0, 0))[0]}" for picture in pictures]
        assert annotate_captions(teacher, pictures[::-1], "see", cache=cache) == captions[::-1]
        assert teacher.asked == [2, 2, 2]

    def test_no_image(self):
        assert annotate(FakeTeacher(), [], PROMPT, CANDIDATES).shape == (0, 3)

    def test_one_file_keeps_several_questions(self, pictures, cache):
        teacher = FakeTeacher(batch_size=10)
        annotate(teacher, pictures, PROMPT, CANDIDATES, cache=cache)
        annotate(teacher, pictures, "another ?", CANDIDATES, cache=cache)
        annotate(teacher, pictures, PROMPT, CANDIDATES[:2], cache=cache)
        annotate_captions(teacher, pictures, PROMPT, cache=cache)
        assert teacher.asked == [6, 6, 6, 6]
        assert pq.read_table(cache).num_rows == 24

    @pytest.mark.parametrize("change", ["revision", "normalise"])
    def test_another_version_is_asked_again(self, pictures, cache, change):
        annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES, cache=cache)
        other = FakeTeacher()
        setattr(other, change, "other")
        annotate(other, pictures, PROMPT, CANDIDATES, cache=cache)
        assert sum(other.asked) == 6

    @pytest.mark.parametrize("stop_after", [0, 1, 2])
    def test_an_interruption_costs_its_batch(self, pictures, cache, tmp_path, stop_after):
        with pytest.raises(KeyboardInterrupt):
            annotate(FakeTeacher(stop_after=stop_after), pictures, PROMPT, CANDIDATES, cache=cache)
        again = FakeTeacher()
        found = annotate(again, pictures, PROMPT, CANDIDATES, cache=cache)
        assert again.asked == [2] * (3 - stop_after)
        whole = tmp_path / "whole.parquet"
        assert torch.equal(annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES, cache=whole), found)
        assert whole.read_bytes() == cache.read_bytes()

    def test_out_of_memory_halves_the_batch(self, pictures, cache, capsys):
        teacher = FakeTeacher(batch_size=6, memory=2)
        found = annotate(teacher, pictures, PROMPT, CANDIDATES, cache=cache)
        assert teacher.asked == [1] * 6  # 6 is too many, 3 is, 1 is not
        assert torch.equal(found, annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES))
        assert "out of memory with 6 images at once; going on with 3" in capsys.readouterr().out

    def test_out_of_memory_with_one_image(self, pictures):
        with pytest.raises(
            ValueError, match=r"^teacher.model = 'fake' runs out of memory with a single image$"
        ):
            annotate(FakeTeacher(memory=0), pictures, PROMPT, CANDIDATES)


class TestRefused:
    @pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
    def test_no_distribution(self, pictures, cache, value):
        class Broken(FakeTeacher):
            def log_probabilities(self, images, prompts, candidates):
                rows = super().log_probabilities(images, prompts, candidates)
                if len(self.asked) == 2:
                    rows[1, 0] = value
                return rows

        with pytest.raises(ValueError) as caught:
            annotate(Broken(), pictures, PROMPT, CANDIDATES, cache=cache)
        assert str(caught.value) == (
            "teacher.model = 'fake' gives no distribution over the candidates for image "
            f"{image_sha256(pictures[3])} (number 3), prompt {PROMPT!r}"
        )
        assert len(Annotations(cache).answers) == 2  # the batch before

    def test_an_empty_caption(self, pictures):
        class Silent(FakeTeacher):
            def captions(self, images, prompts):
                return ["a text", " \n"]

        with pytest.raises(ValueError, match=f"an empty caption for image {image_sha256(pictures[1])}"):
            annotate_captions(Silent(), pictures[:2], "see")

    @pytest.mark.parametrize("candidates", [[], ["red"], ["red", "red"], ["red", " "]])
    def test_candidates(self, pictures, candidates):
        with pytest.raises(ValueError, match="allowed: at least two, none empty, none twice"):
            annotate(FakeTeacher(), pictures, PROMPT, candidates)

    @pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"margin": -0.1}, {"margin": 1.1}])
    def test_settings(self, pictures, setting):
        with pytest.raises(ValueError, match="allowed: above 0, and from 0 to 1"):
            annotate(FakeTeacher(), pictures, PROMPT, CANDIDATES, **setting)


def test_a_picture_of_another_mode_is_the_same_picture(pictures, cache):
    """What a data set decodes as RGBA or palette is hashed, and asked about, as RGB."""
    opaque = [picture.convert("RGBA") for picture in pictures]
    teacher = FakeTeacher(batch_size=10)
    annotate(teacher, pictures, PROMPT, CANDIDATES, cache=cache)
    annotate(teacher, opaque, PROMPT, CANDIDATES, cache=cache)
    assert teacher.asked == [6]
    assert isinstance(opaque[0], Image.Image)
