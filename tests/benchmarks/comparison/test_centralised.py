"""The reference that has all examples in one place."""

import pytest
import torch
from torch import nn

from app.methods import METHODS, open_learner
from app.settings import read_settings
from benchmarks.comparison.centralised import HeadOfEach, centralised

SMALL = {"train_examples": 12, "test_examples": 6, "method": "adapter", "backbone": "tiny-vilt"}


def test_with_one_client_it_is_the_federation_of_one(federation, home):
    """A batch an epoch, so that there is one order; the adapter and the score are then the same."""
    settings = {**SMALL, "num_rounds": 1, "local_epochs": 3, "batch_size": 12}
    alone = federation(1, **settings)
    alone.serve()
    config = alone.run_config
    federated = open_learner(read_settings(config)).shared()
    (row,) = centralised(config, 1)
    together = open_learner(read_settings(config)).shared()
    assert together.keys() == federated.keys()
    assert all(torch.equal(together[name], federated[name]) for name in together)
    assert row.keys() >= {
        "round",
        "partition",
        "name",
        "num-examples",
        "student",
        "text-only",
        "train-seconds",
    }
    assert row["num-examples"] == 12


def test_each_step_is_on_a_clients_batch_with_its_own_head(run_config, home, monkeypatch):
    """Each example once an epoch, clients mixed, one schedule of the rate from the first step to the last."""
    steps = []

    def step(learner, optimizer, inputs, targets, *others):
        steps.append((learner.head.client, len(targets), optimizer.param_groups[0]["lr"], id(optimizer)))
        return {}

    monkeypatch.setattr(METHODS["adapter"], "step", step)
    settings = run_config(
        **SMALL, num_rounds=2, batch_size=5, learning_rate=1.0, warmup=0.0, evaluate_every=2
    )
    rows = centralised(settings, 4)
    assert len(steps) == 2 * 4 * 3
    for epoch in (steps[:12], steps[12:]):
        assert sorted(step[:2] for step in epoch) == [(c, n) for c in range(4) for n in (2, 5, 5)]
    clients = [client for client, *_ in steps]
    assert clients[:12] != sorted(clients[:12])
    assert clients[:12] != clients[12:]
    assert [rate for _, _, rate, _ in steps] == [(24 - done) / 24 for done in range(24)]
    assert len({optimizer for *_, optimizer in steps}) == 1
    assert [(row["round"], row["partition"], "student" in row) for row in rows] == [
        (number, client, number == 2) for number in (1, 2) for client in range(4)
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "feddat"},
        {"gradient_accumulation": 2},
        {"augment": True},
        {"proximal_mu": 0.1, "strategy": "fedprox"},
    ],
    ids=str,
)
def test_what_would_be_other_steps_than_the_clients_is_refused(run_config, home, changed):
    with pytest.raises(ValueError, match="with centralised = true; allowed: "):
        centralised(run_config(**{**SMALL, **changed}), 2)


def test_a_head_of_each_answers_by_the_one_in_place():
    first, second = nn.Linear(2, 3), nn.Linear(2, 5)
    head, features = HeadOfEach([first, second]), torch.ones(1, 2)
    assert torch.equal(head(features), first(features))
    head.client = 1
    assert torch.equal(head(features), second(features))
