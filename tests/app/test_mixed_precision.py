"""The step as a GPU takes it, forwards in bfloat16, by the CPU's autocast: held to the step in float32."""

from dataclasses import replace

import pytest
import torch

from app import piecewise, tasks
from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.conversations import converse
from app.families.generative import image_features
from app.heads import new_head
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.app.families.test_generative import CPU, rows
from tests.app.tiny_generative import made, pictures_alone
from tests.app.tiny_models import drawn

# bfloat16 has 8 significant bits: each of some 30 operations in a row, about ten a block, rounds by 2 ** -9
# at most, in one direction as often as in the other. Of the largest value that is 30 ** 0.5 * 2 ** -9, 0.011;
# four times that is allowed. A gradient goes forwards and backwards: twice as much.
OUTPUT = 0.045
GRADIENT = 2 * OUTPUT
# A loss in float32, of the logits that there are, is off by that rounding alone.
LOSS = 1e-5
BRANCHES = ("student", "teacher", "dat")


@pytest.fixture(params=["vilt", "llava", "llava in pieces"])
def trained(request, backbone, batch, tmp_path_factory, monkeypatch):
    """Return what makes a learner, always the same, with its inputs, targets and the loss's name."""
    if request.param == "vilt":
        targets = torch.rand(4, 5, generator=torch.Generator().manual_seed(3))
        return lambda: differing(backbone, "bottleneck"), batch, targets, "bce-scores"
    monkeypatch.setattr(piecewise, "PIECE", 2 * 1400 if "pieces" in request.param else 2**22)
    with pictures_alone():
        writes = load_backbone(str(made("LLaVA", tmp_path_factory.mktemp("llava"))))
    kept = converse(rows(), writes.processor, lambda pictures: image_features(writes.model, pictures))
    return lambda: differing(writes, "lora"), *kept.batch(torch.arange(3), CPU), "next-token"


def differing(backbone, kind):
    learner = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
    if kind == "bottleneck":
        learner.answer_with(new_head(32, 5, seed=2))
    for seed, role in enumerate(("shared", "frozen", "local")):
        learner.load(role, {n: drawn(*v.shape, seed=seed) * 0.2 for n, v in learner.state(role).items()})
    return learner


def taken(trained, precision, take=mkd_step):
    """Take a step; return what it computed, and how the weights changed."""
    make, inputs, targets, loss = trained
    learner = make()
    # Not AdamW, whose first step is the sign of a gradient, however small that is.
    optimizer = make_optimizer(learner, 0.1, 0.0, "sgd")
    before = [weight.detach().clone() for weight in learner.trained_parameters()]
    with precision:
        outcome = take(learner, optimizer, inputs, targets, Distillation(loss=loss))
        # Pieces of logits are computed when they are asked for, in what is in force then.
        outcome = replace(outcome, **{name: getattr(outcome, name)[:] for name in BRANCHES})
    pairs = zip(learner.trained_parameters(), before, strict=True)
    return outcome, torch.cat([(after.detach() - old).flatten() for after, old in pairs])


def half():
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def full():
    return torch.autocast("cpu", enabled=False)


def check(outcome, targets, loss):
    """Hold a step's losses to those of its logits in float64; all are in float32."""
    assert outcome.losses.dtype == outcome.student.dtype == outcome.dat.dtype == torch.float32
    task = tasks.TASKS[loss]
    student, teacher, dat = (getattr(outcome, name).double() for name in BRANCHES)
    told = targets[:, 1:][targets[:, 1:] != tasks.IGNORED] if loss == "next-token" else targets.double()
    pairs = ((student, teacher), (dat, student))
    expected = [term for z, other in pairs for term in (task.loss(z, told), tasks.divergence(z, other, 3.0))]
    torch.testing.assert_close(outcome.losses.double(), torch.stack(expected), atol=LOSS, rtol=LOSS)


@pytest.mark.parametrize("take", [mkd_step, reference_step])
def test_losses_are_computed_in_float32(trained, take):
    _, _, targets, loss = trained
    outcome, _ = taken(trained, half(), take)
    check(outcome, targets, loss)


def test_a_loss_that_is_left_in_bfloat16_is_found(trained, monkeypatch):
    _, _, targets, loss = trained
    kind = type(tasks.TASKS[loss])
    right = kind.loss
    monkeypatch.setattr(kind, "loss", lambda *arguments: right(*arguments).bfloat16().float())
    outcome, _ = taken(trained, half())
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="not close"):
        check(outcome, targets, loss)


def test_a_step_in_bfloat16_is_that_in_float32_up_to_rounding(trained):
    (found, moved), (expected, change) = taken(trained, half()), taken(trained, full())
    for name in BRANCHES:
        value = getattr(expected, name)
        assert 0 < (getattr(found, name) - value).abs().max() < OUTPUT * value.abs().max()
    assert 0 < (moved - change).norm() < GRADIENT * change.norm()
    assert moved.dtype == torch.float32


def test_branches_that_are_mixed_up_are_beyond_that_rounding(trained):
    outcome, _ = taken(trained, full())
    assert (outcome.student - outcome.dat).abs().max() > 2 * OUTPUT * outcome.student.abs().max()
