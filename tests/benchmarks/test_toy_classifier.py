"""The toy teacher for CIFAR: whom it learns from, and what its annotations are good for."""

import io
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.settings import read_settings
from benchmarks import study, toy_classifier
from server_app.teachers.annotations import Annotations, image_sha256


@pytest.fixture
def made(small_cifar, tmp_path, capsys):
    """Let it learn from rows 5 to 19 of four classes; return its file and what it printed."""
    arguments = ["--file", str(small_cifar / "cifar10.parquet"), "--out", str(tmp_path / "said.parquet")]
    toy_classifier.main([*arguments, "--first", "5", "--last", "20", "--epochs", "40"])
    return tmp_path / "said.parquet", capsys.readouterr().out


def test_it_annotates_the_pool_and_the_test_set_and_nothing_it_learnt_from(made, small_cifar):
    wanted = set()
    for row in pq.read_table(small_cifar / "cifar10.parquet").to_pylist():
        if row["split"] == "test" or int(row["image_id"].split("/")[2]) < 5:
            wanted.add(image_sha256(Image.open(io.BytesIO(row["image"]["bytes"]))))
    assert {key.image for key in Annotations(made[0]).answers} == wanted
    assert len(wanted) == 4 * 5 + 4 * 5
    assert "learnt from 60 images" in made[1]


def test_it_is_a_teacher_of_runs_that_scores_what_it_said(made, home, small_cifar, run_config):
    settings = read_settings(
        run_config(
            benchmark="cifar10-lt",
            data_dir=str(small_cifar),
            head="shared",
            align__when="each-round",
            teacher__model=str(made[0]),
            test_examples=0,
        )
    )
    said = float(re.search(r"right on ([\d.]+)% of 20 test images", made[1])[1])
    assert 100 * study.run_teacher(settings, 2)["student"] == pytest.approx(said, abs=0.1)
    assert said > 50
