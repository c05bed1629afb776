"""The command that annotates beforehand."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from server_app.teachers.__main__ import main
from server_app.teachers.annotating import annotate
from server_app.teachers.annotations import Annotations
from server_app.teachers.teacher import open_teacher
from tests.conftest import ROOT
from tests.server_app.teachers.fake import CANDIDATES, PROMPT


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
            ({"--model": "/none"}, "teacher.model = '/none' cannot be loaded"),
            ({"--model": "none.parquet"}, "teacher.model = 'none.parquet': no such file"),
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
        text = str(stop.value.code)
        assert text.startswith("feddat: ")
        assert line in text
        assert "\n" not in text

    def test_a_file_without_images(self, random_llava, cache, tmp_path):
        path = tmp_path / "data.parquet"
        datasets.Dataset.from_dict({"picture": [1]}).to_parquet(path)
        with pytest.raises(SystemExit) as stop:
            self.run(random_llava, path, cache, "--captions")
        assert stop.value.code == f"feddat: --data {path}: no column image; it has picture"

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
