"""Which runs stand beside a run, and what of them is shown."""

import json
import re

import pytest

from server_app import comparison
from server_app.comparison import STUDY, is_over, note_on, over_seeds, runs_beside
from server_app.defaults import default_settings
from server_app.report import write_report
from server_app.scores import scores
from tests.conftest import ROOT

SETTINGS = {"run-name": "mine", "method": "feddat", "num-rounds": 2, "seed": 3, "run-token": "a"}


@pytest.fixture
def write(tmp_path):
    """Write a run; return its folder."""

    def write(name, branch="student", over=True, points=(0.5, 0.25), **settings):
        folder = tmp_path / name
        folder.mkdir()
        kept = {**SETTINGS, "run-name": name, "run-token": name, **settings}
        (folder / "settings.json").write_text(json.dumps(kept))
        rows = [{"round": 2, "partition": index, branch: score} for index, score in enumerate(points)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if over:
            (folder / "report.md").touch()
        return folder

    return write


def test_runs_that_differ_in_their_method_alone_are_beside_it(write):
    folder = write("mine")
    write("mine.adapter", method="adapter")
    write("mine.local", "local", method="local", points=(0.75, 1.0), tracker="wandb")
    write("mine.full", method="full", seed=4)  # another seed
    write("mine.head", method="adapter")  # not its method's name
    write("mine.ditto", method="ditto", over=False)
    write("mine2.adapter", method="adapter")
    assert is_over(folder)
    assert runs_beside(folder, SETTINGS, []) == {
        "one adapter\n(FedAvg)": {0: 0.5, 1: 0.25},
        "local\nonly": {0: 0.75, 1: 1.0},
    }


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_one_that_cannot_be_read_is_left_out(write, damage):
    folder = write("mine")
    (write("mine.adapter", method="adapter") / "settings.json").write_text(damage)
    assert runs_beside(folder, SETTINGS, []) == {}


def test_the_table_has_them_before_the_gain():
    rows = [
        {"round": 2, "partition": index, "name": name, "student": score, "text-only": 0.25}
        for index, (name, score) in enumerate([("clean", 0.75), ("sketch", 0.5)])
    ]
    header, lines = scores(rows, {"ditto": {0: 0.5, 1: 1.0, 7: 0.1}})
    assert [heading.split("\n")[0] for heading in header] == ["client", "student", "text", "ditto", "gain"]
    assert lines == [
        ["clean", "75.0", "25.0", "50.0", "50.0"],
        ["sketch", "50.0", "25.0", "100.0", "25.0"],
        ["mean", "62.5", "25.0", "75.0", "37.5"],
        ["worst", "50.0", "25.0", "50.0", "25.0"],
    ]


def test_a_run_that_sends_nothing_has_a_table_too():
    rows = [{"round": 1, "partition": 0, "name": "clean", "local": 0.5, "text-only": 0.25}]
    header, lines = scores(rows)
    assert [heading.split("\n")[0] for heading in header] == ["client", "local", "text"]
    assert lines[0] == ["clean", "50.0", "25.0"]


NAMES = ("clean", "sketch", "noisy", "inverted", "low-resolution")
ROWS = [{"round": 6, "partition": index, "name": name, "student": 0.5} for index, name in enumerate(NAMES)]


def test_beside_default_settings_stand_the_studys_of_the_same_seed(write):
    """As `docs/results/rivals.md` has them, seed 0; clients may come in another order."""
    rows = [{**row, "partition": 4 - row["partition"]} for row in ROWS]
    settings = {**default_settings(), "run-name": "mine", "run-token": "a", "flwr": "1"}
    assert runs_beside(write("mine"), settings, rows) == {
        "one adapter\n(FedAvg)*": {4: 0.79, 3: 0.67, 2: 0.6, 1: 0.545, 0: 0.635},
        "local\nonly*": {4: 0.78, 3: 0.665, 2: 0.665, 1: 0.56, 0: 0.645},
    }


def test_the_spread_over_seeds_is_of_those_that_all_three_have(tmp_path, monkeypatch):
    """Student 0.5 and 0.7 in the mean: 60, and a standard deviation of the root of 2 × 10² points."""
    cells = {
        "feddat": lambda s: {"student": 0.5 + s, "local": 0.25, "teacher": 0.5 - s},
        "fedavg-ft": lambda s: {"student": 0.75 + s, "local": 0.0},
        "local": lambda s: {"local": 0.25 + s},
    }
    lines = [
        {
            "seed": seed,
            "cell": f"scenes-domain | {method} | {budget}",
            "clients": {
                name: {branch: value + more for branch, value in scores(spread).items()}
                for name, more in (("clean", 0.125), ("sketch", -0.125))
            },
        }
        for budget, factor in (("steps", 1), ("flops", 0))
        for seed, spread in ((1, 0.2 * factor), (0, 0.0), (5, 0.9))
        for method, scores in cells.items()
        if (seed, method) != (5, "local")
    ]
    file = tmp_path / "rivals.jsonl"
    monkeypatch.setattr(comparison, "STUDY", file)
    assert over_seeds() == []
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = (
        "Over seeds 0, 1 (mean ± standard deviation): student 60.0 ± 14.1, local 25.0 ± 0.0, "
        "teacher 40.0 ± 14.1, one adapter (FedAvg) 85.0 ± 14.1, local only 35.0 ± 14.1."
    )
    assert over_seeds() == [said]
    assert note_on({"local\nonly*": {}})[1:] == [said]
    assert note_on({"local\nonly": {}}) == []


@pytest.mark.parametrize(
    ("changed", "rows"),
    [({"learning-rate": 0.5}, ROWS), ({"seed": 99}, ROWS), ({"method": "ditto"}, ROWS), ({}, ROWS[:4])],
)
def test_beside_anything_else_they_do_not(write, changed, rows):
    assert runs_beside(write("mine"), {**default_settings(), **changed}, rows) == {}


def test_a_run_of_ones_own_comes_before_the_studys(write):
    settings = {**default_settings(), "run-name": "mine"}
    folder = write("mine", **settings)
    write("mine.local", "local", **{**settings, "method": "local", "run-name": "mine.local"})
    assert runs_beside(folder, settings, ROWS) == {"local\nonly": {0: 0.5, 1: 0.25}}


@pytest.mark.parametrize(
    ("method", "headings", "note"),
    [
        ("adapter", ["one adapter (FedAvg)"], False),
        ("", ["one adapter (FedAvg)*", "local only*"], True),
    ],
)
def test_the_report_in_the_folder_has_the_columns_too(write, method, headings, note):
    """Of a run of one's own; or, of default settings, the study's, with a note where they are from."""
    settings = {**default_settings(), "run-name": "mine", "backbone-weights": "pretrained"}
    folder = write("mine", over=False, **settings)
    if method:
        write(f"mine.{method}", **{**settings, "method": method})
    write_report(folder, settings, ROWS, 60)
    text, page = ((folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    cells = [cell.replace("\n", " ") for cell in re.findall(r'<th scope="col">([^<]*)', page)]
    for heading in headings:
        assert heading in cells
        assert f"| {heading} |" in text.replace("`", "")
    for written, star in ((text, r"\*"), (page, "*")):
        assert (f"{star} From the study in docs/results/rivals.md, with the same seed." in written) == note
        assert (over_seeds()[0] in written) == note


def test_the_study_was_made_with_what_is_the_default_now():
    """README shows what the default run gives, and the study has the same."""
    cell = ("scenes-domain | feddat | steps", 0)
    lines = map(json.loads, STUDY.read_text().splitlines())
    (study,) = (line["clients"] for line in lines if (line["cell"], line["seed"]) == cell)
    row = r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|"
    shown = {
        name: {"student": float(student) / 100, "local": float(local) / 100, "teacher": float(teacher) / 100}
        for name, student, local, teacher in re.findall(row, (ROOT / "README.md").read_text(), re.M)
    }
    assert shown == {name: pytest.approx(scores) for name, scores in study.items()}


def test_readme_has_the_spread_over_seeds():
    assert over_seeds()[0] in " ".join((ROOT / "README.md").read_text().split())


def test_a_personal_method_is_shown_by_what_is_a_clients_own(write):
    folder = write("mine")
    path = write("mine.ditto", method="ditto") / "metrics.jsonl"
    path.write_text('{"round": 2, "partition": 0, "student": 0.5, "local": 0.75}\n')
    assert runs_beside(folder, SETTINGS, []) == {"ditto\n(local)": {0: 0.75}}
