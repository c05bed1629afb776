"""The benchmark `files`: every form in which people have their data; and how it is split."""

import os
from dataclasses import replace

import pytest

from data_partitions import natural
from data_partitions.benchmarks import partition_names
from tests.data_partitions.files.rows import ASSISTANT, USER, all_rows, load, of_all, rows_of, turn
from tests.data_partitions.given_files import llava, picture, png, write

TEXT = {"type": "text", "text": "same?"}


BYTES = {"bytes": png(7), "path": None}


# A record, and what must become of it: pictures, messages, answers, options.
FORMS = {
    "LLaVA": (
        llava(1),
        (1, [turn(USER, "<image>\nwhat is 1?")], {"b": 1.0}, []),
    ),
    "LLaVA, several turns and two pictures": (
        {
            "image": ["a.png", "b.png"],
            "conversations": [
                {"from": "system", "value": "be short"},
                {"from": "human", "value": "<image>\nhere?"},
                {"from": "gpt", "value": "a cat"},
                {"from": "human", "value": "and <image> here?"},
                {"from": "gpt", "value": " a dog\n"},
            ],
        },
        (
            2,
            [
                turn("system", "be short"),
                turn(USER, "<image>\nhere?"),
                turn(ASSISTANT, "a cat"),
                turn(USER, "and <image> here?"),
            ],
            {"a dog": 1.0},
            [],
        ),
    ),
    "LLaVA without a picture": (
        llava(2, images=()),
        (0, [turn(USER, "what is 2?")], {"a": 1.0}, []),
    ),
    "messages of parts": (
        {
            "images": ["a.png", "b.png"],
            "messages": [
                {"role": USER, "content": [{"type": "image"}, {"type": "image"}, TEXT]},
                {"role": ASSISTANT, "content": [{"type": "text", "text": "yes"}]},
            ],
        },
        (2, [turn(USER, "<image>\n<image>\nsame?")], {"yes": 1.0}, []),
    ),
    "messages of texts": (
        {"image": "a.png", "messages": [turn(USER, "what?"), turn(ASSISTANT, "a cat")]},
        (1, [turn(USER, "<image>\nwhat?")], {"a cat": 1.0}, []),
    ),
    "prompt and completion": (
        {"image": "a.png", "prompt": "what?", "completion": "a cat"},
        (1, [turn(USER, "<image>\nwhat?")], {"a cat": 1.0}, []),
    ),
    "prompt and completion of messages": (
        {"prompt": [turn("system", "short"), turn(USER, "hi")], "completion": [turn(ASSISTANT, "ho")]},
        (0, [turn("system", "short"), turn(USER, "hi")], {"ho": 1.0}, []),
    ),
    "question and answer": (
        {"image": "a.png", "question": "what?", "answer": "a cat", "options": ["a cat", "a dog"]},
        (1, [turn(USER, "<image>\nwhat?")], {"a cat": 1.0}, ["a cat", "a dog"]),
    ),
    "question and ten answers": (
        {"question": "what?", "answers": [{"answer": one} for one in "aaaabbbccd"]},
        (0, [turn(USER, "what?")], {"a": 1.0, "b": 0.9, "c": 0.6, "d": 0.3}, []),
    ),
    "question and answers": (
        {"question": "what?", "answers": ["a", "b"]},
        (0, [turn(USER, "what?")], {"a": 1.0, "b": 1.0}, []),
    ),
}


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("record", "wanted"), FORMS.values(), ids=FORMS)
def test_every_form_becomes_a_row_of_one_form(folder, options, record, wanted, kind):
    for n, name in enumerate(("a.png", "b.png")):
        picture(folder / "site" / name, n)
    of_all(folder, [record], kind)
    write(folder / "site" / f"test{kind}", [record])
    (row,) = rows_of(load(options).train)
    count, messages, answers, choices = wanted
    assert [image["bytes"] for image in row["images"]] == [png(n) for n in range(count)]
    assert row["messages"] == messages
    found = dict(zip(row["answers"], (round(score, 6) for score in row["answer_scores"]), strict=True))
    assert (found, list(found)) == (answers, list(answers))
    assert row["options"] == choices
    assert row["example_id"] == f"site/train{kind} {'row 0' if kind == '.parquet' else 'line ' + LINE[kind]}"


LINE = {".json": "2", ".jsonl": "1"}


def test_pictures_in_a_parquet_file_are_kept_as_they_are(folder, options):
    two = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": "x"}]
    rows = [
        {"images": two, "question": "same?", "answer": "no"},
        {"images": [], "question": "what?", "answer": "a"},
    ]
    of_all(folder, rows, ".parquet")
    write(folder / "site" / "test.parquet", rows[:1])
    first, second = rows_of(load(options).train)
    assert [image["bytes"] for image in first["images"]] == [png(1), png(2)]
    assert first["messages"] == [turn(USER, "<image><image>\nsame?")]
    assert second["images"] == []


# Layouts
def test_files_are_clients(folder, options):
    for name in ("b.jsonl", "a.json", "c.parquet"):
        write(folder / name, [{"question": f"in {name}?", "answer": "yes"}] * 20)
    picture(folder / "images" / "a.png")
    assert partition_names("files", options) == ["a", "b", "c"]
    assert {row["question"] for row in all_rows(load(options, 1, 3))} == {"in b.jsonl?"}


def test_folders_are_clients_and_their_files_are_splits(folder, options):
    row = {"question": "what?", "answer": "yes"}
    write(folder / "one" / "train-00000-of-00002.jsonl", [row] * 3)
    write(folder / "one" / "train-00001-of-00002.jsonl", [row] * 2)
    write(folder / "one" / "val.jsonl", [row] * 4)
    write(folder / "one" / "test.json", [row])
    write(folder / "two" / "train" / "any.json", [row] * 2)
    write(folder / "two" / "validation" / "any.json", [row] * 3)
    assert partition_names("files", options) == ["one", "two"]
    one, two = (load(options, index, 2) for index in range(2))
    assert [len(split) for split in (one.train, one.validation, one.test)] == [5, 4, 1]
    # Without a test, what is for validation is the test.
    assert [len(split) for split in (two.train, two.validation, two.test)] == [2, 0, 3]


@pytest.mark.parametrize("split_by", ["iid", "dirichlet"])
def test_one_data_set_is_shared_by_all(folder, options, split_by):
    write(folder / "train.jsonl", [{"question": f"{n}?", "answer": "ab"[n % 2]} for n in range(30)])
    write(folder / "test.jsonl", [{"question": f"test {n}?", "answer": "ab"[n % 2]} for n in range(9)])
    options = replace(options, split_by=split_by, dirichlet_alpha=5.0)
    parts = [load(options, index, 3) for index in range(3)]
    assert [part.name for part in parts] == ["data", "data-2", "data-3"]
    trained = [question for part in parts for question in part.train["question"]]
    tested = [question for part in parts for question in part.test["question"]]
    assert sorted(trained) == sorted(f"{n}?" for n in range(30))
    assert sorted(tested) == sorted(f"test {n}?" for n in range(9))
    assert len({part.answers for part in parts}) == 1


def test_rows_without_splits_are_split_so_that_no_picture_is_in_two(folder, options):
    for n in range(40):
        picture(folder / f"{n}.png", n)
    # Chains of two: pictures 0 and 1 are one group, 2 and 3 the next, and each has three rows.
    rows = [llava(n, images=(f"{n % 40}.png",)) for n in range(80)]
    rows += [llava(n, images=(f"{n}.png", f"{n + 1}.png")) for n in range(0, 40, 2)]
    write(folder / "a.jsonl", rows)
    parts = load(options, seed=3)
    splits = [rows_of(split) for split in (parts.train, parts.validation, parts.test)]
    assert [len(split) for split in splits] == [80, 10, 10]
    pictures = [{image["bytes"] for row in split for image in row["images"]} for split in splits]
    assert not pictures[0] & pictures[1] | pictures[1] & pictures[2] | pictures[0] & pictures[2]
    assert load(options, seed=4).test["question"][:] != parts.test["question"][:]


def test_a_column_says_the_split(folder, options):
    rows = [{"question": f"{split}?", "answer": "yes", "split": split} for split in ("train", "val", "test")]
    write(folder / "a.parquet", rows)
    parts = load(options)
    assert [split["question"][:] for split in (parts.train, parts.validation, parts.test)] == [
        ["train?"],
        ["val?"],
        ["test?"],
    ]


def test_a_column_that_says_no_split(folder, options):
    write(folder / "a.jsonl", [{"question": "a?", "answer": "b", "split": "mine"}])
    with pytest.raises(
        ValueError, match=r"^data-dir: a\.jsonl line 1: split is not one of train, training, val"
    ):
        load(options)


def test_caps(folder, options):
    rows = [{"question": f"{n}?", "answer": "yes", "split": ("train", "test")[n % 2]} for n in range(40)]
    write(folder / "a.parquet", rows)
    part = load(options, train_examples=7, test_examples=3)
    assert (len(part.train), len(part.test)) == (7, 3)


def test_a_share_of_the_training_rows_lacks_a_modality(folder, options):
    for n in range(20):
        picture(folder / f"{n}.png", n)
    write(folder / "train.jsonl", [llava(n, images=(f"{n}.png",)) for n in range(20)])
    write(folder / "test.jsonl", [llava(n, images=(f"{n}.png",)) for n in range(20)])
    part = load(options, missing_modality=0.3)
    trained = rows_of(part.train)
    blind = [row for row in trained if not row["images"]]
    mute = [row for row in trained if not row["question"]]
    assert (len(blind), len(mute), len(trained)) == (3, 3, 20)
    assert all("<image>" not in row["messages"][0]["content"] and row["question"] for row in blind)
    assert all(row["messages"] == [turn(USER, "<image>")] and row["images"] for row in mute)
    assert all(row["images"] and row["question"] for row in rows_of(part.test))
    assert all(row["answers"] for row in trained)
    again = load(options, missing_modality=0.3, cache_dir=options.cache_dir / "other")
    assert rows_of(again.train) == trained
    assert rows_of(load(options, missing_modality=0.3, seed=1).train) != trained


def test_what_is_kept_follows_files_pictures_and_folders(folder, options, monkeypatch):
    picture(folder / "a.png", 1)
    write(folder / "train.jsonl", [llava(0)])
    write(folder / "test.jsonl", [llava(0)])
    part = load(options)
    sources = {path for path, *_ in part.sources}
    assert sources == {str(folder / name) for name in ("train.jsonl", "test.jsonl", "a.png")} | {str(folder)}
    with monkeypatch.context() as patch:
        patch.setattr(natural, "prepare", pytest.fail)
        load(options)
    picture(folder / "a.png", 2)
    os.utime(folder / "a.png", (1, 1))
    assert rows_of(load(options).train)[0]["images"][0]["bytes"] == png(2)
