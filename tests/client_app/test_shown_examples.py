"""A client's own examples on a page at its site."""

import base64
import html
import io
import json
import re

import pytest
from PIL import Image

from client_app.asking import Asked
from client_app.shown_examples import Shown, examples_page, main, shown_examples
from tests.data_partitions.given_files import of_pictures


@pytest.fixture
def folder(federation):
    return federation(2, test_examples=12).serve()


def test_the_page_has_the_clients_own_test_examples_and_the_scores_of_the_evaluation(folder, capsys):
    assert main([f"--folder={folder}", "--client=1", "--of=2", "--examples=100"]) == 0
    said = capsys.readouterr().out
    path = re.search(r"^12 of 12 test examples of sketch shown: (.*)$", said, re.M)[1]
    asked = Asked.of_run(folder, 1, 2)
    assert path == str(asked.shelf.folder / "examples.html")
    assert asked.shelf.folder.joinpath("examples.html").stat().st_mode & 0o077 == 0
    text = asked.shelf.folder.joinpath("examples.html").read_text(encoding="utf-8")
    rows = asked.client.partition.test.to_list()
    shown = list(shown_examples(asked, 100))
    assert [one.question for one in shown] == [row["question"] for row in rows]
    # As many are right as the run's last evaluation of this client says.
    kept = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    student = [row["student"] for row in kept if row["partition"] == 1 and "student" in row][-1]
    assert sum(one.is_right for one in shown) == round(12 * student)
    marks = re.findall(r'<p class="mark">(\w+)</p>', text)
    assert marks == sorted(marks, reverse=True)
    assert marks.count("right") == round(12 * student)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in pictures]
    assert len(sizes) == 12
    assert "probability is its own: they need not add up to 100%." in html.unescape(text)
    assert "http:" not in text
    assert "https:" not in text


def test_a_page_that_has_not_all_says_so_and_how_to_see_them(folder, capsys):
    assert main([f"--folder={folder}", "--client=1", "--of=2", "--examples=5"]) == 0
    assert capsys.readouterr().out.startswith(
        "5 of 12 test examples of sketch shown (for more: --examples 12): /"
    )


def test_all_pictures_of_an_example_are_shown(federation, tmp_path):
    folder = federation(1, **of_pictures(tmp_path / "data", [2, 2, 0, 2])).serve()
    asked = Asked.of_run(folder, 0, 1)
    shown = list(shown_examples(asked, 100))
    assert [one.question for one in shown] == ["0?", "1?", "3?"]
    text = examples_page("test", "data", shown, "")
    reds = [
        Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0))[0]
        for one in re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    ]
    assert sorted(reds) == sorted([0, 60, 60, 120, 180, 0])


def test_what_the_data_say_is_text():
    hostile = "<script>alert(1)</script>"
    shown = [Shown(hostile, ["data:image/png;base64,AA=="], {hostile: 1.0}, {"student": [(hostile, 0.5)]})]
    text = examples_page(hostile, hostile, shown, "")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 7  # in title, heading, question and answers
    assert "1 of 1" in text


@pytest.mark.parametrize(
    ("right", "said", "expected"),
    [
        ({"red": 1.0}, "red", True),
        ({"red": 1.0}, "blue", False),
        ({"red": 1.0, "blue": 0.3}, "blue", True),
        ({"red": 1.0, "blue": 0.0}, "blue", False),
    ],
)
def test_an_example_is_right_by_the_deployed_branch(right, said, expected):
    assert Shown("?", [], right, {"student": [(said, 0.9)], "local": [("red", 1.0)]}).is_right == expected


def test_where_nothing_is_kept_of_the_client_one_line_says_so(folder, capsys):
    assert main([f"--folder={folder}", "--client=7", "--of=8"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("feddat: client = 7")
