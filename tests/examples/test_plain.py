"""The projects as their owners have them: plain federated averaging of LoRA, nothing of ours."""

import re

import pytest
import torch

from tests.examples.projects import CLIENTS, PLAIN, ROUNDS, name_of

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
def test_it_averages_what_its_clients_have_learned(project, finished):
    run = finished(project)
    sent, replied = run.arrays("to client", "train"), run.arrays("to server", "train")
    assert len(sent) == len(replied) == CLIENTS * ROUNDS
    assert {frozenset(arrays) for arrays in [*sent, *replied]} == {frozenset(run.saved)}
    first, second = (arrays.to_torch_state_dict() for arrays in replied[-2:])
    begun = sent[0].to_torch_state_dict()
    for name, value in run.saved.items():
        # Clients have equally many examples.
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=0, atol=1e-6)
        assert not value.equal(begun[name]), name
        assert not first[name].equal(second[name]), name


@projects
def test_its_clients_get_better(project, finished):
    run = finished(project)
    loss, accuracy = run.measured("train", "train_loss"), run.measured("evaluate", "eval_acc")
    assert (loss[-1] < loss[0]).all(), loss
    assert accuracy[-1].mean() > accuracy[0].mean(), accuracy
