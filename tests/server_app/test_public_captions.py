"""Captioned public images: the benchmark's own sentences, or the teacher model's."""

import pytest

from app.settings import read_settings
from data_partitions.benchmarks import DataOptions, load_public
from server_app import public_captions
from server_app.public_captions import load_captions
from server_app.teachers.annotating import annotate_captions
from server_app.teachers.annotations import Annotations
from server_app.teachers.teacher import open_teacher


class Writer:
    """Writes an image's number, counted as they come."""

    name, revision, normalise, batch_size = "writer", "1", "", 3

    def __init__(self):
        self.asked = []

    def captions(self, images, prompts):
        self.asked += prompts
        return [f"picture {number}" for number in range(len(self.asked) - len(images), len(self.asked))]


@pytest.fixture
def settings(home, run_config):
    return lambda **overrides: read_settings(run_config(pretrain__images=8, **overrides))


def test_without_a_teacher_the_benchmarks_own_are_taken(settings, home):
    found = load_captions(settings())
    own = load_public("scenes", DataOptions(cache_dir=home / "data"), 8)
    assert found.column_names == ["image", "captions"]
    assert found["captions"] == own["captions"]


def test_a_teachers_are_taken_in_their_place_and_kept(settings, home, monkeypatch):
    writer, opened = Writer(), []
    monkeypatch.setattr(
        public_captions, "open_teacher", lambda name, **given: opened.append((name, given)) or writer
    )
    given = settings(teacher__model="writer", teacher__caption_prompt="say it .", server_device="cpu")
    found = load_captions(given)
    assert opened == [("writer", {"device": "cpu"})]
    assert found["captions"] == [[f"picture {number}"] for number in range(8)]
    assert writer.asked == ["say it ."] * 8
    assert len(Annotations(home / "annotations" / "scenes-captions.parquet").answers) == 8
    assert load_captions(given)["captions"] == found["captions"]
    assert len(writer.asked) == 8


def test_a_llavas_captions_come_with_its_images(settings, random_llava):
    given = settings(teacher__model=str(random_llava), server_device="cpu")
    found = load_captions(given)
    own = annotate_captions(
        open_teacher(str(random_llava), device="cpu"), found["image"], given.teacher.caption_prompt
    )
    assert found["captions"] == [[text] for text in own]
