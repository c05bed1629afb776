"""Gradient accumulation: a round in parts of batches is one of whole batches, or is refused."""

import pytest
import torch
from datasets import Dataset

from app.backbones import open_backbone
from app.examples import Examples
from app.heads import answer_with_new_head
from app.learner import LOCAL
from app.methods import METHODS, open_learner
from app.settings import SettingsError, read_settings
from client_app.local_training import OwnTraining, train_round
from tests.app.families.test_generative import picture
from tests.app.tiny_generative import made, pictures_alone

CPU = torch.device("cpu")
ANSWERS = ("no", "a small red square is there", "blue", "yes", "a red circle", "the small blue square", "no")
NUM_ANSWERS = 3
# Of seven examples 4 and 3; in parts 2 + 2 and 2 + 1; in parts of which the last step of an epoch has one.
WHOLE = {"batch_size": 4}
PARTS = {"batch_size": 2, "gradient_accumulation": 2}
ALONE = {"batch_size": 1, "gradient_accumulation": 4}
WRITING = ("feddat", "feddat-flexlora", "adapter", "local", "ditto", "fedavg-ft", "fedsa-lora", "ffa-lora")
WRITING += ("plora", "flexlora", "padded-lora")
CHOOSING = ("adapter", "local", "fedavg-ft", "fedsa-lora", "ffa-lora", "plora", "flexlora", "padded-lora")
CHOOSING += ("head", "bias", "layernorm")
TWICE = ("feddat", "feddat-flexlora", "ditto", "feddpa")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    with pictures_alone():
        yield made("LLaVA", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def writing(run_config, llava):
    """Build settings of a client that writes."""

    def build(**overrides):
        fixed = {"backbone": str(llava), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
        return read_settings(run_config(**fixed, local_epochs=2, warmup=0.5, **overrides))

    return build


@pytest.fixture
def choosing(run_config):
    """Build settings of a client that chooses from a list."""

    def build(**overrides):
        return read_settings(run_config(adapter="lora", local_epochs=2, warmup=0.5, **overrides))

    return build


def client(settings):
    """Return a learner and its examples: of a generative model with answers of unequal lengths."""
    learner, backbone = open_learner(settings), open_backbone(settings)
    if settings.loss == "next-token":
        columns = {
            "images": [[{"bytes": picture(seed), "path": None}] for seed in range(len(ANSWERS))],
            "messages": [[{"role": "user", "content": "<image>\nwhat is there ?"}]] * len(ANSWERS),
            "answers": [[answer] for answer in ANSWERS],
            "answer_scores": [[1.0]] * len(ANSWERS),
            "options": [[]] * len(ANSWERS),
        }
        learner.answer_with(None)
        examples = backbone.examples(Dataset.from_dict(columns), CPU)
        assert len({int((row > 0).sum()) for row in examples.batch(torch.arange(7), CPU)[1]}) == 4
    else:
        draw = torch.Generator().manual_seed(0)
        texts = backbone.processor.texts(["what color is the circle ?", *ANSWERS[1:]])
        pixels = torch.randint(0, 256, (7, 3, 32, 32), generator=draw, dtype=torch.uint8)
        scores = torch.rand(7, NUM_ANSWERS, generator=draw)
        examples = Examples(pixels, torch.arange(7), texts["input_ids"], texts["attention_mask"], scores)
        answer_with_new_head(learner, backbone.width, NUM_ANSWERS, settings.seed, settings.head)
    learner.begin_anew()
    return learner, examples


def after_two_rounds(settings):
    """Return all that travels or is kept, and the names of what moved."""
    learner, examples = client(settings)
    first = {**learner.shared(), **learner.private()}
    for server_round in (1, 2):
        train_round(learner, examples, settings, server_round, 0)
    after = {**learner.shared(), **learner.private()}
    return after, [name for name in after if not torch.equal(first[name], after[name])]


def equal_but_for_rounding(settings, parts, **overrides):
    whole, moved = after_two_rounds(settings(**WHOLE, **overrides))
    assert moved
    accumulated, also = after_two_rounds(settings(**parts, **overrides))
    assert moved == also
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, atol=5e-5, rtol=0)
    # Not so without.
    plain, _ = after_two_rounds(settings(**{**parts, "gradient_accumulation": 1}, **overrides))
    assert max((plain[name] - value).abs().max() for name, value in whole.items()) > 1e-3


@pytest.mark.parametrize("parts", [PARTS, ALONE], ids=["two", "four"])
@pytest.mark.parametrize("method", WRITING)
def test_texts_of_unequal_lengths_count_as_in_one_batch(writing, method, parts):
    equal_but_for_rounding(writing, parts, method=method)


@pytest.mark.parametrize(
    "overrides",
    [
        {"update": "joint"},
        {"step": "reference"},
        {"optimizer": "sgd", "learning_rate": 0.5},
        {"strategy": "fedprox", "proximal_mu": 1.0},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_with_every_kind_of_step(writing, overrides):
    equal_but_for_rounding(writing, PARTS, **overrides)


@pytest.mark.parametrize("method", CHOOSING)
def test_examples_count_as_in_one_batch(choosing, method):
    # No logit depends on a key's bias: AdamW would make steps of what is rounding alone.
    plain = {"optimizer": "sgd", "learning_rate": 0.1} if method == "bias" else {}
    equal_but_for_rounding(choosing, PARTS, method=method, **plain)


@pytest.mark.parametrize("loss", ["bce-scores", "cross-entropy"])
@pytest.mark.parametrize("method", ["feddat", "feddat-flexlora"])
def test_one_update_of_both_trains_a_head_as_in_one_batch(choosing, method, loss):
    equal_but_for_rounding(choosing, PARTS, method=method, update="joint", loss=loss)


@pytest.mark.parametrize("method", TWICE)
def test_a_head_that_two_updates_train_is_refused(choosing, method):
    line = f"gradient-accumulation = 2 with method = '{method}', whose second .*; allowed: 1, or "
    with pytest.raises(SettingsError, match=line):
        choosing(method=method, **PARTS)


def test_batch_normalisation_is_refused(choosing):
    with pytest.raises(SettingsError, match=r"gradient-accumulation = 2 with method = 'full'.*; allowed: 1"):
        choosing(method="full", head="shared", **PARTS)


def test_no_method_is_forgotten():
    assert {*WRITING, *CHOOSING, *TWICE, "full", "scaffold"} == METHODS.keys()


def test_the_rate_follows_the_steps_that_are_taken(writing, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def spy(optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    after_two_rounds(writing(method="adapter", learning_rate=0.01, **PARTS))
    # Two rounds of two epochs of two steps, half of them up.
    up, down = [step / 4 for step in (1, 2, 3, 4)], [step / 4 for step in (4, 3, 2, 1)]
    assert rates == pytest.approx([0.01 * factor for factor in up + down])


def test_a_copy_that_is_tuned_is_so_in_parts(writing):
    tuned = {}
    for name, sizes in (("whole", WHOLE), ("parts", PARTS)):
        settings = writing(method="fedavg-ft", **sizes)
        learner, examples = client(settings)
        own = OwnTraining(learner, lambda examples=examples: examples, settings, 2, 0)
        first = learner.private()
        list(METHODS["fedavg-ft"].scored(learner, own, settings))
        tuned[name] = learner.private()
    assert all(name.startswith(LOCAL) for name in first)
    assert not any(torch.equal(tuned["whole"][name], value) for name, value in first.items())
    for name, value in tuned["whole"].items():
        torch.testing.assert_close(tuned["parts"][name], value, atol=5e-5, rtol=0)
