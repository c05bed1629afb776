"""The four benchmarks of FedDAT's paper on small files of the true forms; each file that may be missing."""

import json
from dataclasses import replace

import pytest

from data_partitions.benchmarks import DataOptions, load_partition, partition_names
from tests.data_partitions.feddat_paper import given_sets as given
from tests.data_partitions.given_files import png

SCENES = (
    "a#ShopAndDining",
    "b#Workplace",
    "c#HomeOrHotel",
    "d#Transportation",
    "e#SportAndLeisure",
    "f#Outdoors",
)
CLIENTS = {
    "feddat-domain": ["AQUA", "abstract scenes", "VizWiz", "COCO-QA", "GQA"],
    "feddat-function": ["attribute", "knowledge", "logical", "object", "relation"],
    "feddat-scene": list(SCENES),
    "feddat-task": ["VQAv2", "NLVR2", "SNLI-VE", "VCR"],
}
AGREED = {"red": 1.0, "blue": 0.6, "a red one": 0.3}
# Writes a set; benchmark and client; the training row: numbers of its pictures, question, answers, options.
SETS = {
    "AQUA": (given.aqua, "feddat-domain", 0, ([0], "what?", {"a man": 1.0}, [])),
    "abstract": (given.abstract, "feddat-domain", 1, ([1], "what colour in train2015?", AGREED, [])),
    "VizWiz": (given.vizwiz, "feddat-domain", 2, ([0], "what colour?", AGREED, [])),
    "COCO-QA": (given.coco_qa, "feddat-domain", 3, ([1], "what is it ?", {"elephant": 1.0}, [])),
    "GQA": (given.gqa, "feddat-domain", 4, ([1], "Is it red?", {"no": 1.0}, [])),
    "CLOVE, function": (
        lambda root: given.clove(root, "function", "knowledge"),
        "feddat-function",
        1,
        ([1], "What place is this?", {"kiosk": 1.0}, []),
    ),
    "CLOVE, scene": (
        lambda root: given.clove(root, "scene", "f#Outdoors"),
        "feddat-scene",
        5,
        ([1], "What place is this?", {"kiosk": 1.0}, []),
    ),
    "VQAv2": (given.vqa_v2, "feddat-task", 0, ([1], "what colour in train2014?", AGREED, [])),
    "NLVR2": (given.nlvr2, "feddat-task", 1, ([0, 1], "Both are red.", {"true": 1.0}, ["true", "false"])),
    "SNLI-VE": (
        given.snli_ve,
        "feddat-task",
        2,
        ([0], "A cat sleeps.", {"neutral": 1.0}, ["entailment", "neutral", "contradiction"]),
    ),
    "VCR": (
        given.vcr,
        "feddat-task",
        3,
        (
            [0],
            "What do person 1 and person 2 want ?",
            {"dog 3 does .": 1.0},
            ["Food .", "dog 3 does .", "No .", "Yes ."],
        ),
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, folder):
    return DataOptions(cache_dir=tmp_path / "cache", data_dir=str(folder))


def load(benchmark, index, options):
    return load_partition(benchmark, index, len(CLIENTS[benchmark]), options)


@pytest.mark.parametrize("benchmark", CLIENTS)
def test_the_clients_of_the_paper(options, benchmark):
    assert partition_names(benchmark, options) == CLIENTS[benchmark]


@pytest.mark.parametrize(("write", "benchmark", "index", "wanted"), SETS.values(), ids=SETS)
def test_a_set_is_read_as_it_is_published_and_needs_no_other(
    folder, options, write, benchmark, index, wanted
):
    write(folder)
    part = load(benchmark, index, options)
    assert part.name == CLIENTS[benchmark][index]
    assert (len(part.train), len(part.test)) == (1, 1)
    (row,) = part.train.with_format("arrow")[:].to_pylist()
    pictures, question, answers, choices = wanted
    assert [image["bytes"] for image in row["images"]] == [png(number) for number in pictures]
    assert row["messages"][0]["content"] == "<image>" * len(pictures) + f"\n{question}"
    found = dict(zip(row["answers"], (round(score, 6) for score in row["answer_scores"]), strict=True))
    assert found == answers
    assert row["options"] == choices


@pytest.mark.parametrize(("write", "benchmark", "index", "wanted"), SETS.values(), ids=SETS)
def test_each_missing_file_is_named_with_where_it_is_published(
    folder, options, write, benchmark, index, wanted
):
    name = CLIENTS[benchmark][index]
    with pytest.raises(ValueError) as caught:
        load(benchmark, index, options)
    assert f" of {name} is not there; published: https://" in str(caught.value)
    write(folder)
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".txt")]
    files = [path for path in files if path.stem != "types"]
    for path in files:
        hidden = path.rename(path.with_suffix(".hidden"))
        with pytest.raises(ValueError) as caught:
            load(benchmark, index, options)
        wanted = f"data-dir: {path.relative_to(folder)} of {name} is not there; published: https://"
        assert str(caught.value).startswith(wanted)
        hidden.rename(path)
    assert len(load(benchmark, index, options).train) == 1


def test_without_a_folder_it_is_said_what_it_holds(options):
    with pytest.raises(
        ValueError, match=r"^data-dir = '' is not a folder; allowed: one with AQUA/train\.json$"
    ):
        load("feddat-domain", 0, replace(options, data_dir=""))


def changed(path, **entries):
    found = json.loads(path.read_text())
    path.write_text(json.dumps([{**found[0], **entries}]))


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"image": "../../../etc/passwd"}, "image '.*etc/passwd' lies outside of"),
        ({"image": "9-art.jpg"}, "image '.*9-art.jpg' is not there"),
        ({"image": 5}, "no image bytes and no path"),
        ({"answer": ""}, "no answer"),
        ({"answer": None}, "no answer"),
        ({"question": ["what?"]}, "question is list; allowed: a text"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_or_skipped(folder, options, entries, fault):
    given.aqua(folder)
    changed(folder / "AQUA" / "test.json", **entries)
    with pytest.raises(ValueError, match=rf"^data-dir: AQUA/test\.json line 1: ({fault})"):
        load("feddat-domain", 0, options)
    part = load("feddat-domain", 0, replace(options, on_bad_row="skip"))
    assert (len(part.train), len(part.test), part.skipped["test"]) == (1, 0, 1)


BROKEN = {
    "AQUA, no list": (
        given.aqua,
        "feddat-domain",
        0,
        "AQUA/train.json",
        "{}",
        "AQUA/train.json line 1: no JSON list",
    ),
    "AQUA, no answers": (
        given.aqua,
        "feddat-domain",
        0,
        "AQUA/train.json",
        '[{"image": "0-art.jpg", "question": "what?"}]',
        "AQUA/train.json line 1: has no 'answer'",
    ),
    "VQA, a list": (
        given.vqa_v2,
        "feddat-task",
        0,
        "VQAv2/v2_mscoco_train2014_annotations.json",
        "[]",
        "v2_mscoco_train2014_annotations.json is a JSON list; published: dict",
    ),
    "VQA, no questions": (
        given.vqa_v2,
        "feddat-task",
        0,
        "VQAv2/v2_OpenEnded_mscoco_train2014_questions.json",
        "{}",
        "VQAv2/v2_OpenEnded_mscoco_train2014_questions.json and v2_mscoco_train2014_annotations.json have no",
    ),
    "GQA, no JSON": (
        given.gqa,
        "feddat-domain",
        4,
        "GQA/val_balanced_questions.json",
        "{",
        "GQA/val_balanced_questions.json cannot be read (",
    ),
    "COCO-QA, a line more": (
        given.coco_qa,
        "feddat-domain",
        3,
        "COCO-QA/train/answers.txt",
        "cat\ndog\n",
        "COCO-QA/train/questions.txt and its like differ in their numbers of lines (questions.txt 1, answers",
    ),
    "COCO-QA, no number": (
        given.coco_qa,
        "feddat-domain",
        3,
        "COCO-QA/train/img_ids.txt",
        "cat\n",
        "COCO-QA/train/questions.txt line 1: is not as published (",
    ),
    "NLVR2, no label": (
        given.nlvr2,
        "feddat-task",
        1,
        "NLVR2/data/train.json",
        '{"identifier": "train-1-0-0", "sentence": "a", "label": "maybe", "directory": 1}',
        "NLVR2/data/train.json line 1: has no 'maybe'",
    ),
    "SNLI-VE, no label": (
        given.snli_ve,
        "feddat-task",
        2,
        "SNLI-VE/snli_ve_train.jsonl",
        '{"Flickr30K_ID": "0", "sentence2": "a", "gold_label": "-"}',
        "SNLI-VE/snli_ve_train.jsonl line 1: is not as published (gold_label is '-')",
    ),
    "VCR, an answer too many": (
        given.vcr,
        "feddat-task",
        3,
        "VCR/train.jsonl",
        '{"img_fn": "a.jpg", "objects": [], "question": ["a"], "answer_choices": [["b"]], "answer_label": 4}',
        "VCR/train.jsonl line 1: is not as published (",
    ),
}


@pytest.mark.parametrize(
    ("write", "benchmark", "index", "name", "text", "fault"), BROKEN.values(), ids=BROKEN
)
def test_a_file_of_another_form_is_named(folder, options, write, benchmark, index, name, text, fault):
    write(folder)
    (folder / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        load(benchmark, index, options)
    assert str(caught.value).startswith(f"data-dir: {fault}")
    assert "\n" not in str(caught.value)
