"""The public pool of a run: its labels, its order of answers, and what the teacher model says of it."""

import pytest
import torch

from app.backbones import load_backbone
from app.settings import read_settings
from data_partitions.benchmarks import DataOptions, load_pool
from server_app.public_pool import Pool, load_pools

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture
def config(run_config, small_cifar):
    """Return settings with 5 public images of each of four colours, of which one is held out."""
    fixed = {
        "benchmark": "cifar10-lt",
        "data_dir": str(small_cifar),
        "head": "shared",
        "align.when": "each-round",
    }
    return lambda **overrides: run_config(**fixed, public_per_class=5, public__examples=20, **overrides)


@pytest.fixture
def backbone(small_vit):
    return load_backbone(str(small_vit))


def test_labels_count_in_the_order_of_the_clients_answers(home, config, backbone):
    settings = read_settings(config(align__beta=0.0))
    rows = load_pool("cifar10-lt", DataOptions.of(settings.run_config(), home / "data"))
    train, held_out = load_pools(settings, backbone, COLOURS)
    for pool, part, number in ((train, rows["train"], 4), (held_out, rows["validation"], 1)):
        assert pool.classes == COLOURS
        assert [COLOURS[label] for label in pool.labels] == part["answer"]
        assert torch.bincount(pool.labels).tolist() == [number] * 4
        assert pool.examples.scores.argmax(1).tolist() == pool.labels.tolist()
        assert not pool.target.any()  # with β = 0 no teacher model is asked


def test_answers_that_only_the_server_has_are_sorted(home, run_config, small_backbone):
    settings = read_settings(run_config(public__examples=40, align__when="each-round", align__beta=0.0))
    train, held_out = load_pools(settings, load_backbone(str(small_backbone)))
    assert list(train.classes) == sorted(train.classes)
    assert held_out.classes == train.classes
    assert len(train.labels) + len(held_out.labels) == 40


def test_the_teacher_models_distributions_stand_in_the_same_order(home, config, backbone, record):
    """The file has nine tenths for what is right."""
    file = record(config(align__beta=0.0), answers=COLOURS)
    for pool in load_pools(read_settings(config(teacher__model=file)), backbone, COLOURS):
        expected = torch.full((len(pool.labels), 4), 0.1 / 3)
        expected[torch.arange(len(pool.labels)), pool.labels] = 0.9
        torch.testing.assert_close(pool.target, expected)
    # 0.9 leads by 0.867, and with T = 2 by less: 0.9 : 1/30 = 27 : 1 becomes 5.2 : 1, so 0.634 to 0.122.
    (soft, _), (unsure, _) = (
        load_pools(
            read_settings(config(teacher__model=file, **{"teacher.temperature": 2.0, **more})),
            backbone,
            COLOURS,
        )
        for more in ({}, {"teacher.margin": 0.6})
    )
    assert soft.target.max().item() == pytest.approx(27**0.5 / (27**0.5 + 3))
    assert not unsure.target.any()


def test_what_is_taken_for_right():
    pool = Pool(
        ("a", "b", "c"),
        examples=None,
        labels=torch.tensor([2, -1, 0]),
        target=torch.tensor([[0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]]),
    )
    assert pool.answers("true").tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert pool.answers("none").tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
