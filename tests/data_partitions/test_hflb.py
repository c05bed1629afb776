"""The benchmark `hflb` on small files of its true layout: nine clients, two pictures, multiple choice."""

import json
from dataclasses import replace

import pytest

from data_partitions.benchmarks import DataOptions, load_partition, partition_names
from tests.data_partitions.given_files import png, write
from tests.data_partitions.given_hflb import hflb


@pytest.fixture
def folder(tmp_path):
    hflb(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, folder):
    return DataOptions(cache_dir=tmp_path / "cache", data_dir=str(folder))


def test_nine_clients_of_four_parts(options):
    assert partition_names("hflb", options) == [
        "GQA",
        "GQA-2",
        "GQA-3",
        "Abstract",
        "SNLI-VE",
        "COCOQA",
        "NLVR2_feddat",
        "VizWiz-Original",
        "AQUA",
    ]
    part = load_partition("hflb", 1, 9, options)
    assert (part.name, part.answers) == ("GQA-2", ("yes",))
    assert [len(split) for split in (part.train, part.validation, part.test)] == [12, 0, 8]
    assert {text.split()[2] for text in part.train["question"]} == {"20?", "21?", "22?", "23?"}
    assert part.train[0]["options"] == ["yes", "no"]
    assert part.train[0]["answers"] == ["yes"]


def test_two_pictures_where_the_task_has_two(options):
    part = load_partition("hflb", 6, 9, options)
    (row, *_) = part.train.with_format("arrow")[:].to_pylist()
    assert [image["bytes"] for image in row["images"]] == [png(0), png(1)]
    assert row["messages"][0]["content"].startswith("<image><image>\nWhat is 0?")


CHOICES = {
    "a and b and c": ("Choice list:[a, b, c]. Answer:", "c", ["a", "b", "c"]),
    "quoted": ("Choice list: ['a', 'b']", "b", ["a", "b"]),
    "with commas": ("Choice lists: [a, b | c]", "a, b", ["a, b", "c"]),
    "without the answer": ("Choice list:[a, b]", "elsewhere", []),
    "none": ("no list", "a", []),
}


@pytest.mark.parametrize(("asked", "answer", "wanted"), CHOICES.values(), ids=CHOICES)
def test_what_may_be_chosen_is_found_in_the_question(folder, options, asked, answer, wanted):
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    write(folder / "dataset" / "AQUA" / "train" / "dataset-0.json", [{"conversations": turns}])
    part = load_partition("hflb", 8, 9, options)
    (row,) = [
        row
        for row in part.train.remove_columns("images")
        if row["answers"] == [answer] and asked in row["question"]
    ]
    assert row["options"] == wanted


def test_missing_files_are_named_with_where_they_are_published(folder, options):
    (folder / "dataset" / "AQUA" / "test" / "dataset-3.json").unlink()
    assert len(load_partition("hflb", 0, 9, options).train) == 12  # nobody else needs it
    message = (
        r"^data-dir: dataset/AQUA/test/dataset-3\.json is not there; published: https://huggingface\.co/"
    )
    with pytest.raises(ValueError, match=message):
        load_partition("hflb", 8, 9, options)
    (folder / "scenarios" / "HFLB_homo_llava_llama_1B.json").unlink()
    message = r"^data-dir: no scenarios/HFLB_\*\.json in '.*'; published: https://github\.com/snumprlab"
    with pytest.raises(ValueError, match=message):
        partition_names("hflb", options)
    with pytest.raises(
        ValueError, match=r"^data-dir = '' is not a folder; allowed: one with HFLB's scenarios/$"
    ):
        partition_names("hflb", replace(options, data_dir=""))


@pytest.mark.parametrize(
    "scenario",
    [
        "{",
        "[]",
        "[{}]",
        '[{"client_id": 0, "datasets": []}]',
        '[{"client_id": 0, "datasets": [{"dataset": "../..", "subset_id": 0}]}]',
        '[{"client_id": 0, "datasets": [{"dataset": "GQA", "subset_id": "../x"}]}]',
    ],
)
def test_a_scenario_that_is_none(folder, options, scenario):
    (folder / "scenarios" / "HFLB_homo_llava_llama_1B.json").write_text(scenario)
    with pytest.raises(ValueError, match=r"^data-dir: HFLB_homo_llava_llama_1B\.json ") as caught:
        partition_names("hflb", options)
    assert "\n" not in str(caught.value)


def test_a_change_of_one_file_makes_its_client_anew(folder, options):
    path = folder / "dataset" / "AQUA" / "train" / "dataset-0.json"
    assert len(load_partition("hflb", 8, 9, options).train) == 12
    write(path, json.loads(path.read_text()) * 2)
    assert len(load_partition("hflb", 8, 9, options).train) == 15
