"""Files that cannot be used are named, with the row."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_partitions.files.rows import ASSISTANT, USER, all_rows, load, of_all, turn
from tests.data_partitions.given_files import llava, picture, png, write

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
    "no list of turns": (llava(0, conversations="hi"), "conversations is not a list of turns"),
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
    "a folder": (llava(0, images=("..",)), "image '.*' lies outside of|is not a file"),
    "a path out": (llava(0, images=("../../secret.png",)), "image '.*secret.png' lies outside of"),
    "a whole path": (llava(0, images=("SECRET",)), "image '.*secret.png' lies outside of"),
    "a link out": (llava(0, images=("link.png",)), "image '.*link.png' lies outside of '"),
    "a link of a folder out": (
        llava(0, images=("way/secret.png",)),
        "image '.*secret.png' lies outside of '",
    ),
    "a pipe": (llava(0, images=("pipe.png",)), "image '.*pipe.png' is not a file"),
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
    with pytest.raises(
        ValueError, match=r"a\.jsonl line 2: has messages, where the lines before it have convers"
    ):
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
    with pytest.raises(
        ValueError, match=r"^data-dir = '/no/such' does not exist; allowed: a folder of \.json"
    ):
        load(options, data_dir="/no/such")
    for name in ("a.json", "a.jsonl"):
        write(folder / name, [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^data-dir: a\.jsonl has the same name as another client's file$"):
        load(options)


def test_options_that_are_not_allowed(folder, options):
    write(folder / "a.json", [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^missing-modality = 1\.5; allowed: 0 to less than 1$"):
        load(options, missing_modality=1.5)


def test_a_client_without_training_rows(folder, options):
    write(folder / "test.json", [{"question": "a?", "answer": "b"}])
    with pytest.raises(ValueError, match=r"^partition-id = 0: 'data' has no training rows$"):
        load(options)
