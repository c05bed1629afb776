"""The benchmark `files`: every form in which people have their data, how it is split, and every bad input."""

import json
import os
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_partitions import natural
from data_partitions.benchmarks import DataOptions, load_partition, partition_names
from tests.data_partitions.given_files import llava, picture, png, write

USER, ASSISTANT = "user", "assistant"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, folder):
    return DataOptions(cache_dir=tmp_path / "cache", data_dir=str(folder))


def load(options, index=0, count=1, **changes):
    return load_partition("files", index, count, replace(options, **changes))


def rows_of(split):
    return split.with_format("arrow")[:].to_pylist()


def all_rows(partition):
    return [
        row for split in (partition.train, partition.validation, partition.test) for row in rows_of(split)
    ]


def of_all(folder, rows, kind):
    """Make what is read of rows for training."""
    return write(folder / "site" / f"train{kind}", rows)


def turn(role, content):
    return {"role": role, "content": content}


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
        ValueError, match=r"^data-dir: a\.jsonl line 1: split is none of train, training, val"
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


# Bad input

BAD_ROWS = {
    "no answer": (llava(0, conversations=[{"from": "human", "value": "<image>\nwhat?"}]), "no answer"),
    "an empty answer": ({"question": "what?", "answer": " "}, "no answer"),
    "more pictures": (llava(0, image=["a.png", "a.png"]), "has 2 pictures and 1 places for them"),
    "fewer pictures": (
        {"prompt": "<image> <image>", "completion": "a", "image": "a.png"},
        "has 1 pictures and 2",
    ),
    "no place": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]},
        "has 1 pictures and 0 places for them",
    ),
    "an unknown role": (
        {"messages": [turn("tool", "x"), turn(ASSISTANT, "y")]},
        "has a turn of role 'tool'; allowed: system, user, assistant",
    ),
    "an unknown speaker": (
        llava(0, conversations=[{"from": "cat", "value": "?"}, {"from": "gpt", "value": "a"}]),
        "has a turn from 'cat'; allowed: human, gpt, system",
    ),
    "two turns of one": (
        {"messages": [turn(USER, "a"), turn(USER, "b"), turn(ASSISTANT, "c")]},
        "turn 1 is of user; allowed: assistant",
    ),
    "no JSON of LLaVA": (
        {"image": "a.png", "caption": "a cat"},
        "has none of conversations, messages, prompt",
    ),
    "no list of turns": (llava(0, conversations="hi"), "conversations is no list of turns"),
    "two forms": (
        {**llava(0), "messages": [turn(USER, "a"), turn(ASSISTANT, "c")]},
        "has conversations and messages; allowed: one form",
    ),
    "half a form": ({"prompt": "a"}, "has prompt without completion"),
    "two columns of pictures": (
        {**llava(0), "images": ["a.png"]},
        "has image and images; allowed: one of them",
    ),
    "a video": (
        {"messages": [{"role": USER, "content": [{"type": "video"}]}, turn(ASSISTANT, "c")]},
        "has a part of type 'video'; allowed: image, text",
    ),
    "a text without end": ({"question": "a" * 10_001, "answer": "b"}, "question has 10001 characters"),
    "a number": ({"question": "a?", "answer": 3}, "answer is int; allowed: a text"),
    "no such picture": (llava(0, images=("b.png",)), "image '.*b.png' is not there"),
    "a broken picture": (llava(0, images=("broken.png",)), "image cannot be decoded"),
    "a postscript": (llava(0, images=("a.eps",)), "image cannot be decoded"),
    "a folder": (llava(0, images=("..",)), "image '.*' lies outside of|is no file"),
    "a path out": (llava(0, images=("../../secret.png",)), "image '.*secret.png' lies outside of"),
    "a whole path": (llava(0, images=("SECRET",)), "image '.*secret.png' lies outside of"),
    "a link out": (llava(0, images=("link.png",)), "image '.*link.png' lies outside of '"),
    "a link of a folder out": (
        llava(0, images=("way/secret.png",)),
        "image '.*secret.png' lies outside of '",
    ),
    "a pipe": (llava(0, images=("pipe.png",)), "image '.*pipe.png' is no file"),
    "a web address": (
        llava(0, images=("https://example.org/a.png",)),
        "image 'https?:.*' is not there|is not",
    ),
    "a NUL": (llava(0, images=("a\0.png",)), "a path of an image with a NUL"),
    "a number for a picture": (llava(0, image=3), "no image bytes and no path of an image"),
}


@pytest.fixture
def tempting(tmp_path, folder):
    """Lay good and bad pictures into a client's folder, and one outside of all folders."""
    picture(tmp_path / "secret.png")
    picture(folder / "site" / "a.png")
    (folder / "site" / "broken.png").write_bytes(png()[:40])
    (folder / "site" / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EOF\n")
    (folder / "site" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "site" / "way").symlink_to(tmp_path)
    os.mkfifo(folder / "site" / "pipe.png")
    return tmp_path / "secret.png"


@pytest.mark.parametrize(("record", "fault"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(folder, options, tempting, record, fault):
    if record.get("image") == "SECRET":
        record = {**record, "image": str(tempting)}
    good = {"question": "a?", "answer": "b"} if "question" in record else llava(0)
    if "messages" in record or "prompt" in record:
        good = {"messages": [turn(USER, "a"), turn(ASSISTANT, "c")]}
        good = {"prompt": "a", "completion": "c"} if "prompt" in record else good
    of_all(folder, [good, record, good], ".jsonl")
    write(folder / "site" / "test.jsonl", [good])
    with pytest.raises(ValueError, match=rf"^data-dir: site/train\.jsonl line 2: .*({fault})") as caught:
        load(options)
    assert "\n" not in str(caught.value)
    assert "on-bad-row = 'skip' leaves such rows out" in str(caught.value)
    part = load(options, on_bad_row="skip")
    assert len(part.train) == 2
    assert sum(part.skipped.values()) == 1


def test_mixed_forms_in_one_file_are_named_by_their_line(folder, options):
    rows = [llava(0, images=()), {"messages": [turn(USER, "a"), turn(ASSISTANT, "c")]}]
    write(folder / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: has messages, and what is before it convers"):
        load(options)


def test_mixed_columns_of_a_file_are_named(folder, options):
    write(folder / "a.parquet", [{"question": "a", "answer": "b", "prompt": "c", "completion": "d"}])
    with pytest.raises(ValueError, match=r"^data-dir: a\.parquet has prompt and question; allowed: one f"):
        load(options)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "line 1: no JSON list"),
        ("", "line 1: no JSON list"),
        ('[\n {"question": "a?", "answer": "b"},\n {"b": }\n]', "line 3: no JSON (Expecting value)"),
        (
            '[{"question": "a?", "answer": "b"}\n {"b": 2}]',
            "line 2: no JSON (no comma, and no end of the list)",
        ),
        ("[" * 100_000, "line 1: no JSON ("),
        ('[\n {"question": "a?",\n "answer": "b"},\n 5]', "line 4: no JSON object"),
    ],
    ids=["an object", "nothing", "a broken one", "no comma", "without end", "a number"],
)
def test_json_that_cannot_be_used_is_named_by_its_line(folder, options, text, fault):
    (folder / "a.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        load(options)
    assert str(caught.value).startswith("data-dir: a.json " + fault)
    assert "\n" not in str(caught.value)


def test_a_broken_line_is_a_bad_row(folder, options):
    row = json.dumps({"question": "a?", "answer": "b", "split": "train"})
    (folder / "a.jsonl").write_text(f'{row}\n\n{{"question": \n{row}\n')
    with pytest.raises(ValueError, match=r"^data-dir: a\.jsonl line 3: no JSON \("):
        load(options)
    part = load(options, on_bad_row="skip")
    assert (len(all_rows(part)), part.skipped["unknown"]) == (2, 1)


def test_a_text_in_parquet_that_is_not_utf8_is_a_bad_row(folder, options):
    table = pa.Table.from_pylist([{"question": f"{n}?", "answer": "yes", "split": "train"} for n in range(5)])
    texts = pa.array([b"a", b"\xff\xfe", b"c", b"d", b"e"]).view(pa.string())
    pq.write_table(table.set_column(0, "question", texts), folder / "a.parquet")
    with pytest.raises(ValueError, match=r"^data-dir: a\.parquet row 1: a text is not UTF-8"):
        load(options)
    assert sum(load(options, on_bad_row="skip").skipped.values()) == 1


def test_a_damaged_parquet_file_is_named(folder, options):
    path = write(folder / "a.parquet", [{"question": f"{n}?", "answer": "yes"} for n in range(50)])
    broken = bytearray(path.read_bytes())
    broken[4:400] = bytes(396)
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"^data-dir: a\.parquet .*(cannot be read|not a readable)"):
        load(options)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"^data-dir: a\.parquet is not a readable parquet file"):
        load(options)


def test_a_folder_that_cannot_be_used(folder, options):
    with pytest.raises(ValueError, match=r"^data-dir = '.*' has no \.json, \.jsonl, \.parquet files; a"):
        load(options)
    with pytest.raises(ValueError, match=r"^data-dir = '/no/such' is no folder; allowed: a folder of \.json"):
        load(options, data_dir="/no/such")
    for name in ("a.json", "a.jsonl"):
        write(folder / name, [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^data-dir: a\.jsonl has the name of another client's file$"):
        load(options)


def test_options_that_are_not_allowed(folder, options):
    write(folder / "a.json", [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^missing-modality = 1\.5; allowed: 0 to less than 1$"):
        load(options, missing_modality=1.5)


def test_a_sites_own_folder_wins_over_the_hub(folder, options):
    write(folder / "a.json", [{"question": "a?", "answer": "b", "split": "train"}])
    assert load(options, hub_data="nobody/nothing").name == "a"


def test_a_client_without_training_rows(folder, options):
    write(folder / "test.json", [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^partition-id = 0: 'data' has no training rows$"):
        load(options)


# The hub


@pytest.mark.parametrize("given", ["", "a", "../b", "a/b/c", "/a/b", "a/.."])
def test_a_hub_id_that_is_none(options, given):
    with pytest.raises(ValueError, match=r"^hub-data = '.*' with data-dir = ''; allowed: owner/name of"):
        load(options, data_dir="", hub_data=given)


def test_a_hub_that_cannot_be_reached(options, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^hub-data = 'nobody/nothing' cannot be read \(") as caught:
        load(options, data_dir="", hub_data="nobody/nothing")
    assert "\n" not in str(caught.value)
    assert list(options.cache_dir.rglob("draft-*")) == []


def test_what_the_hub_gives_is_read_and_nothing_else_is_kept(options, tmp_path, monkeypatch):
    """A folder stands for the hub: `datasets` reads both the same way."""
    rows = [{"image": {"bytes": png(n), "path": None}, "question": f"{n}?", "answer": "b"} for n in range(4)]
    for split in ("train", "test"):
        write(tmp_path / "hub" / f"{split}.parquet", rows)
    asked = []

    def local(call):
        def load(name, revision, cache_dir):
            asked.append((name, revision))
            return call(str(tmp_path / "hub"), cache_dir=cache_dir)

        return load

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, local(getattr(datasets, name)))
    part = load(options, data_dir="", hub_data="owner/name@abc")
    assert asked == [("owner/name", "abc")] * 2
    assert (part.name, len(part.train), len(part.test)) == ("owner/name", 4, 4)
    assert [row["images"][0]["bytes"] for row in rows_of(part.train)] == [png(n) for n in range(4)]
    kept = [path.name for path in options.cache_dir.iterdir()]
    assert kept == ["files"]
    assert part.sources == []


def test_files_of_the_hub_that_would_be_unpickled_are_refused(options, tmp_path, monkeypatch):
    class Pandas:
        __module__ = "datasets.packaged_modules.pandas.pandas"

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Pandas())
    monkeypatch.setattr(datasets, "load_dataset", pytest.fail)
    with pytest.raises(
        ValueError, match=r"cannot be read \(its files are of pandas; allowed: arrow, csv, im"
    ):
        load(options, data_dir="", hub_data="a/b")
