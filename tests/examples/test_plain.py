"""The projects as their owners have them: plain federated averaging of LoRA, nothing of ours."""

import re

import numpy as np
import pytest
from flwr.app import Message

from tests.examples.projects import PLAIN, name_of

projects = pytest.mark.parametrize("project", PLAIN, ids=name_of)


def test_there_are_four():
    assert [project.parent.name for project in PLAIN] == [
        "hf_trainer",
        "image_classification",
        "language_model",
        "text_classification",
    ]


@projects
def test_nothing_of_ours_is_in_it(project):
    for file in project.rglob("*"):
        if file.suffix in (".py", ".toml", ".md"):
            assert not re.search("feddat", file.read_text(), re.IGNORECASE), file


@projects
def test_it_averages_what_its_clients_have_learned(project, federate):
    finished = federate(project)
    sent, replied = finished.arrays("to client", "train"), finished.arrays("to server", "train")
    assert len(sent) == len(replied) == 4
    assert {frozenset(arrays) for arrays in [*sent, *replied]} == {frozenset(finished.saved)}
    last = [arrays.to_torch_state_dict() for arrays in replied[2:]]
    for name, value in finished.saved.items():
        # Clients have equally many examples.
        mean = (last[0][name] + last[1][name]) / 2
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-6)
        assert not (value == sent[0][name].numpy()).all(), name
        assert not (last[0][name] == last[1][name]).all(), name


@projects
def test_its_clients_get_better(project, federate):
    finished = federate(project, num_server_rounds=4)
    losses = np.reshape([metric(reply, "train_loss") for reply in finished.messages("to server", "train")], (4, 2))
    assert (losses[-1] < losses[0]).all(), losses
    accuracy = np.reshape([metric(reply, "eval_acc") for reply in finished.messages("to server", "evaluate")], (4, 2))
    assert accuracy[-1].mean() > accuracy[0].mean(), accuracy


def metric(reply: Message, name: str) -> float:
    """Return what a reply measured."""
    (record,) = reply.content.metric_records.values()
    return record[name]
