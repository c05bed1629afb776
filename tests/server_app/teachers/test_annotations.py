"""The file of annotations: what it keeps, how it grows, and what it refuses."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from server_app.teachers.annotations import SCHEMA, Annotations, Key, candidates_json, image_sha256

TWO = candidates_json(["red", "grün"])
SCORES = np.log(np.array([0.25, 0.75], dtype=np.float32))


def key(image="a", prompt="what ?", candidates=TWO, normalise="sum", revision="r1"):
    return Key(image, prompt, candidates, normalise, revision)


class TestHash:
    def test_it_is_of_size_and_pixels(self):
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (1, 2, 3))
        assert image_sha256(image) == hashlib.sha256(b"2x1:\0\0\0\1\2\3").hexdigest()

    def test_shape_counts_and_file_format_does_not(self, tmp_path):
        image = Image.new("RGB", (2, 4), (7, 8, 9))
        image.save(tmp_path / "image.png")
        image.save(tmp_path / "image.bmp")
        one, two = (Image.open(tmp_path / name) for name in ("image.png", "image.bmp"))
        assert image_sha256(one) == image_sha256(two) == image_sha256(image)
        assert image_sha256(Image.new("RGB", (4, 2), (7, 8, 9))) != image_sha256(image)


class TestFile:
    def test_what_is_added_is_there_again(self, tmp_path):
        path = tmp_path / "kept.parquet"
        kept = Annotations(path)
        kept.add("llava", {key(): SCORES, key("b", candidates="", normalise=""): "a caption"})
        for again in (Annotations(path), kept):
            again.merge()
            assert again.answers[key()].dtype == np.float32
            assert np.array_equal(again.answers[key()], SCORES)
            assert again.answers[key("b", candidates="", normalise="")] == "a caption"
        assert [file.name for file in tmp_path.iterdir()] == ["kept.parquet"]
        assert Annotations(path).answers.keys() == kept.answers.keys()
        assert pq.read_table(path).schema.equals(SCHEMA)

    def test_every_part_of_a_key_counts(self, tmp_path):
        kept = Annotations(tmp_path / "kept.parquet")
        kept.add("llava", {key(): SCORES})
        for other in ("image", "prompt", "candidates", "normalise", "revision"):
            assert key(**{other: "other"}) not in kept.answers

    def test_the_order_of_candidates_counts(self):
        assert candidates_json(["a", "b"]) != candidates_json(["b", "a"])

    def test_one_set_of_answers_gives_one_file(self, tmp_path):
        """Whatever the order, the batches and the interruptions."""
        answers = {key(str(number)): SCORES + number for number in range(10)}
        files = []
        for name, step in (("one", 3), ("two", -1)):
            path = tmp_path / f"{name}.parquet"
            rows = list(answers.items())[::step] + list(answers.items())
            for start in range(0, len(rows), 4):
                Annotations(path).add("llava", dict(rows[start : start + 4]))
            Annotations(path).merge()
            files.append(path.read_bytes())
        assert files[0] == files[1]

    def test_an_interrupted_merge_is_done_again(self, tmp_path, monkeypatch):
        path = tmp_path / "kept.parquet"
        kept = Annotations(path)
        kept.add("llava", {key(): SCORES})

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("shutil.rmtree", interrupt)
            with pytest.raises(KeyboardInterrupt):
                kept.merge()
        written = path.read_bytes()
        Annotations(path).merge()
        assert path.read_bytes() == written
        assert not list(tmp_path.glob("*.parts"))

    def test_a_half_written_part_is_not_read(self, tmp_path):
        path = tmp_path / "kept.parquet"
        Annotations(path).add("llava", {key(): SCORES})
        (tmp_path / "kept.parquet.parts" / ".abc.parquet.x1y2").write_bytes(b"PAR1")
        assert list(Annotations(path).answers) == [key()]

    def test_nothing_added_writes_nothing(self, tmp_path):
        path = tmp_path / "kept.parquet"
        Annotations(path).merge()
        assert not path.exists()

    def test_without_a_path_nothing_is_kept(self):
        kept = Annotations()
        kept.add("llava", {key(): SCORES})
        kept.merge()
        assert list(kept.answers) == [key()]


class TestRevision:
    def test_one_is_found_by_the_teachers_name(self, tmp_path):
        path = tmp_path / "kept.parquet"
        Annotations(path).add("llava", {key(): SCORES})
        Annotations(path).add("clip", {key(revision="r2"): SCORES})
        kept = Annotations(path)
        assert (kept.revision_of("llava"), kept.revision_of("clip"), kept.revision_of("x")) == (
            "r1",
            "r2",
            None,
        )

    def test_of_two_none_is(self):
        kept = Annotations()
        kept.add("llava", {key(): SCORES, key(revision="r2"): SCORES})
        assert kept.revision_of("llava") is None


class TestRefused:
    def test_no_parquet(self, tmp_path):
        path = tmp_path / "kept.parquet"
        path.write_text("no parquet")
        with pytest.raises(ValueError, match=r"cannot be read \(.*; needed are the columns image, p"):
            Annotations(path)

    def test_a_missing_column(self, tmp_path):
        path = tmp_path / "kept.parquet"
        pq.write_table(pa.table({"image": ["a"], "caption": ["b"]}), path)
        with pytest.raises(ValueError, match="needed are the columns image, prompt, candidates") as caught:
            Annotations(path)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("scores", [None, SCORES[:1], np.array([np.nan, 0], np.float32), [None, 0.0]])
    def test_scores_of_other_candidates(self, tmp_path, scores):
        path = tmp_path / "kept.parquet"
        row = {**key()._asdict(), "teacher": "llava", "log_probabilities": scores}
        pq.write_table(pa.Table.from_pylist([row], SCHEMA), path)
        with pytest.raises(ValueError, match="image a needs a log-probability for each of"):
            Annotations(path)

    @pytest.mark.parametrize(
        ("column", "candidates"),
        [("caption", ""), ("image", ""), ("candidates", TWO), ("revision", TWO), ("teacher", TWO)],
    )
    def test_a_row_that_lacks_something(self, tmp_path, column, candidates):
        path = tmp_path / "kept.parquet"
        whole = {**key(candidates=candidates)._asdict(), "teacher": "llava", "caption": "a circle"}
        whole["log_probabilities"] = SCORES if candidates else None
        pq.write_table(pa.Table.from_pylist([whole, {**whole, column: None}], SCHEMA), path)
        with pytest.raises(ValueError, match=rf"^annotations .*kept.parquet: row 1 has no {column}$"):
            Annotations(path)

    @pytest.mark.parametrize("candidates", ["red, green", "3", "{"])
    def test_candidates_that_are_no_list(self, tmp_path, candidates):
        path = tmp_path / "kept.parquet"
        row = {**key(candidates=candidates)._asdict(), "teacher": "llava", "log_probabilities": SCORES}
        pq.write_table(pa.Table.from_pylist([row], SCHEMA), path)
        with pytest.raises(ValueError, match="image a needs a log-probability for each of"):
            Annotations(path)
