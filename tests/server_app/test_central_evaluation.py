"""Accuracy of the aggregated model by groups of classes."""

import datasets
import pytest
import torch
from PIL import Image

from app.backbones import load_backbone
from app.heads import answer_with_new_head
from app.methods.full import FullModel
from app.settings import SettingsError, read_settings
from data_partitions.long_tail import BalancedTest
from data_partitions.partition import FEATURES
from server_app.central_evaluation import CentralEvaluation, common_test
from server_app.global_model import GlobalModel

NAMES = ("a", "b", "c", "d")


def dataset_of(columns):
    features = datasets.Features({name: FEATURES[name] for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def evaluation():
    """Evaluate on two images of each of four classes: two are many-shot, one medium-shot, one few-shot."""
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    columns = {
        "images": [[Image.new("RGB", (32, 32), (20 * i, 5, 5))] for i in range(8)],
        "question": ["what is shown ?"] * 8,
        "scores": [[float(label == c) for c in range(4)] for label in labels],
    }
    test = BalancedTest(
        NAMES,
        dataset_of(columns),
        {"many": (0, 1), "medium": (2,), "few": (3,)},
    )
    backbone = load_backbone("resnet8-narrow", "random")
    model = FullModel(backbone, torch.device("cpu"))
    answer_with_new_head(model, 64, 4, 0, "shared")
    return CentralEvaluation(GlobalModel(model), test, backbone.processor)


def test_accuracies_by_hand(evaluation, monkeypatch):
    chosen = torch.tensor([0, 0, 1, 3, 2, 0, 0, 1])  # right: 2 of class 0, 1 of class 1, 1 of class 2
    monkeypatch.setattr(evaluation.model, "all_logits", lambda examples: torch.eye(4)[chosen])
    assert evaluation(evaluation.model.state()) == {
        "student": 4 / 8,
        "many": 3 / 4,
        "medium": 1 / 2,
        "few": 0,
    }


def test_the_arrays_decide(evaluation):
    arrays = evaluation.model.state()
    for label in range(4):
        arrays["classifier.weight"] = torch.zeros(4, 64)
        arrays["classifier.bias"] = torch.eye(4)[label]
        measured = evaluation(arrays)
        assert measured["student"] == 1 / 4
        assert (measured["many"], measured["medium"], measured["few"]) == (
            label < 2 and 0.5,
            label == 2,
            label == 3,
        )


def test_a_group_without_classes_is_left_out(evaluation):
    test = BalancedTest(NAMES, evaluation_rows(evaluation), {"many": (0, 1, 2, 3), "medium": (), "few": ()})
    processor = load_backbone("resnet8-narrow", "random").processor
    evaluation = CentralEvaluation(evaluation.model, test, processor)
    assert set(evaluation(evaluation.model.state())) == {"student", "many"}


def evaluation_rows(evaluation):
    columns = {
        "images": [[Image.new("RGB", (32, 32))]],
        "question": ["what is shown ?"],
        "scores": [[1.0, 0.0, 0.0, 0.0]],
    }
    return dataset_of(columns)


def test_a_shared_head_needs_one_answer_list(run_config):
    assert common_test(read_settings(run_config())) is None
    with pytest.raises(SettingsError) as error:
        common_test(read_settings(run_config(head="shared")))
    assert str(error.value) == (
        "head = 'shared' needs one answer list for all clients, which benchmark = 'scenes' has not; "
        "allowed with 'cifar10-lt' and 'cifar100-lt'"
    )
    asked = run_config(head="shared", benchmark="cifar10-lt", evaluate_on="validation", data_dir="/d")
    with pytest.raises(SettingsError, match=r"^evaluate-on = 'validation' with head = 'shared'.*'test'$"):
        common_test(read_settings(asked))
