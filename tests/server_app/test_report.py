"""What people read of a run: values by hand on two clients and two rounds."""

import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from app.backbones import load_backbone
from server_app.card import model_card
from server_app.defaults import default_settings
from server_app.facts import facts_of
from server_app.report import (
    draw_curves,
    progress_line,
    results_table,
    show_result,
    write_report,
)
from server_app.scores import scores as scores_of

SETTINGS = {
    "run-name": "first",
    "seed": 7,
    "num-rounds": 2,
    "method": "feddat",
    "strategy": "fedavg",
    "weighting": "uniform",
    "benchmark": "scenes",
    "backbone": "tiny-vilt",
    "backbone-weights": "pretrained",
    "adapter": "bottleneck",
    "dp.mode": "none",
}
LOSSES = {"ce-student": 2.0, "kl-student": 0.5, "ce-teacher": 3.0, "kl-teacher": 0.25}
TRAINED = {**LOSSES, "delta-shared": 0.1, "delta-local": 0.2, "bytes-down": 1000, "bytes-up": 1000}


def row(server_round, partition, **measured):
    return {
        "round": server_round,
        "partition": partition,
        "name": ("clean", "sketch")[partition],
        **TRAINED,
        **measured,
    }


def scores(student, local, teacher, text_only):
    return {
        "student": student,
        "local": local,
        "teacher": teacher,
        "text-only": text_only,
        "bytes-down": 2000,
    }


REFUSED = {"round": 1, "partition": 1, "phase": "train", "refused": "array 'a|b' holds <nan>"}
ROWS = [
    row(1, 0),
    row(1, 1, **{"ce-student": 2.5}),
    row(2, 0, **scores(0.75, 0.5, 0.8, 0.25)),
    row(2, 1, **scores(0.5, 0.45, 0.9, 0.3)),
]


def lines_of(rows, width=150):
    """Return the table as it is printed, cell by cell."""
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(rows))
    printed = console.file.getvalue().splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed]
    return [line for line in cells if line]


def test_a_narrow_table_goes_on_in_the_next_line_and_cuts_no_name():
    """Where 60 columns are too few for what they hold in one line."""
    rows = [{**row, "name": "low-resolution"} for row in ROWS]
    first = "".join(line[0] for line in lines_of(rows, width=60))
    assert first == "client" + 2 * "low-resolution" + "meanworst"


def test_a_table_with_other_methods_fits_into_60_columns_word_by_word(tmp_path):
    """As `feddat run --compare adapter,local` shows it."""
    rows = [{**row, "name": "low-resolution"} for row in ROWS]
    for name, method in (("mine.adapter", "adapter"), ("mine.local", "local")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps({**SETTINGS, "method": method}))
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (tmp_path / name / "report.md").touch()
    console = Console(file=io.StringIO(), width=60)
    show_result(console, tmp_path / "mine", SETTINGS, rows)
    printed = console.file.getvalue().splitlines()
    assert max(map(len, printed[:5])) <= 60
    (heading,) = (line for line in printed if line.lstrip().startswith("client"))
    assert heading.split() == ["client", "student", "local", "teacher", "text", "FedAvg", "alone", "gain"]
    assert [line.split()[1:3] for line in printed if line.lstrip().startswith(("mean", "worst"))] == [
        ["62.5", "47.5"],
        ["50.0", "45.0"],
    ]
    console = Console(file=io.StringIO(), width=110)
    show_result(console, tmp_path / "mine", SETTINGS, rows)
    assert "(A_s, deployed)" in console.file.getvalue()


def test_a_narrow_table_marks_what_is_from_the_study():
    beside = {"one adapter\n(FedAvg)*": {0: 0.5}, "local\nonly*": {0: 0.5}}
    table = results_table(ROWS, beside, narrow=1)
    header = [column.header for column in table.columns]
    assert header == ["client", "student", "local", "teacher", "text", "FedAvg*", "alone*", "gain"]
    assert table.caption == (
        "text: the question without the picture; FedAvg: one adapter, averaged; alone: each client by itself;"
        " gain: student − text"
    )


NAMES = ("clean", "sketch", "noisy", "inverted", "low-resolution")


@pytest.mark.parametrize(("width", "lines", "name"), [(80, "│", "low-resolution"), (60, "", "low-")])
def test_the_default_runs_table_is_readable_in_a_terminal(tmp_path, width, lines, name):
    """Each head is one whole word, and each number whole in its line, beside two other methods' columns."""
    rows = [
        {"round": 2, "partition": n, "name": name, **scores(0.8, 0.7, 0.75, 0.325)}
        for n, name in enumerate(NAMES)
    ]
    rows = [row | {"test-examples": 200} for row in rows]
    folder = tmp_path / "mine"
    console = Console(file=io.StringIO(), width=width)
    settings = {**default_settings(), "run-name": "mine", "backbone-weights": "pretrained"}
    show_result(console, folder, settings, rows)
    printed = console.file.getvalue().splitlines()
    table = printed[: next(n for n, line in enumerate(printed) if line.startswith("text: "))]
    assert max(map(len, table)) <= width
    cells = [re.sub("[│┃]", " ", line).split() for line in table if re.search(r"\w", line)][1:]
    assert cells[0] == ["client", "student", "local", "teacher", "text", "FedAvg*", "alone*", "gain"]
    by_name = {line[0]: line[1:] for line in cells}
    assert by_name[name][:4] == ["80.0", "70.0", "75.0", "32.5"]
    assert len(by_name["mean"]) == 7
    assert lines in "".join(table)
    assert "This rests on 1,000 questions of 5 clients." in printed


def test_the_table_shows_points_mean_worst_and_gain():
    assert lines_of(ROWS) == [
        ["", "student", "local", "teacher", "text", "gain"],
        ["client", "(A_s, deployed)", "(A_c)", "(DAT)", "only", "(student − text only)"],
        ["clean", "75.0", "50.0", "80.0", "25.0", "50.0"],
        ["sketch", "50.0", "45.0", "90.0", "30.0", "20.0"],
        ["mean", "62.5", "47.5", "85.0", "27.5", "35.0"],
        ["worst", "50.0", "45.0", "80.0", "25.0", "20.0"],
    ]


def test_the_table_shows_what_was_there_before_training():
    rows = [row(0, 0, student=0.4, local=0.2), row(0, 1, student=0.55), *ROWS]
    assert [line[-2] for line in lines_of(rows)] == ["before", "training", "40.0", "55.0", "47.5", "40.0"]
    # Until a round is over it stands in its own branch's place.
    assert lines_of(rows[:2])[-1] == ["worst", "40.0", "20.0"]
    scores, losses, _ = draw_curves(rows).axes
    assert scores.get_xlim() == losses.get_xlim() == (-0.5, 2.5)
    assert draw_curves(ROWS).axes[0].get_xlim() == (0.5, 2.5)


def test_the_table_has_only_the_columns_that_exist():
    rows = [row(1, 0, student=0.5), row(1, 1, student=0.25)]
    assert lines_of(rows)[1:] == [
        ["client", "(A_s, deployed)"],
        ["clean", "50.0"],
        ["sketch", "25.0"],
        ["mean", "37.5"],
        ["worst", "25.0"],
    ]


def test_a_client_without_a_score_is_not_hidden_and_does_not_count():
    rows = [row(1, 0, student=0.5), REFUSED]
    assert lines_of(rows)[2:] == [
        ["clean", "50.0"],
        ["partition 1", "–"],
        ["mean", "50.0"],
        ["worst", "50.0"],
    ]


def test_of_a_thousand_clients_the_lowest_twenty_are_shown_and_all_count():
    rows = [
        {
            "round": 1,
            "partition": partition,
            "name": f"client {partition}",
            "student": (999 - partition) / 1000,
        }
        for partition in range(1000)
    ]
    rows[3]["student"] = math.nan
    del rows[999]["student"]
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table(rows))
    lines = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if line.startswith("│")]
    shown = [[cell.strip() for cell in line] for line in lines]
    # By hand: of 0.999 … 0.001 the lowest 19 are those of the clients 980 to 998.
    assert shown[0] == ["client 3", "nan"]
    assert shown[1:20] == [[f"client {n}", f"{(999 - n) / 10:.1f}"] for n in range(980, 999)]
    assert shown[20:] == [["and 980 more", ""], ["mean", "nan"], ["worst", "nan"]]
    whole, _ = np.asarray(scores_of(rows)[1]).shape
    assert whole == 1002


NO_TEST = {"phase": "evaluate", "refused": "partition 0 has no test rows to evaluate on"}
UNSCORED = [
    ([row(1, 0)], "Scores were not measured: no client sent any."),
    (
        [row(1, 0), {"round": 1, "partition": 0, **NO_TEST}],
        "Scores were not measured: no client has test questions. Those are rows whose `split` says test,"
        " files or folders named test, or some of the rows where there are more of them.",
    ),
    (
        [row(1, 0), {"round": 1, "partition": 1, **NO_TEST}]
        + 2 * [{"round": 1, "partition": 0, "phase": "evaluate", "refused": "an error at the site"}],
        "Scores were not measured: evaluations were refused, 2 times because of: an error at the site",
    ),
]


@pytest.mark.parametrize(("rows", "said"), UNSCORED)
def test_no_score_is_said_in_place_of_a_table(tmp_path, rows, said):
    console = Console(file=io.StringIO(), width=80)
    show_result(console, tmp_path, SETTINGS, rows)
    assert console.file.getvalue().splitlines() == [said]
    write_report(tmp_path, SETTINGS, rows, seconds=1)
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert said in text
    assert "| client |\n" not in text
    assert f'<p class="says">{said}</p>' in page
    assert "<caption>" not in page
    assert "| client |\n" not in model_card(SETTINGS, rows, load_backbone("tiny-vilt"))


def test_a_score_of_an_earlier_round_says_so():
    rows = [*ROWS, row(3, 0, student=0.625)]
    assert [line[:2] for line in lines_of(rows)[2:4]] == [["clean", "62.5"], ["sketch (round 2)", "50.0"]]


@pytest.mark.parametrize("order", [(math.nan, 0.5), (0.5, math.nan)])
def test_a_score_that_is_no_number_is_shown(order):
    rows = [row(1, partition, student=student) for partition, student in enumerate(order)]
    assert [line[1] for line in lines_of(rows)[2:]].count("nan") == 3
    assert lines_of(rows)[-1] == ["worst", "nan"]
    assert f"nan worst ({'clean' if math.isnan(order[0]) else 'sketch'})" in progress_line(rows, 1, 2, 1)


CENTRAL = [
    {"round": 1, "partition": -1, "student": 0.25, "many": 0.5, "medium": 0.25, "few": 0.0},
    {"round": 1, "partition": 0, "name": "clean", "text-only": 0.1, **TRAINED},
    {"round": 2, "partition": -1, "student": 0.5, "many": 0.875, "medium": 0.5, "few": 0.125},
]


def test_what_the_server_measured_is_shown_by_groups_of_classes():
    assert lines_of(CENTRAL) == [
        ["classes", "accuracy"],
        ["many-shot classes", "87.5"],
        ["medium-shot classes", "50.0"],
        ["few-shot classes", "12.5"],
        ["all classes", "50.0"],
    ]
    line = "round 2/2: student 50.0 over all classes, 87.5 many, 50.0 medium, 12.5 few; 0:09 in all"
    assert progress_line(CENTRAL, 2, 2, 9) == line


def test_a_group_that_is_empty_is_not_shown():
    rows = [{"round": 1, "partition": -1, "student": 0.25, "many": 0.25}]
    assert [line[0] for line in lines_of(rows)[1:]] == ["many-shot classes", "all classes"]
    assert progress_line(rows, 1, 1, 9).startswith("round 1/1: student 25.0 over all classes, 25.0 many;")


def test_curves_of_what_the_server_measured():
    axes = draw_curves(CENTRAL).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(drawn["many-shot classes"]) == [50, 87.5]
    assert list(drawn["few-shot classes"]) == [0, 12.5]
    assert list(drawn["all classes"]) == [25, 50]


def test_the_report_says_what_was_measured_on_what(tmp_path):
    write_report(tmp_path, {**SETTINGS, "method": "full"}, CENTRAL, 60)
    text = (tmp_path / "report.md").read_text()
    assert "Accuracy of the aggregated model on the benchmark's balanced test set" in text
    assert "| few-shot classes | 12.5 |" in text
    assert "with its own head" not in text


def test_a_name_is_not_read_as_markup():
    assert lines_of([row(1, 0, name="[bold]x[/bold] $a$", student=1)])[2][0] == "[bold]x[/bold] $a$"


@pytest.mark.parametrize(
    ("rows", "server_round", "num_rounds", "seconds", "line"),
    [
        (ROWS, 2, 4, 45, "round 2/4: student 62.5 mean, 50.0 worst (sketch); 0:45 left"),
        (ROWS, 2, 2, 65.4, "round 2/2: student 62.5 mean, 50.0 worst (sketch); 1:05 in all"),
        (
            [row(1, 0, local=0.5) | {"ce-local": 1.0}],
            1,
            1,
            5,
            "round 1/1: local 50.0 mean, 50.0 worst (clean); 0:05 in all",
        ),
        (
            [{"round": 1, "partition": 0, "ce-local": 1.5}],
            1,
            2,
            5,
            "round 1/2: local loss 1.500 mean; 0:05 left",
        ),
        (ROWS, 1, 3, 1830, "round 1/3: student loss 2.250 mean; 1:01:00 left"),
        ([row(1, 0), REFUSED], 1, 2, 5, "round 1/2: student loss 2.000 mean; 1 refused; 0:05 left"),
        ([row(0, 0, student=0.5)], 0, 2, 5, "before training: student 50.0 mean, 50.0 worst (clean)"),
        ([REFUSED], 1, 2, 59.6, "round 1/2: nothing measured; 1 refused; 1:00 left"),
    ],
)
def test_a_line_says_how_a_round_went(rows, server_round, num_rounds, seconds, line):
    assert progress_line(rows, server_round, num_rounds, seconds) == line


def test_what_is_sent_in_a_round_is_the_mean_of_those_in_which_clients_train(tmp_path):
    sizes = {"bytes-down": 200, "bytes-up": 100}
    rows = [row(0, 0) | {"bytes-down": 50, "bytes-up": 2}, row(1, 0) | sizes, row(2, 0) | sizes]
    assert facts_of(tmp_path, SETTINGS, rows, 1)["sent"] == (
        "200 bytes down and 100 bytes up per client and round, evaluation included; 652 in all"
    )


def test_the_report_says_how_much_of_what_clients_changed_was_averaged(tmp_path):
    rows = [row(1, 0, clipped=1.0), row(1, 1, clipped=0.25), row(2, 0, clipped=1.0), row(2, 1, clipped=0.75)]
    write_report(tmp_path, SETTINGS, rows, seconds=1)
    line = "**: 75 % of what a client changed was averaged, in the mean; least for sketch in round 1, 25 %\n"
    assert f"- **clipped{line}" in (tmp_path / "report.md").read_text()
    write_report(tmp_path, SETTINGS, ROWS, seconds=1)
    assert "**clipped**" not in (tmp_path / "report.md").read_text()


def test_the_report_says_what_alignment_did_to_the_losses(tmp_path):
    before = {"align/ce-before": 0.5, "align/kl-before": 2.0}
    first = {**before, "align/ce": 0.75, "align/kl": 1.5, "align/accepted": 1.0}
    last = {**before, "align/ce": 0.4567, "align/kl": 2.5, "align/accepted": 0.0}
    own = [{"round": i, "partition": -1, **measured} for i, measured in enumerate((first, last), start=1)]
    write_report(tmp_path, SETTINGS, [*ROWS, *own], seconds=1)
    assert (
        "- **alignment**: taken in 1 of 2 rounds; the last took CE from 0.5 to 0.457 and KL from 2 to 2.5"
        " on held-out public examples\n"
    ) in (tmp_path / "report.md").read_text()
    write_report(tmp_path, SETTINGS, ROWS, seconds=1)
    assert "**alignment**" not in (tmp_path / "report.md").read_text()


def test_the_report_says_what_the_server_knew_under_secure_aggregation(tmp_path):
    line = "the server learned the sum of a round's changes; none was held to the others"
    write_report(tmp_path, {**SETTINGS, "secure.aggregation": True}, ROWS, seconds=1)
    assert line in (tmp_path / "report.md").read_text()
    write_report(tmp_path, {**SETTINGS, "secure.aggregation": False}, ROWS, seconds=1)
    assert line not in (tmp_path / "report.md").read_text()


def test_the_report_tells_what_ran_and_what_came_out(tmp_path):
    (tmp_path / "adapter").mkdir()
    weights = {"down": np.zeros((40, 30), np.float32), "up": np.zeros(34, np.float32)}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {**SETTINGS, "data-dir": "/a|b"}
    stranger = {"round": 1, "partition": -1, "phase": "train", "refused": "not asked for a reply"}
    write_report(tmp_path, settings, [REFUSED, stranger, REFUSED, *ROWS], seconds=90)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    for expected in (
        "# first\n",
        "Method `feddat` under `fedavg` on the benchmark `scenes`: 2 clients, 2 rounds, seed 7.",
        "| client | student (A_s, deployed) | local (A_c) | teacher (DAT) | text only | gain (student",
        "| mean | 62.5 | 47.5 | 85.0 | 27.5 | 35.0 |",
        "(curves.png)",
        "- **rounds**: 2 of 2\n",
        "- **clients**: clean, sketch\n",
        "- **adapter**: bottleneck, 1,234 parameters\n",
        # Down (1000 + 1000 + 2000 + 2000) / 4, up 1000; 6000 + 4000.
        "1,500 bytes down and 1,000 bytes up per client and round, evaluation included; 10,000 in all\n",
        "- **time**: 1.5 minutes\n",
        r"| 2 | sketch | train | `array 'a\|b' holds <nan>` |",
        "| 1 | not asked | train | not asked for a reply |",
        "<details>",
        r"| data-dir | `/a\|b` |",
    ):
        assert expected in report
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "report.md", "report.html", "curves.png"}


def test_the_page_for_a_browser_has_the_facts(tmp_path):
    dp = {"dp.mode": "central", "dp.delta": 1e-5, "dp.noise-multiplier": 1.0}
    write_report(tmp_path, {**SETTINGS, **dp}, ROWS, seconds=90)
    page = (tmp_path / "report.html").read_text()
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page[page.index("<dl>") : page.index("</dl>")]))
    assert facts["clients"] == "clean, sketch"
    assert facts["time"] == "1.5 minutes"
    assert facts["sent"] == (
        "1,500 bytes down and 1,000 bytes up per client and round, evaluation included; 10,000 in all"
    )
    privacy = r"central, ε = [\d.]+ at δ = 1e-05 for whether .*, over 2 rounds"
    assert re.fullmatch(privacy, facts["privacy"])


@pytest.mark.parametrize(
    ("method", "note"),
    [("feddat", None), ("head", "No weight of the backbone"), ("plora", "Each client keeps")],
)
def test_a_result_that_is_not_a_whole_adapter_is_said(tmp_path, method, note):
    settings = {**SETTINGS, "method": method, "adapter": "lora"}
    write_report(tmp_path, settings, ROWS, seconds=1)
    said = [
        line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("- **note**")
    ]
    card = model_card(settings, ROWS, load_backbone("tiny-vilt"))
    if note:
        assert said[0].removeprefix("- **note**: ").strip("`").startswith(note)
        assert f"\n{note}" in card
    else:
        assert said == []


def test_the_picture_shows_more_than_paper(tmp_path):
    write_report(tmp_path, SETTINGS, ROWS, seconds=90)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 400
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 50


def test_the_curves_are_those_of_the_rows():
    scores, losses, changes = draw_curves(ROWS).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in scores.get_lines()}
    assert drawn["clean"] == [[2, 75]]
    assert drawn["sketch"] == [[2, 50]]
    assert drawn["mean"] == [[2, 62.5]]
    assert [y for _, y in drawn["text only, mean"]] == pytest.approx([27.5, 27.5])
    assert losses.get_lines()[0].get_xydata().tolist() == [[1, 2.25], [2, 2]]
    assert [line.get_ydata().tolist() for line in changes.get_lines()] == [[0.1, 0.1], [0.2, 0.2]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [row(1, 0, student=0.5), {"round": 1, "partition": 1, "name": "$a_$"}],
        [row(1, 0, student=math.nan, **{"ce-student": math.nan, "kl-student": 0.0})],
        [row(1, 0) | {"partition": partition, "name": f"site {partition}"} for partition in range(30)],
        [REFUSED],
    ],
    ids=["missing", "not a number", "many clients", "refused"],
)
def test_a_report_can_be_written_of_any_rows(tmp_path, rows):
    write_report(tmp_path, SETTINGS, rows, seconds=1)
