"""Everything else in a block of a page: code that runs, data and settings that are read."""

import configparser
import json
import re
import tomllib
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAvg
from PIL import Image

from data_partitions.conversations import conversation_of, form_of
from server_app.command import app as feddat
from server_app.command.given import read_given
from tests.conftest import ROOT

from .commands import commands_of
from .pages import blocks


def code_of(page, *, having=""):
    """Return the only block of Python of a page that has a text."""
    (found,) = [block for block in blocks("python") if block.page.name == page and having in block.text]
    return found.text


def test_every_language_is_tested():
    """`diff`: tests/examples. Without a language: what a program prints, a drawing, a list of folders."""
    assert {block.language for block in blocks()} == {"", "bash", "diff", "ini", "json", "python", "toml"}


@pytest.mark.parametrize(
    ("page", "having", "file"),
    [
        ("method.md", "", "app/mkd.py"),
        ("mllm.md", "kl_div", "server_app/alignment_loss.py"),
        ("mllm.md", "balanced_batches", "server_app/alignment.py"),
    ],
)
def test_the_methods_steps_are_those_of_the_code(page, having, file):
    shown, lines = (
        [line.strip() for line in text.splitlines() if line.strip()]
        for text in (code_of(page, having=having), (ROOT / file).read_text())
    )
    start = lines.index(shown[0])
    assert lines[start : start + len(shown)] == shown


@pytest.mark.parametrize("page", ["method.md", "mllm.md"])
def test_the_methods_tables_name_what_there_is(page):
    """Each function that stands beside a line of the paper is defined in the file named with it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = [
        (name, file)
        for names, file in re.findall(r"((?:`\w+`(?: and )?)+) of `([\w/]+\.py)`", text)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert len(named) >= 3
    for name, file in named:
        assert f"def {name}(" in (ROOT / file).read_text(), (name, file)


def test_the_strategy_of_plug_in():
    known = {}
    exec(code_of("plug-in.md"), known)
    assert isinstance(known["strategy"].strategy, FedAvg)
    assert known["strategy"].private == ("classifier",)


def test_the_picture_of_the_tutorial_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code_of("tutorial.md"), {})
    with Image.open("picture.png") as picture:
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert picture.getpixel((32, 32)) == (255, 0, 0)


def at_home(home, tmp_path, monkeypatch):
    """Let `home` be the reader's own, and draw a picture where they are."""
    monkeypatch.setenv("HOME", str(tmp_path / "reader"))
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / ".feddat").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    exec(code_of("tutorial.md"), {})


@pytest.fixture
def run_of_a_reader(federation, home, tmp_path, monkeypatch):
    """Make a run `my-run` of five clients in the reader's own home, and a picture where they are."""
    folder = federation(
        5, backbone="tiny-vilt", num_rounds=1, run_name="my-run", train_examples=8, test_examples=4
    ).serve()
    assert folder.name == "my-run"
    at_home(home, tmp_path, monkeypatch)


def test_a_client_is_asked_in_python(run_of_a_reader, capsys):
    exec(code_of("use.md", having="Asked"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["student", "local", "teacher"]
    assert all(line.count("%)") == 5 for line in lines)


def test_the_adapter_is_loaded_in_python(run_of_a_reader):
    known = {}
    exec(code_of("use.md", having="load_backbone"), known)
    assert known["features"].shape == (1, known["model"].config.hidden_size)
    assert Path(known["adapter"]).name == "adapter"


def test_an_adapter_of_a_model_that_writes_is_asked(federation, home, tmp_path, monkeypatch, capsys):
    settings = {"backbone": "tiny-vlm", "loss": "next-token", "adapter": "lora", "run_name": "my-run"}
    federation(2, num_rounds=1, train_examples=8, test_examples=4, **settings).serve()
    at_home(home, tmp_path, monkeypatch)
    exec(code_of("use.md", having="processor.batch_decode"), known := {})
    assert capsys.readouterr().out.splitlines()[-1]
    assert Path(known["adapter"]).name == "adapter"


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_settings_are_taken(block, tmp_path):
    read = tomllib.loads(block.text)
    if "superlink" in read:  # Flower's, of a coordinator: tests/test_deployment.py
        assert set(read["superlink"]["sites"]) == {"address", "root-certificates"}
        return
    (tmp_path / "mine.toml").write_text(f"num-clients = 5\n{block.text}")
    given = read_given(ROOT, [str(tmp_path / "mine.toml")])
    assert len(given.overrides) > 1


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_rows_are_of_a_form(block):
    for line in block.text.splitlines():
        record = json.loads(line)
        assert conversation_of(record, form_of(record)).pictures == [record["image"]]


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_units_can_be_read(block):
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(block.text)
    assert set(parser) == {"DEFAULT", "Unit", "Service", "Install"}


@pytest.mark.parametrize("page", ["tutorial.md", "own-data.md"])
def test_data_as_a_page_shows_it_pass_the_check_that_it_shows(page, home, tmp_path, capsys):
    data = tmp_path / "data"
    (example, *_) = [json.loads(line) for block in blocks("json") for line in block.text.splitlines()]
    for client in ("one", "two"):
        for number in range(20):
            name = f"pictures/{client}{number}.png"
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, len(client))).save(data / name)
            with (data / f"{client}.jsonl").open("a") as file:
                file.write(json.dumps(example | {"image": name, "answer": "ab"[number % 2]}) + "\n")
    (shown,) = [block for block in blocks("bash") if block.page.name == page and "feddat check" in block.text]
    ((_, _, *arguments),) = [words for words in commands_of(shown.text) if words[1] == "check"]
    with pytest.raises(SystemExit) as ended:
        feddat(["check", *(word.replace("/absolute/path", str(data)) for word in arguments)])
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "ok    data: one, " in said
