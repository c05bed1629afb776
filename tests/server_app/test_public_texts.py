"""The public pool of models that write: its texts, and what a teacher model says at their tokens."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from app.backbones import load_backbone
from app.settings import read_settings
from server_app import public_texts
from server_app.alignment_loss import Alignment
from server_app.global_model import GlobalModel
from server_app.public_pool import public_rows
from server_app.public_texts import load_text_pools
from server_app.teachers.annotating import annotate_captions
from server_app.teachers.teacher import open_teacher
from tests.app.families.test_generative import differing
from tests.app.tiny_generative import made, pictures_alone


@pytest.fixture(scope="module", params=["LLaVA", "Qwen2.5-VL"])
def folder(request, tmp_path_factory):
    return made(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def without_videos():
    with pictures_alone():
        yield


@pytest.fixture
def pools(home, run_config, folder):
    """Load both pools of these settings; return them and the rows that they are made of."""

    def load(**overrides):
        fixed = {"backbone": str(folder), "loss": "next-token", "align.when": "end", "server_device": "cpu"}
        few = {"public.examples": 30, "max_tokens": 100, "align.beta": 0.0}
        settings = read_settings(run_config(**{**fixed, **few, **overrides}))
        found = load_text_pools(settings, load_backbone(str(folder), max_tokens=settings.max_tokens))
        return found, public_rows(settings)[0]

    return load


def texts_of(pool, folder):
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    return [tokenizer.decode(text, skip_special_tokens=True).replace(" ", "") for text in pool.texts]


def test_the_texts_are_the_public_examples_own_answers(pools, folder):
    found, rows = pools()
    for pool, part in zip(found, rows, strict=True):
        assert texts_of(pool, folder) == [answer.replace(" ", "") for answer in part["answer"]]
        assert all(text[-1] == 2 for text in pool.texts)
        assert pool.target is None
        # Equal texts are one class.
        classes = dict(zip(pool.classes_by("true").tolist(), part["answer"], strict=True))
        assert [classes[index] for index in pool.classes_by("true").tolist()] == part["answer"]
        assert len(set(classes.values())) == len(classes)


def test_or_what_the_teacher_model_writes(pools, folder, monkeypatch):
    written = []

    def annotating(teacher, images, prompts, **given):
        assert (teacher.name, len(images)) == (str(folder), len(prompts))
        written.append(["no" if number % 2 else "a red circle" for number in range(len(images))])
        assert all(prompt.startswith("look: ") for prompt in prompts)
        return written[-1]

    monkeypatch.setattr(public_texts, "annotate_captions", annotating)
    prompt = {"teacher.model": str(folder), "teacher.prompt": "look: {question}"}
    found, _ = pools(**prompt, **{"align.labels": "none"})
    for pool, texts in zip(found, written, strict=True):
        assert texts_of(pool, folder) == [text.replace(" ", "") for text in texts]
        assert pool.classes_by("none").tolist() == [number % 2 for number in range(len(texts))]


@torch.no_grad()
def test_what_the_teacher_model_says_is_what_a_stock_forward_gives(pools, folder, monkeypatch):
    """One public example at a time: its picture, its question and its whole text, without a cache."""
    monkeypatch.setattr(public_texts, "WORDS", 7)
    found, rows = pools(**{"teacher.model": str(folder), "align.beta": 1.0, "align.temperature": 2.0})
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    pool, part = found[0], rows[0]
    for row in range(0, len(part), 5):
        content = [{"type": "image"}, {"type": "text", "text": part["question"][row]}]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        text = pool.texts[row]
        # The answer behind the prompt as words; its end is told by its number.
        inputs = processor(images=[part["image"][row].convert("RGB")], text=[asked], return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], text[None]], dim=1)
        for name in ("attention_mask", "mm_token_type_ids"):
            if name in inputs:
                fill = torch.full_like(text, int(name == "attention_mask"))
                inputs[name] = torch.cat([inputs[name], fill[None]], dim=1)
        chances = (model(**inputs).logits[0, -len(text) - 1 : -1] / 2).softmax(-1)
        told, words = pool.target[row]
        assert words.shape == (len(text), 7)
        torch.testing.assert_close(told[:, :7].exp(), chances.topk(7).values, atol=1e-5, rtol=0)
        torch.testing.assert_close(chances.gather(1, words), chances.topk(7).values, atol=1e-5, rtol=0)
        torch.testing.assert_close(told.exp().sum(1), torch.ones(len(text)))


def test_a_text_is_asked_for_by_each_examples_own_question(home, folder):
    """Not by the first one's."""
    pixels = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(pixels, "PNG")
    image = Image.open(pixels)
    teacher = open_teacher(str(folder), device="cpu")
    questions = ["what color ?", "is there a square ?"]
    both = annotate_captions(teacher, [image, image], questions)
    assert both == [annotate_captions(teacher, [image], question)[0] for question in questions]
    assert both[0] != both[1]


def test_too_few_examples_to_hold_any_out(pools):
    with pytest.raises(ValueError, match="the public pool has no answer five times, so none is held out"):
        pools(**{"public.examples": 2})


@torch.no_grad()
def test_what_is_measured_is_the_mean_over_tokens(pools, folder):
    """However the examples are cut into batches."""
    (pool, _), _ = pools(**{"teacher.model": str(folder), "align.beta": 1.0})
    learner = differing(load_backbone(str(folder), max_tokens=100))
    learner.answer_with(torch.nn.Identity())
    model = GlobalModel(learner)
    whole, single = (pool.measured(model, pool.target, Alignment(batch_size=size)) for size in (64, 1))
    for found, expected in zip(vars(single).values(), vars(whole).values(), strict=True):
        torch.testing.assert_close(found, expected)
    logits = model.answering(pool.examples, "all")(torch.arange(len(pool.texts)))
    ce = torch.nn.functional.cross_entropy(logits, torch.cat(list(pool.texts)))
    torch.testing.assert_close(whole.ce, ce)
    assert whole.kl > 1e-3
    torch.testing.assert_close(whole.total, whole.ce + whole.kl)
