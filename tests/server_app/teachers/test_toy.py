"""The toy teacher: its batches, and that what is saved is a teacher that has learnt."""

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from server_app.pretraining.tiny_llava import CAPTION_PROMPT, Answered, build
from server_app.teachers import toy
from server_app.teachers.annotating import annotate, annotate_captions
from server_app.teachers.teacher import open_teacher
from server_app.teachers.toy import batches, main

DESCRIPTION = "top left small red plain square , bottom large blue dotted star"


class TestBatches:
    def test_short_descriptions_first_then_questions_too(self):
        lengths = torch.arange(100, 0, -1).tolist()
        captions = Answered(torch.empty(0), [], [[1] * length for length in lengths])
        questions = Answered(torch.empty(0), [], [[1]] * 100)
        drawn = list(batches(captions, questions, 10, 300, torch.Generator().manual_seed(0)))
        first = [lengths[row] for data, rows in drawn[:20] for row in rows]
        assert max(first) <= 35
        assert all(data is captions for data, _ in drawn[:75])
        assert [data is questions for data, _ in drawn[100:]] == [False, True, True, True] * 50
        assert max(lengths[row] for data, rows in drawn[100:] if data is captions for row in rows) > 95


@pytest.fixture(scope="module")
def made(tmp_path_factory, drawn):
    """Make a toy teacher in seconds."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        (home / "data").symlink_to(drawn, target_is_directory=True)
        patch.setenv("FEDDAT_HOME", str(home))
        main(["--out", str(folder / "toy"), "--images", "60", "--steps", "6", "--device", "cpu"])
    return folder / "toy"


class TestProgram:
    def test_stock_classes_load_it(self, made, pictures):
        model = AutoModelForImageTextToText.from_pretrained(made)
        processor = AutoProcessor.from_pretrained(made)
        inputs = processor(images=pictures[0], text="USER: <image>\nred ? ASSISTANT:", return_tensors="pt")
        assert type(model).__name__ == "LlavaForConditionalGeneration"
        assert model(**inputs).logits.shape[-1] == len(processor.tokenizer)

    def test_it_is_a_teacher(self, made, pictures):
        teacher = open_teacher(str(made), device="cpu")
        found = annotate(teacher, pictures, "what color is the object ?", ["red", "blue"])
        assert torch.allclose(found.sum(1), torch.ones(6))
        assert len(annotate_captions(teacher, pictures, CAPTION_PROMPT)) == 6

    def test_the_card_calls_it_a_toy_and_repeats_it(self, made):
        card = (made / "README.md").read_text()
        assert "# toy: a toy teacher" in card
        assert "--images 60 --steps 6 --batch-size" in card
        assert len(re.findall(r"\| \d+\.\d% \|", card)) == 4

    def test_training_lowers_the_loss(self, pictures):
        """Two pictures and their colours, by heart."""
        torch.manual_seed(0)
        model, processor = build([DESCRIPTION])
        data = Answered.load(pictures[:2], ["color ?"] * 2, ["red", "blue"], processor)
        before = toy.token_accuracy(model, data)
        toy.train(model, data, data, steps=40, batch_size=2, peak=2e-3, seed=0)
        assert before < 0.5
        assert toy.token_accuracy(model, data) == 1.0
