"""The server's copy of what clients train: what moves, what is kept, and its own head."""

import pytest
import torch
from torch.nn.functional import one_hot

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.examples import Examples
from app.heads import answer_with_new_head
from app.methods import open_learner
from app.methods.full import FullModel
from app.settings import read_settings
from server_app.global_model import GlobalModel

ANSWERS = 3


@pytest.fixture
def adapter(small_backbone):
    backbone = load_backbone(str(small_backbone))
    return adapt(backbone, adapter_config("bottleneck", reduction_factor=4, width=backbone.width), 0)


@pytest.fixture
def examples():
    """Return 24 pictures of one brightness a class."""
    labels = torch.arange(24) % ANSWERS
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 20, (24, 3, 32, 32), generator=generator)
    return Examples(
        pixels=((60 + 60 * labels).view(-1, 1, 1, 1) + noise).to(torch.uint8),
        image_of=torch.arange(24),
        input_ids=torch.full((24, 3), 5),
        attention_mask=torch.ones(24, 3, dtype=torch.long),
        scores=one_hot(labels, ANSWERS).float(),
    )


def model_of(adapter, kind="private"):
    answer_with_new_head(adapter, 64 if isinstance(adapter, FullModel) else 32, ANSWERS, 0, kind)
    return GlobalModel(adapter)


def test_arrays_come_back_as_they_were_given(adapter):
    model = model_of(adapter, "shared")
    arrays = {name: value + 1 for name, value in model.state().items()}
    model.load(arrays)
    found = model.state()
    assert found.keys() == arrays.keys()
    assert all(torch.equal(found[name], arrays[name]) for name in arrays)


def test_a_ball_around_the_aggregate_by_hand(adapter):
    """Center of norm 5 √n moved by 3 √n along one axis: a radius of 0.2 leaves 1 of the 3."""
    model = model_of(adapter)
    center = {name: torch.full_like(value, 5.0) for name, value in adapter.state("shared").items()}
    model.load({name: value + 3 for name, value in center.items()})
    model.keep_within(center, 0.7)  # 3.5 of them are allowed
    assert all(torch.all(value == 8) for value in model.state().values())
    model.keep_within(center, 0.2)
    for value in model.state().values():
        torch.testing.assert_close(value, torch.full_like(value, 6.0))


def test_an_own_head_learns_the_answers_and_starts_anew_each_time(adapter, examples):
    model = model_of(adapter)
    model.load(adapter.state("shared"))
    model.fit_own_head(examples, examples.scores, seed=0)
    first = {name: value.clone() for name, value in model.head.state_dict().items()}
    right = model.all_logits(examples).argmax(1) == examples.scores.argmax(1)
    assert right.float().mean() > 0.6
    # The opposite in between leaves no trace.
    model.fit_own_head(examples, examples.scores.roll(1, 1), seed=0)
    assert any(not torch.equal(first[name], value) for name, value in model.head.state_dict().items())
    model.fit_own_head(examples, examples.scores, seed=0)
    assert all(torch.equal(first[name], value) for name, value in model.head.state_dict().items())


def test_rows_without_an_answer_count_in_nothing(adapter, examples):
    """Dropping their pictures' content does not change the head."""
    wanted = examples.scores.clone()
    wanted[::2] = 0
    heads = []
    for value in (0, 255):
        examples.pixels[::2] = value
        model = model_of(adapter)
        model.fit_own_head(examples, wanted, seed=0)
        heads.append(torch.cat([p.detach().flatten() for p in model.head.parameters()]))
    assert torch.equal(*heads)


def test_a_head_that_travels_is_not_refitted(adapter, examples):
    model = model_of(adapter, "shared")
    before = model.head.weight.detach().clone()
    model.fit_own_head(examples, examples.scores, seed=0)
    assert torch.equal(model.head.weight, before)


def test_running_statistics_are_shared_but_not_trained(run_config):
    settings = {
        "method": "full",
        "head": "shared",
        "backbone": "resnet8-narrow",
        "backbone_weights": "random",
    }
    whole = open_learner(read_settings(run_config(**settings)))
    model = model_of(whole, "shared")
    trained = {id(parameter) for parameter in model.trained("all")}
    names = {name for name, array in whole.parameters_of["shared"].items() if id(array) not in trained}
    assert names == {name for name in whole.parameters_of["shared"] if "running_" in name}
    assert len(names) > 0
    assert len(trained) == len(whole.parameters_of["shared"]) - len(names) + 2
    assert all(parameter.requires_grad for parameter in model.trained("all"))
