"""The aligner: its batches, its guards."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.examples import Examples
from app.heads import answer_with_new_head, new_head
from app.records import from_record, to_record
from server_app.alignment import PoolAligner, balanced_batches
from server_app.alignment_loss import Alignment
from server_app.global_model import GlobalModel
from server_app.public_pool import Pool

ANSWERS = 3


def pool_of(num: int, seed: int) -> Pool:
    """Pictures of one brightness a class, each with its own noise; the teacher model is right and sure."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % ANSWERS
    light = (60 + 60 * labels).view(-1, 1, 1, 1)
    pixels = (light + torch.randint(0, 20, (num, 3, 32, 32), generator=generator)).to(torch.uint8)
    examples = Examples(
        pixels=pixels,
        image_of=torch.arange(num),
        input_ids=torch.full((num, 3), 5),
        attention_mask=torch.ones(num, 3, dtype=torch.long),
        scores=one_hot(labels, ANSWERS).float(),
    )
    target = 0.05 + 0.85 * one_hot(labels, ANSWERS).float()
    return Pool(
        ("dark", "grey", "light"),
        examples,
        labels,
        target,
    )


@pytest.fixture
def adapter(small_backbone):
    backbone = load_backbone(str(small_backbone))
    return adapt(backbone, adapter_config("bottleneck", reduction_factor=4, width=backbone.width), 0)


@pytest.fixture
def aligner(adapter):
    def build(head_travels: bool = False, held_out: Pool | None = None, **settings) -> PoolAligner:
        answer_with_new_head(adapter, 32, ANSWERS, 0, "shared" if head_travels else "private")
        model = GlobalModel(adapter)
        own = {"steps": 5, "batch_size": 12, "learning_rate": 5e-3, **settings}
        return PoolAligner(model, pool_of(30, 0), held_out or pool_of(18, 1), Alignment(**own))

    return build


def test_every_class_is_drawn_as_often_whatever_its_share():
    classes = torch.tensor([0] * 90 + [1] * 9 + [2] + [-1] * 50)
    rows = torch.cat(list(balanced_batches(classes, 30, 100, torch.Generator().manual_seed(0))))
    drawn = torch.bincount(classes[rows], minlength=3)
    # 1,000 of each are expected, with a standard deviation of 26.
    assert (drawn - 1000).abs().max() < 130
    assert (classes[rows] >= 0).all()


def test_it_lowers_the_held_out_loss_and_says_by_how_much(aligner, adapter):
    arrays = to_record(adapter.state("shared"))
    aligned, measured = aligner().align(1, arrays)
    assert measured["accepted"] == 1
    assert measured["ce"] < measured["ce-before"]
    assert measured["kl"] < measured["kl-before"]
    assert list(aligned) == list(arrays)
    before, after = from_record(arrays), from_record(aligned)
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert measured["delta-norm"] == pytest.approx(moved, rel=1e-4)
    assert moved > 0


def test_it_is_a_function_of_the_round_and_the_arrays(aligner, adapter):
    arrays = to_record(adapter.state("shared"))
    one = aligner()
    first, other_round, again = (one.align(r, arrays)[0] for r in (1, 2, 1))
    assert all(first[name].data == again[name].data for name in arrays)
    assert any(first[name].data != other_round[name].data for name in arrays)


def test_no_steps_change_nothing(aligner, adapter):
    arrays = to_record(adapter.state("shared"))
    assert aligner(steps=0).align(1, arrays) == (arrays, {})


def test_what_worsens_the_held_out_loss_is_rolled_back(aligner, adapter):
    arrays = to_record(adapter.state("shared"))
    # Held-out examples say the opposite of those that are trained on.
    good = pool_of(18, 1)
    wrong = replace(good, labels=(good.labels + 1) % ANSWERS, target=good.target.roll(1, 1))
    aligned, measured = aligner(held_out=wrong, steps=20).align(1, arrays)
    assert aligned is arrays
    assert measured["accepted"] == measured["delta-norm"] == 0
    assert measured["ce"] > measured["ce-before"]


@pytest.mark.parametrize("head_travels", [True, False])
def test_it_stays_within_the_trust_region(aligner, adapter, head_travels):
    start = dict(adapter.state("shared"))
    if head_travels:
        head = new_head(32, ANSWERS, 0, "shared")
        start |= {f"classifier.{name}": value for name, value in head.state_dict().items()}
    aligned, measured = aligner(head_travels, radius=1e-3, steps=20).align(1, to_record(start))
    norm = math.sqrt(sum(float(value.square().sum()) for value in start.values()))
    assert measured["delta-norm"] == pytest.approx(1e-3 * norm, rel=1e-3)
    assert set(aligned) == set(start)


def test_a_head_of_the_server_does_not_travel_and_an_aggregated_one_is_aligned(aligner, adapter):
    head = {f"classifier.{k}": v for k, v in new_head(32, ANSWERS, 3, "shared").state_dict().items()}
    alone, _ = aligner(False).align(1, to_record(adapter.state("shared")))
    both, _ = aligner(True).align(1, to_record(adapter.state("shared") | head))
    assert not any(name.startswith("classifier") for name in alone)
    after = from_record(both)
    assert all(not torch.equal(after[name], value) for name, value in head.items())


def test_of_the_head_alone_nothing_else_moves(aligner, adapter):
    first = new_head(32, ANSWERS, 3, "shared").state_dict()
    head = {f"classifier.{name}": value for name, value in first.items()}
    start = adapter.state("shared") | head
    aligned, measured = aligner(True, part="head").align(1, to_record(start))
    after = from_record(aligned)
    moved = {name for name in start if not torch.equal(after[name], start[name])}
    assert moved == set(head)
    assert measured["ce"] < measured["ce-before"]


def test_without_labels_the_teacher_model_alone_moves_it(aligner, adapter):
    arrays = to_record(adapter.state("shared"))
    without = aligner(labels="none")
    unlabelled = replace(without.train, labels=torch.full_like(without.train.labels, -1))
    other = PoolAligner(without.model, unlabelled, without.held_out, without.settings)
    assert other.align(1, arrays) == without.align(1, arrays)
    assert without.align(1, arrays)[1]["accepted"] == 1
