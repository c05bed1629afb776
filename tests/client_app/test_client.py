"""What a message finds of its client: whether its examples are those of today's settings, data and code."""

import shutil
from pathlib import Path

import pytest
import torch

from app.families import family
from client_app import client as room
from client_app.client import Client
from tests.data_partitions.given_files import llava, of_pictures, picture, write


@pytest.fixture
def made(federation, monkeypatch):
    """Return a split's examples as a new process finds them, and how often they were processed for that."""
    process, calls = family.process, []
    monkeypatch.setattr(family, "process", lambda *given: calls.append(1) or process(*given))

    def made(split="train", partition=0, node_config=None, **settings):
        calls.clear()
        for memory in (room._partition, room._examples):
            memory.cache_clear()
        clients = federation(2, node_config=node_config or {}, **settings)
        client = Client.of(clients.contexts[clients.node_id(partition)])
        return client.examples(split), len(calls)

    yield made
    room._examples.cache_clear()  # files of this test go away


def test_the_next_process_has_the_same_without_reading_any_data(made, home, monkeypatch):
    for split in ("train", "test"):
        first, times = made(split)
        assert times == 1
        with monkeypatch.context() as patch:
            patch.setattr(room.Share, "load", pytest.fail)
            again, times = made(split)
        assert times == 0
        assert first.answers is again.answers is None  # a head learns them
        tensors = {name: value for name, value in vars(first).items() if name != "answers"}
        assert all(torch.equal(value, getattr(again, name)) for name, value in tensors.items())
    assert len(list((home / "examples").iterdir())) == 2


def test_examples_of_several_pictures_are_kept_as_they_are(made, tmp_path):
    given = of_pictures(tmp_path / "data", [2, 0, 2])
    first, times = made(**given)
    assert (times, first.pictures) == (1, 2)
    again, times = made(**given)
    assert (times, again.pictures) == (0, 2)
    assert torch.equal(again.image_of, first.image_of)


def test_a_split_without_pictures_is_of_as_many_as_the_clients_others(made, tmp_path):
    given = of_pictures(tmp_path / "data", [2, 2])
    write(tmp_path / "data" / "test.jsonl", [{"images": [], "question": "?", "answer": "a"}])
    assert made("test", **given)[0].pictures == 2


@pytest.mark.parametrize(
    "other",
    [
        {"split": "test"},
        {"partition": 1},
        {"seed": 1},
        {"heterogeneity": "function"},
        {"train_examples": 11},
        {"benchmark": "cifar10-lt", "imbalance_factor": 5.0},
    ],
    ids=str,
)
def test_other_settings_are_other_examples(made, other, small_cifar):
    base = {"data_dir": str(small_cifar)}
    assert made(**base)[1] == 1
    assert made(**base)[1] == 0
    assert made(**base | other)[1] == 1


def test_another_backbone_has_examples_of_its_own_wherever_it_lies(made, small_backbone, tmp_path):
    elsewhere, other = (shutil.copytree(small_backbone, tmp_path / name) for name in ("elsewhere", "other"))
    (other / "preprocessor_config.json").write_text('{"text_template": "red {}"}')
    first, _ = made()
    assert made(backbone=str(elsewhere))[1] == 0
    second, times = made(backbone=str(other))
    assert times == 1
    assert not torch.equal(first.input_ids, second.input_ids)


def test_settings_of_training_do_not_matter(made):
    assert made()[1] == 1
    assert made(learning_rate=0.5, batch_size=2, num_rounds=7, run_name="another", method="adapter")[1] == 0


def test_other_code_makes_them_again(made, monkeypatch):
    made()
    monkeypatch.setattr(room, "source_hash", lambda: "f" * 64)
    assert made()[1] == 1


@pytest.mark.parametrize("change", ["touched", "another file", "gone"])
def test_other_files_make_them_again(made, tmp_path, small_cifar, change):
    folder = Path(shutil.copytree(small_cifar, tmp_path / "data"))
    given = {"benchmark": "cifar10-lt", "data_dir": str(folder), "imbalance_factor": 5.0, "train_examples": 0}
    assert made(**given)[1] == 1
    assert made(**given)[1] == 0
    file = folder / "cifar10.parquet"
    if change == "touched":
        file.write_bytes(file.read_bytes())
    elif change == "another file":
        shutil.copy(file, folder / "more.parquet")
    else:
        file.unlink()
        with pytest.raises(ValueError, match=r"has no cifar10\.parquet"):
            made(**given)
        return
    assert made(**given)[1] == 1


@pytest.mark.parametrize("change", ["a picture", "the rows", "another file"])
def test_other_files_of_any_form_make_them_again(made, tmp_path, change):
    folder = tmp_path / "data"
    picture(folder / "pictures" / "a.png", 1)
    rows = [llava(n, images=("pictures/a.png",)) for n in range(4)]
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", rows)
    given = {"benchmark": "files", "data_dir": str(folder), "num_answers": 2}
    first, times = made(**given)
    assert (len(first), times) == (2, 1)
    assert made(**given)[1] == 0
    match change:
        case "a picture":
            (folder / "pictures" / "a.png").unlink()
            picture(folder / "pictures" / "a.png", 2)
        case "the rows":
            write(folder / "train.jsonl", rows * 2)
        case _:
            write(folder / "train-2.jsonl", rows)
    assert made(**given)[1] == 1
