"""Annotating: each image is asked about once, whatever interrupts it; and what a teacher must not answer."""

import contextlib
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from server_app import teachers
from server_app.annotations import Annotations, image_sha256
from server_app.teacher_models import load_model
from server_app.teachers import (
    BLANK,
    RecordedTeacher,
    annotate,
    annotate_captions,
    main,
    open_teacher,
    soften,
)

ROOT = Path(__file__).parents[2]
CANDIDATES = ["red", "green", "a blue square"]
PROMPT = "what color is the circle ?"


class FakeTeacher:
    """Says what an image's first pixel says, and remembers how many images it was asked about at once."""

    name, normalise, revision = "fake", "sum", "1"

    def __init__(self, batch_size=2, memory=math.inf, stop_after=math.inf):
        self.batch_size, self.memory, self.stop_after = batch_size, memory, stop_after
        self.asked = []

    def _ask(self, images):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        if len(images) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.asked.append(len(images))
        return [float(image.getpixel((0, 0))[0]) for image in images]

    def captions(self, images, prompt):
        return [f"{prompt} {value:.0f}" for value in self._ask(images)]

    def log_probabilities(self, images, prompts, candidates):
        logits = [[value / 100 * index for index in range(len(candidates))] for value in self._ask(images)]
        return torch.tensor(logits).log_softmax(-1)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "kept.parquet"


class TestSoften:
    def test_temperature(self):
        log_probabilities = torch.tensor([[0.2, 0.8]]).log()
        assert torch.allclose(soften(log_probabilities), torch.tensor([[0.2, 0.8]]))
        # p^(1/2) normalised: sqrt(.2) : sqrt(.8) = 1 : 2
        assert torch.allclose(soften(log_probabilities, temperature=2), torch.tensor([[1 / 3, 2 / 3]]))

    def test_abstention_below_the_margin(self):
        log_probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]).log()
        found = soften(log_probabilities, margin=0.25)
        assert found.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
        assert soften(log_probabilities, margin=0.15)[0] == pytest.approx(torch.tensor([0.5, 0.3, 0.2]))

    def test_an_abstained_row_adds_nothing_to_the_divergence(self):
        p = torch.tensor([[0.3, 0.7]])
        assert torch.nn.functional.kl_div(p.log(), torch.zeros(1, 2), reduction="sum") == 0

    def test_what_is_far_below_is_not_lost(self):
        """Of e^-200, float32 keeps the logarithm only."""
        log_probabilities = torch.tensor([[0.0, -200.0]])
        assert soften(log_probabilities, temperature=100)[0, 1] == pytest.approx(1 / (1 + math.e**2))


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
        with pytest.raises(ValueError, match=r"^teacher = 'fake' runs out of memory with a single image$"):
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
            "teacher = 'fake' gives no distribution over the candidates for image "
            f"{image_sha256(pictures[3])} (number 3), prompt {PROMPT!r}"
        )
        assert len(Annotations(cache).answers) == 2  # the batch before

    def test_an_empty_caption(self, pictures):
        class Silent(FakeTeacher):
            def captions(self, images, prompt):
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

    def test_a_normalisation(self):
        with pytest.raises(ValueError, match="normalise = 'median'; allowed: sum, mean, pmi"):
            open_teacher("anything", normalise="median")


class TestModelTeacher:
    def test_normalisations(self, random_llava, pictures):
        """From the model's own sums: candidates of 1, 1 and 3 tokens."""
        model = load_model(str(random_llava), "cpu")
        sums, lengths = model.log_likelihoods(pictures, [PROMPT] * 6, CANDIDATES)
        blank, _ = model.log_likelihoods([BLANK], [PROMPT], CANDIDATES)
        assert lengths.tolist() == [1, 1, 3]
        expected = {"sum": sums, "mean": sums / torch.tensor([1, 1, 3]), "pmi": sums - blank}
        for normalise, scores in expected.items():
            teacher = open_teacher(str(random_llava), normalise=normalise, device="cpu", batch_size=3)
            found = annotate(teacher, pictures, PROMPT, CANDIDATES)
            assert torch.allclose(found, scores.softmax(-1), atol=1e-5)

    def test_the_blank_image_is_scored_once_a_prompt(self, random_llava, pictures, monkeypatch):
        teacher = open_teacher(str(random_llava), normalise="pmi", device="cpu", batch_size=2)
        asked = []
        real = teacher.model.log_likelihoods

        def watch(images, prompts, candidates):
            asked.extend(prompt for image, prompt in zip(images, prompts, strict=True) if image is BLANK)
            return real(images, prompts, candidates)

        monkeypatch.setattr(teacher.model, "log_likelihoods", watch)
        annotate(teacher, pictures, ["a ?", "b ?", "b ?"] * 2, CANDIDATES)
        assert sorted(asked) == ["a ?", "b ?"]

    def test_no_weights_are_loaded_when_all_is_kept(self, random_llava, pictures, cache, monkeypatch):
        def ask(teacher):
            captions = annotate_captions(teacher, pictures, "describe", cache=cache)
            return annotate(teacher, pictures, PROMPT, CANDIDATES, cache=cache), captions

        first = ask(open_teacher(str(random_llava), device="cpu"))
        monkeypatch.setattr(teachers, "load_model", lambda *_: pytest.fail("weights were loaded"))
        second = ask(open_teacher(str(random_llava), device="cpu"))
        assert torch.equal(first[0], second[0])
        assert first[1] == second[1]

    def test_a_teacher_that_is_gone_answers_what_is_kept(
        self, random_llava, pictures, cache, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        place = tmp_path / "llava"
        place.symlink_to(random_llava)
        first = annotate(
            open_teacher(str(place), device="cpu"), pictures[:3], PROMPT, CANDIDATES, cache=cache
        )
        place.unlink()
        gone = open_teacher(str(place), device="cpu")
        assert torch.equal(annotate(gone, pictures[:3], PROMPT, CANDIDATES, cache=cache), first)
        with pytest.raises(ValueError, match=r"cannot be loaded .* give the path of a local folder"):
            annotate(gone, pictures, PROMPT, CANDIDATES, cache=cache)


class TestRecorded:
    @pytest.fixture
    def recorded(self, pictures, cache):
        annotate(FakeTeacher(), pictures[:4], PROMPT, CANDIDATES, cache=cache)
        annotate_captions(FakeTeacher(), pictures[:4], "see", cache=cache)
        return cache

    def test_it_answers_what_was_recorded(self, recorded, pictures, tmp_path):
        teacher = open_teacher(str(recorded))
        expected = annotate(FakeTeacher(), pictures[:4], PROMPT, CANDIDATES)
        assert torch.equal(annotate(teacher, pictures[:4], PROMPT, CANDIDATES), expected)
        own = tmp_path / "own.parquet"
        assert annotate_captions(teacher, pictures[:4], "see", cache=own)[3].startswith("see ")
        assert (teacher.revision, teacher.normalise) == ("1", "sum")

    def test_other_images(self, recorded, pictures):
        with pytest.raises(ValueError) as caught:
            annotate(open_teacher(str(recorded)), pictures, PROMPT, CANDIDATES)
        assert str(caught.value) == (
            f"teacher = '{recorded}': 2 of 6 answers are missing, first image "
            f"{image_sha256(pictures[4])}, prompt '{PROMPT}', "
            'candidates ["red", "green", "a blue square"]; '
            "it was made for other images, prompts or candidates"
        )

    def test_other_prompts_or_candidates(self, recorded, pictures):
        teacher = open_teacher(str(recorded))
        with pytest.raises(ValueError, match=r"4 of 4 answers are missing.*prompt 'another'"):
            annotate(teacher, pictures[:4], "another", CANDIDATES)
        with pytest.raises(ValueError, match=r"4 of 4 answers .*candidates \[\"green\", \"red\"\]"):
            annotate(teacher, pictures[:4], PROMPT, ["green", "red"])
        with pytest.raises(ValueError, match=r"4 of 4 answers are missing.*caption"):
            annotate_captions(teacher, pictures[:4], PROMPT)

    def test_nan(self, recorded, pictures):
        table = pq.read_table(recorded).to_pylist()
        for row in table:
            if row["log_probabilities"]:
                row["log_probabilities"][0] = math.nan
        from server_app.annotations import SCHEMA, pa

        pq.write_table(pa.Table.from_pylist(table, SCHEMA), recorded)
        with pytest.raises(ValueError, match=rf"no distribution .* for image {image_sha256(pictures[0])}"):
            annotate(open_teacher(str(recorded)), pictures[:4], PROMPT, CANDIDATES)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"none.parquet': no such file$"):
            open_teacher(str(tmp_path / "none.parquet"))

    def test_two_teachers_in_one_file(self, recorded, pictures):
        other = FakeTeacher()
        other.revision = "2"
        annotate(other, pictures, PROMPT, CANDIDATES, cache=recorded)
        with pytest.raises(ValueError, match="the answers of 2 revisions and 1 normalisations; allowed: one"):
            RecordedTeacher(recorded)


@pytest.fixture
def data(tmp_path, pictures):
    """Return a parquet file of encoded images."""
    rows = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        rows.append(file.getvalue())
    path = tmp_path / "data.parquet"
    datasets.Dataset.from_dict({"image": rows}).to_parquet(path)
    return path


class TestCommand:
    def arguments(self, model, data, out, *others):
        return [
            "--model",
            model,
            "--data",
            data,
            "--out",
            out,
            "--prompt",
            PROMPT,
            "--device",
            "cpu",
            *others,
        ]

    def run(self, *arguments):
        main([str(argument) for argument in self.arguments(*arguments)])

    def test_candidates(self, random_llava, data, pictures, cache, capsys):
        self.run(random_llava, data, cache, "--candidates", "red, green,a blue square", "--limit", 5)
        found = annotate(open_teacher(str(cache)), pictures[:5], PROMPT, CANDIDATES)
        assert torch.equal(found, annotate(open_teacher(str(random_llava)), pictures[:5], PROMPT, CANDIDATES))
        printed = capsys.readouterr().out
        assert "abstained: 0 of 5" in printed
        assert "5 images annotated" in printed

    def test_a_file_of_candidates_and_a_margin(self, random_llava, data, cache, tmp_path, capsys):
        words = tmp_path / "words.txt"
        words.write_text("red\ngreen\n\na blue square\n")
        self.run(random_llava, data, cache, "--candidates", words, "--normalise", "pmi", "--margin", 1)
        assert "abstained: 6 of 6" in capsys.readouterr().out
        assert {row["normalise"] for row in pq.read_table(cache).to_pylist()} == {"pmi"}

    def test_captions_of_public_scenes(self, random_llava, cache, home):
        self.run(random_llava, "scenes", cache, "--captions", "--limit", 3)
        assert all(row["caption"] for row in pq.read_table(cache).to_pylist())
        assert pq.read_table(cache).num_rows == 3

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (
                {"--data": "none.parquet"},
                "--data none.parquet: no such file; allowed: a parquet file, or",
            ),
            ({"--data": "scenes"}, "--data scenes: say with --limit how many public images to draw"),
            ({"--candidates": "red"}, "allowed: at least two, none empty, none twice"),
            ({"--batch-size": "0"}, "--batch-size must be at least 1, --limit at least 0"),
            ({"--model": "/none"}, "teacher = '/none' cannot be loaded"),
            ({"--model": "none.parquet"}, "teacher = 'none.parquet': no such file"),
        ],
    )
    def test_bad_input_is_one_line(self, random_llava, data, cache, capsys, change, line, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        given = {
            "--model": random_llava,
            "--data": data,
            "--out": cache,
            "--prompt": PROMPT,
            "--device": "cpu",
        }
        given = {**given, "--candidates": "a,b", **change}
        with pytest.raises(SystemExit) as stop:
            main([str(word) for option in given.items() for word in option])
        assert stop.value.code == 2
        assert line in capsys.readouterr().err.splitlines()[-1]

    def test_a_file_without_images(self, random_llava, cache, tmp_path, capsys):
        path = tmp_path / "data.parquet"
        datasets.Dataset.from_dict({"picture": [1]}).to_parquet(path)
        with pytest.raises(SystemExit):
            self.run(random_llava, path, cache, "--captions")
        assert f"--data {path}: no column image; it has picture" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_kill_costs_one_batch(self, random_llava, data, pictures, cache, tmp_path):
        def start(out):
            words = ["--candidates", "red,green,a blue square", "--batch-size", "1"]
            command = [sys.executable, "-m", "server_app.teachers"]
            command += [str(word) for word in self.arguments(random_llava, data, out, *words)]
            return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})

        parts = cache.with_name("kept.parquet.parts")
        process = start(cache)
        while process.poll() is None and len(list(parts.glob("*.parquet"))) < 2:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(list(parts.glob("*.parquet")))
        assert 2 <= done < 6, "it was killed half-way"
        kept = Annotations(cache).answers
        assert len(kept) == done
        assert start(cache).wait() == 0
        assert not parts.exists()
        whole = tmp_path / "whole.parquet"
        assert start(whole).wait() == 0
        assert whole.read_bytes() == cache.read_bytes()
        assert pq.read_table(cache).num_rows == len(pictures)
        again = Annotations(cache).answers
        assert all(np.array_equal(again[key], answer) for key, answer in kept.items())


def test_a_picture_of_another_mode_is_the_same_picture(pictures, cache):
    """What a data set decodes as RGBA or palette is hashed, and asked about, as RGB."""
    opaque = [picture.convert("RGBA") for picture in pictures]
    teacher = FakeTeacher(batch_size=10)
    annotate(teacher, pictures, PROMPT, CANDIDATES, cache=cache)
    annotate(teacher, opaque, PROMPT, CANDIDATES, cache=cache)
    assert teacher.asked == [6]
    assert isinstance(opaque[0], Image.Image)
