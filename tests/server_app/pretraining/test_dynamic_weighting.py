"""Dynamic weighting: the share that falls, who learns, and that the student learns to see."""

import datasets
import pytest
import torch

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from server_app.pretraining.dynamic_weighting import (
    DynamicWeighting,
    Student,
    average_to,
    encoder_share,
    split_aside,
)
from server_app.pretraining.trainer import train


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, module):
    after = module.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def batch(objective, share):
    generator = torch.Generator().manual_seed(0)
    return {**next(objective.batches(8, 1, generator)), "share": torch.tensor(share)}


def loss(objective, share, **changes):
    (value,) = objective.losses({**batch(objective, share), **changes}).values()
    return value


def test_the_encoders_share_falls_from_nine_tenths_to_nothing_over_four_fifths_of_the_steps():
    assert [encoder_share(step, 100) for step in (0, 20, 40, 60)] == pytest.approx([0.9, 0.675, 0.45, 0.225])
    assert [encoder_share(step, 100) for step in (80, 81, 99)] == [0, 0, 0]
    assert encoder_share(79, 100) == pytest.approx(0.9 / 80)
    assert encoder_share(0, 1) == 0.9


def test_batches_carry_the_share_of_their_step(objective):
    drawn = objective.batches(2, 10, torch.Generator().manual_seed(0))
    shares = [float(batch["share"]) for batch in drawn]
    assert shares == pytest.approx([0.9 * (8 - step) / 8 for step in range(8)] + [0, 0])


def test_patches_are_averaged_by_place():
    features = torch.arange(16.0).view(1, 16, 1)  # a grid of 4 × 4, read by rows
    assert average_to(features, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(average_to(features, 4), features)


def test_features_are_mixed_by_the_share(objective):
    inputs = batch(objective, 0.0)
    pixels, encoder_pixels = inputs["pixels"], inputs["encoder_pixels"]
    objective.connector = torch.nn.Identity()
    with torch.no_grad():
        ours = objective.project_student(objective.student(pixels))  # 2 × 2 patches, the coarser grid
        theirs = objective.project_encoder(average_to(objective.encoder(encoder_pixels), 2))
        mixed = objective.mix(pixels, encoder_pixels, 0.25)
    assert ours.shape == theirs.shape == (8, 4, 16)
    torch.testing.assert_close(mixed, 0.25 * theirs + 0.75 * ours)


def test_without_a_share_the_loss_depends_on_the_student_alone(objective):
    other = torch.zeros_like(batch(objective, 0.0)["encoder_pixels"])
    assert loss(objective, 0.0) == loss(objective, 0.0, encoder_pixels=other)
    assert loss(objective, 0.5) != loss(objective, 0.5, encoder_pixels=other)
    loss(objective, 0.0).backward()
    assert all(parameter.grad is None for parameter in objective.project_encoder.parameters())


def test_the_student_learns_at_the_highest_share(objective):
    loss(objective, 0.9).backward()
    gradients = [parameter.grad for parameter in objective.student.trained()]
    assert sum(float(gradient.norm()) for gradient in gradients if gradient is not None) > 0


def test_the_frozen_models_stay_and_the_backbone_learns_but_not_what_words_mean(objective, small_backbone):
    frozen = (objective.encoder.model, objective.language_model.model)
    before = [weights(model) for model in frozen]
    start, cached = weights(objective.backbone), weights(load_backbone(str(small_backbone)).model)
    train(objective, steps=3, batch_size=4, peak=1e-2, seed=0)
    for model, state in zip(frozen, before, strict=True):
        assert not moved(state, model)
        assert all(parameter.grad is None for parameter in model.parameters())
    changed = moved(start, objective.backbone)
    assert any("encoder.layer.0" in name for name in changed)
    assert "embeddings.patch_embeddings.projection.weight" in changed
    assert not any("text_embeddings" in name for name in changed)
    assert not moved(cached, load_backbone(str(small_backbone)).model)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_with_an_adapter_it_alone_learns(small_backbone, objective, kind):
    backbone = load_backbone(str(small_backbone))
    adapter = adapt(backbone, adapter_config(kind, reduction_factor=4, width=32))
    student = Student(backbone, adapter)
    models = (objective.encoder, objective.language_model)
    with_adapter = DynamicWeighting(student, *models, objective.data, objective.held_out)
    before = weights(adapter)
    train(with_adapter, steps=3, batch_size=4, peak=1e-2, seed=0)
    changed = moved(before, adapter)
    assert changed
    assert all(".shared." in name for name in changed)


def test_it_learns_to_see(objective):
    before = objective.measure()["loss"]
    train(objective, steps=60, batch_size=8, peak=1e-2, seed=0)
    reached = objective.measure()
    assert reached["loss"] < before - 0.5
    # The two pictures held out differ in colour: from the other's features it tells the wrong one.
    assert reached["other_image"] > reached["loss"] + 0.2


def test_every_caption_of_an_image_is_used(objective):
    drawn = objective.batches(20, 5, torch.Generator().manual_seed(0))
    lengths = {int((tokens >= 0).sum()) for batch in drawn for tokens in batch["tokens"]}
    assert lengths == {2, 5}  # "red", and "the picture is red", with the end token


def test_a_twentieth_is_split_off_to_measure_on(captioned):
    data, held_out = split_aside(captioned)
    assert (len(data), len(held_out)) == (38, 2)
    assert held_out["captions"][:] == captioned["captions"][38:]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([["a"], []], "captions of image 1 = []; needed: a list of at least one text, none empty"),
        ([["a"], ["b", ""]], "captions of image 1 = ['b', '']; needed: .*"),
        ([["a"], None], "captions of image 1 = None; needed: .*"),
        (["a", "b"], "captions of image 0 = 'a'; needed: .*"),
        ([["a"]], "1 captioned images; needed: 2 or more, for one is measured on"),
        ([], "0 captioned images; needed: .*"),
    ],
)
def test_images_without_captions_are_named(captions, message):
    data = datasets.Dataset.from_dict({"image": [0] * len(captions), "captions": captions})
    pattern = message.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        split_aside(data)


def test_a_missing_column_is_named():
    with pytest.raises(
        ValueError, match=r"^captioned images without column 'captions'; needed: image, captions$"
    ):
        split_aside(datasets.Dataset.from_dict({"image": [0]}))
