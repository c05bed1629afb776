"""Teachers by name: a model and a file say what they are, score alike, and refuse what they cannot answer."""

import math

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch

from server_app.teachers import teacher as room
from server_app.teachers.annotating import annotate, annotate_captions
from server_app.teachers.annotations import image_sha256
from server_app.teachers.models import load_model
from server_app.teachers.teacher import BLANK, RecordedTeacher, open_teacher, soften
from tests.server_app.teachers.fake import CANDIDATES, PROMPT, FakeTeacher


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


def test_a_normalisation():
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
        monkeypatch.setattr(room, "load_model", lambda *_: pytest.fail("weights were loaded"))
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
            f"teacher.model = '{recorded}': 2 of 6 answers are missing, first image "
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
        from server_app.teachers.annotations import SCHEMA, pa

        pq.write_table(pa.Table.from_pylist(table, SCHEMA), recorded)
        with pytest.raises(
            ValueError, match=rf"image {image_sha256(pictures[0])} needs a log-probability for each of"
        ):
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
