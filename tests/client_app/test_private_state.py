"""The private state: kept in the client's context, whole or not at all."""

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict

from client_app.private_state import PrivateState, load_private_state, save_private_state


@pytest.fixture
def context():
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def test_what_was_kept_comes_back_bit_for_bit(context):
    state = PrivateState(
        {"x.down": torch.randn(3, 2)}, {"fc.weight": torch.randn(2), "fc.bias": torch.ones(1)}
    )
    save_private_state(context, state)
    for part in ("local", "head"):
        kept, back = getattr(state, part), getattr(load_private_state(context), part)
        assert kept.keys() == back.keys()
        assert all(torch.equal(kept[name], back[name]) for name in kept)


def test_a_copy_is_kept(context):
    weight = torch.ones(2)
    save_private_state(context, PrivateState({"x": weight}, {"y": torch.ones(1)}))
    weight.zero_()
    load_private_state(context).local["x"].zero_()
    assert load_private_state(context).local["x"].tolist() == [1, 1]


def test_the_first_round_has_none(context):
    assert load_private_state(context) is None


@pytest.mark.parametrize("part", ["local", "head"])
def test_half_a_state_is_none(context, part):
    context.state[f"private-{part}"] = ArrayRecord()
    assert load_private_state(context) is None


def test_a_later_state_replaces_the_earlier(context):
    for value in (1.0, 2.0):
        save_private_state(context, PrivateState({"x": torch.tensor([value])}, {"y": torch.tensor([value])}))
    assert load_private_state(context).local["x"].item() == 2
    assert set(context.state) == {"private-local", "private-head"}
