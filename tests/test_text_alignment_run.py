"""Whole runs with alignment of models that write, in one process: FedDAT's clients and a teacher model."""

import shutil

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from app.settings import read_settings
from server_app.public_pool import prompts, public_rows
from server_app.teachers import teacher
from server_app.teachers.annotations import Annotations, Key, image_sha256
from tests.app.tiny_generative import MARKS, made, tokenizer
from tests.app.tiny_models import drawn
from tests.bad_input.ends import error_of
from tests.test_alignment_run import adapter_of, aligned_rows, arrays_of, distance, mean_of

BY_LABELS = {"align.beta": 0.0}
BY_TEXTS = {"align.beta": 0.0, "align.labels": "none"}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return made("LLaVA", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def teaching(llava, tmp_path_factory):
    """Return a teacher model with the backbone's tokenizer and other weights."""
    folder = shutil.copytree(llava, tmp_path_factory.mktemp("teaching") / "llava")
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    words = slice(len(MARKS), len(tokenizer()))
    with torch.no_grad():  # it writes words, and no marks
        model.lm_head.weight.zero_()[words].copy_(drawn(words.stop - words.start, 32, seed=1))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def writing(federation, llava):
    """Build an in-process federation of clients that write, aligned on a few public examples."""
    fixed = {
        "backbone": str(llava),
        "loss": "next-token",
        "adapter": "lora",
        "lora_rank": 3,
        "max_tokens": 70,
    }
    few = {"train_examples": 6, "test_examples": 3, "num_rounds": 1, "writing.tokens": 2}
    align = {"align.when": "each-round", "align.steps": 3, "align.batch-size": 8, "public.examples": 40}
    own = {**fixed, **few, **align, "server_device": "cpu"}
    return lambda **overrides: federation(2, **{**own, **overrides})


def test_where_both_have_one_tokenizer_words_count_as_well(writing, teaching, no_rejection):
    def result(name, **overrides):
        folder = writing(run_name=name, teacher__model=str(teaching), **overrides).serve()
        (row,) = aligned_rows(folder)
        return row, adapter_of(folder)

    both, words = result("both")
    labels, alone = result("labels", **BY_LABELS)
    assert both["align/kl-before"] > 0.1
    assert both["align/kl"] < both["align/kl-before"]
    assert labels["align/kl"] == 0
    assert both["align/ce-before"] == labels["align/ce-before"]
    assert distance(words, alone) > 1e-3


def test_a_teacher_model_of_another_tokenizer_teaches_by_what_it_writes(writing, random_llava, monkeypatch):
    settings = {**BY_TEXTS, "teacher.model": str(random_llava)}
    first = aligned_rows(writing(**settings, run_name="first").serve())
    (row,) = first
    assert row["align/ce"] < row["align/ce-before"]
    assert row["align/kl"] == row["align/kl-before"] == 0
    # Once written, its texts are kept.
    monkeypatch.setattr(teacher, "load_model", lambda *_: pytest.fail("the teacher model was loaded"))
    assert aligned_rows(writing(**settings, run_name="second").serve()) == first
    other = aligned_rows(writing(**BY_LABELS, run_name="labels").serve())
    assert other[0]["align/ce-before"] != row["align/ce-before"]


def test_what_was_aligned_is_what_clients_get_next_and_the_result(writing, no_rejection):
    clients = writing(**BY_LABELS, num_rounds=2)
    folder = clients.serve()
    sent, replies = arrays_of(clients, "to client", "train"), arrays_of(clients, "to server", "train")
    # The first are of what was there before any training.
    results = arrays_of(clients, "to client", "evaluate")[2::2]
    for index, (row, result) in enumerate(zip(aligned_rows(folder), results, strict=True)):
        aggregate = mean_of(replies[2 * index : 2 * index + 2])
        assert distance(aggregate, result) == pytest.approx(row["align/delta-norm"], rel=1e-3)
        assert row["align/delta-norm"] > 1e-3
    assert all("lora_" in name and "language_model" in name for name in sent[0])
    assert all(np.array_equal(sent[2][name], results[0][name]) for name in sent[2])
    assert all(np.array_equal(array, results[1][name]) for name, array in adapter_of(folder).items())


def test_a_stopped_run_goes_on_to_the_same_bytes(writing, teaching):
    given = {"teacher.model": str(teaching), "schedule": "constant"}
    straight = writing(**given, num_rounds=2, run_name="straight").serve()
    writing(**given, run_name="stopped").serve()
    writing(**given, num_rounds=2, resume="stopped", run_name="").serve()
    stopped = straight.with_name("stopped")
    files = [run / "adapter" / "adapter_model.safetensors" for run in (straight, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert aligned_rows(straight) == aligned_rows(stopped)


def test_what_worsens_the_held_out_loss_is_rolled_back(writing, teaching):
    """What the backbone would write by itself can only become less likely."""
    own = {"backbone": str(teaching), "teacher__model": str(teaching)}
    clients = writing(**BY_TEXTS, **own, align__learning_rate=1e3, align__radius=1e3)
    folder = clients.serve()
    (row,) = aligned_rows(folder)
    assert row["align/accepted"] == row["align/delta-norm"] == 0
    assert row["align/ce"] > row["align/ce-before"]
    for name, array in mean_of(arrays_of(clients, "to server", "train")).items():
        np.testing.assert_allclose(adapter_of(folder)[name], array, rtol=1e-6, atol=1e-9)


def test_it_stays_within_the_radius(writing, no_rejection):
    clients = writing(**BY_LABELS, align__radius=1e-3)
    (row,) = aligned_rows(clients.serve())
    aggregate = mean_of(arrays_of(clients, "to server", "train"))
    norm = np.sqrt(sum((array**2).sum() for array in aggregate.values()))
    assert row["align/delta-norm"] == pytest.approx(1e-3 * norm, rel=1e-2)


def test_texts_in_a_file_take_the_place_of_a_teacher_model(writing, tmp_path):
    settings = read_settings(writing(**BY_LABELS).run_config)
    said = {
        Key(image_sha256(image), asked, "", "", "made for a test"): "a small blue square"
        for part in public_rows(settings)[0]
        for image, asked in zip(part["image"], prompts(settings, part), strict=True)
    }
    annotations = Annotations(tmp_path / "said.parquet")
    annotations.add("a teacher", said)
    annotations.merge()
    file = str(tmp_path / "said.parquet")
    (row,) = aligned_rows(writing(**BY_TEXTS, teacher__model=file, run_name="texts").serve())
    assert row["align/ce"] < row["align/ce-before"]


@pytest.mark.parametrize("kind", ["another tokenizer", "a file"])
def test_words_of_another_tokenizer_are_refused_before_any_client_is_asked(
    writing, random_llava, home, monkeypatch, kind
):
    monkeypatch.setattr(teacher, "load_model", lambda *_: pytest.fail("the teacher model was loaded"))
    name = str(random_llava) if kind == "another tokenizer" else "/some/said.parquet"
    clients = writing(teacher__model=name)
    why = {
        "another tokenizer": "whose tokenizer is not the backbone's",
        "a file": "which has texts, and no words' likelihoods",
    }
    assert error_of(clients, home) == (
        f"align.beta = 1.0 with loss = 'next-token' and teacher.model = {name!r}, {why[kind]}; allowed: 0.0,"
        " which with align.labels = 'none' aligns by what it writes"
    )
    assert clients.wire == []


def test_public_examples_that_cannot_be_used_are_named(writing, home):
    clients = writing(**BY_LABELS, max_tokens=20)
    said = error_of(clients, home)
    assert said.startswith("the public pool: example 0: max-tokens = 20 cuts off ")
    assert clients.wire == []
