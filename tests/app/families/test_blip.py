"""BLIP that ranks answers by its decoder: the likelihoods of its own loss, in pieces, under each branch."""

import pytest
import torch

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.checkpointing import recompute_blocks
from app.dual_adapter import ROLES
from app.families import blip
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.app.families.test_whole_forwards import save_small

TEXTS = ("red", "the small circle", "a", "is there a red square ?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_backbone):
    return save_small("blip", tmp_path_factory.mktemp("blip"), small_backbone)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder), head="decoder")


@pytest.fixture
def batch(backbone):
    batch = backbone.processor.texts(["what color is the small circle ?", "is there", "a"])
    generator = torch.Generator().manual_seed(0)
    batch["pixel_values"] = torch.randint(0, 256, (3, 3, 32, 32), generator=generator).to(torch.uint8)
    return {**batch, "answers": backbone.answers(TEXTS)}


def test_an_answer_is_told_from_the_first_token_to_its_end(backbone):
    words = backbone.processor.tokenizer.convert_tokens_to_ids
    expected = [[2, words("red"), 3, -100], [2, words("the"), words("circle"), 3]]
    assert backbone.answers(["red", "the circle"]).tolist() == expected


def test_an_answer_longer_than_the_decoder_can_write_is_cut(backbone):
    (told,) = backbone.answers(["red " * 40]).tolist()
    assert len(told) == backbone.processor.text_length
    assert (told[0], told[-1]) == (2, 3)


def test_logits_are_the_likelihoods_of_the_librarys_own_loss(backbone, batch):
    """Its loss of one question and answer is the mean over the answer's tokens and its end."""
    pixels = backbone.processor.normalise(batch["pixel_values"])
    with torch.no_grad():
        found = backbone.features(backbone.model, batch)
        for row in range(3):
            length = int(batch["attention_mask"][row].sum())
            for column, told in enumerate(batch["answers"]):
                labels = told[told >= 0][None]
                loss = backbone.model(
                    input_ids=batch["input_ids"][row : row + 1, :length],
                    attention_mask=batch["attention_mask"][row : row + 1, :length],
                    pixel_values=pixels[row : row + 1],
                    labels=labels,
                ).loss
                expected = -float(loss) * (labels.shape[1] - 1)
                assert float(found[row, column]) == pytest.approx(expected, abs=1e-4)
    assert found.shape == (3, 4)
    assert (found[0] - found[1]).abs().max() > 1e-2  # the question counts


def likelihoods(backbone, batch):
    """Return an adapted model's logits, and their gradient after another branch was in place."""
    dual = adapt(backbone, Adapter("lora", 4, 3).config(backbone))
    filled(dual)
    logits = dual(batch, "student")
    dual(batch, "local")
    logits.square().mean().backward()
    return logits, {name: weight.grad for name, weight in dual.parameters_of["shared"].items()}


def filled(dual):
    generator = torch.Generator().manual_seed(1)
    for role in ROLES:
        state = dual.state(role)
        dual.load(role, {n: torch.randn(v.shape, generator=generator) * 0.2 for n, v in state.items()})


@pytest.mark.parametrize(("piece", "parts"), [(1, 4), (3 * 8 * 200 * 3, 2)])
def test_in_pieces_logits_and_gradients_are_the_same(backbone, batch, monkeypatch, piece, parts):
    whole, gradient = likelihoods(backbone, batch)
    monkeypatch.setattr(blip, "PIECE", piece)
    calls = []
    part = blip._log_likelihoods
    monkeypatch.setattr(blip, "_log_likelihoods", lambda *given: calls.append(1) or part(*given))
    found, of_pieces = likelihoods(backbone, batch)
    assert len(calls) == parts + parts  # of two branches
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    for name, value in gradient.items():
        torch.testing.assert_close(of_pieces[name], value, atol=1e-4, rtol=1e-4)
    assert all(value is not None and value.any() for value in gradient.values())


def test_the_vocabularys_logits_are_not_kept_for_the_backward_pass(backbone, batch):
    dual = adapt(backbone, Adapter("lora", 4, 3).config(backbone))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        dual(batch, "student")
    assert kept
    assert not any(len(shape) == 3 and 200 in shape for shape in kept)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_the_step_is_the_published_one_and_moves_the_decoder_too(backbone, batch, kind):
    scores = torch.eye(4)[[0, 1, 3]]
    ends = []
    for step in (mkd_step, reference_step):
        dual = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
        filled(dual)
        before = {**dual.shared(), **dual.private()}
        for part in ("vision_model", "text_encoder", "text_decoder.bert"):
            assert any(f".{part}." in name for name in before)
        assert not any(".cls." in name for name in before)
        optimizer = make_optimizer(dual, 1e-3, 0.0)
        for _ in range(4):
            step(dual, optimizer, batch, scores, Distillation(alpha=0.7, beta=1.6, loss="cross-entropy"))
        ends.append({**dual.shared(), **dual.private()})
        assert [key for key in before if torch.equal(before[key], ends[-1][key])] == []
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], atol=5e-5, rtol=0)


def test_blocks_that_are_computed_again_give_the_same_step(backbone, batch):
    """Of them the decoder's are most of the memory, one pass for each answer."""
    ends = []
    for recompute in (False, True):
        dual = adapt(backbone, Adapter("lora", 4, 3).config(backbone))
        filled(dual)
        if recompute:
            recompute_blocks(dual)
        optimizer = make_optimizer(dual, 1e-3, 0.0)
        for _ in range(2):
            mkd_step(dual, optimizer, batch, torch.eye(4)[[0, 1, 3]], Distillation(loss="cross-entropy"))
        ends.append({**dual.shared(), **dual.private()})
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=1e-6, rtol=0)


def test_with_a_head_of_its_own_the_decoder_is_left_alone(folder):
    backbone = load_backbone(str(folder))
    for kind in ("bottleneck", "lora"):
        dual = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
        assert not any("text_decoder" in name for name in dual.shared())
