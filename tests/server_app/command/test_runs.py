"""What was run, listed, compared and removed."""

import json
import os
import re

import pytest


@pytest.fixture
def runs(person):
    """Two runs of three clients' rounds, one over and one not."""
    for name, scores, rate in (("one", (0.5, 0.25), 0.1), ("two", (0.75, 0.125), 0.2)):
        folder = person.home / "runs" / name
        folder.mkdir(parents=True, mode=0o700)
        settings = {"method": "feddat", "num-rounds": 2, "learning-rate": rate, "run-token": name[0] * 8}
        (folder / "settings.json").write_text(json.dumps(settings))
        rows = [
            {"round": 2, "partition": partition, "name": client, "student": score}
            for partition, (client, score) in enumerate(zip(("clean", "sketch"), scores, strict=True))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (person.home / "runs" / "one" / "report.md").write_text("# one\n\n<details>\na-setting\n")
    return person


def cells(text):
    lines = (re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in text.splitlines())
    return [line for line in lines if line]


def test_a_list_says_how_far_each_is_and_how_good(runs):
    rows = {row[0]: row for row in cells(runs.calls("runs", COLUMNS="100").stdout)}
    assert rows["one"][2:] == ["feddat", "2/2", "yes", "37.5"]
    assert rows["two"][2:] == ["feddat", "2/2", "no", "43.8"]


def test_compared_runs_show_clients_and_the_settings_that_differ(runs):
    rows = cells(runs.calls("runs", "compare", "one", "two", COLUMNS="60").stdout)
    assert ["clean", "50.0", "75.0"] in rows
    assert ["sketch", "25.0", "12.5"] in rows
    assert ["mean", "37.5", "43.8"] in rows
    assert ["learning-rate", "0.1", "0.2"] in rows
    assert not [row for row in rows if row[0] in ("method", "run-token")]


def test_runs_of_other_clients_are_not_matched_by_number(runs):
    folder = runs.home / "runs" / "two"
    (folder / "metrics.jsonl").write_text('{"round": 2, "partition": 0, "name": "anna", "student": 0.75}\n')
    said = runs.calls("runs", "compare", "one", "two").stdout
    assert ["clean", "50.0", "–"] in cells(said)
    assert ["anna", "–", "75.0"] in cells(said)
    assert "No client is in all of these runs" in said


def test_a_run_without_a_student_is_shown_by_the_branch_that_it_has(runs):
    folder = runs.home / "runs" / "two"
    rows = [{"round": 2, "partition": number, "name": "c", "local": 0.5} for number in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ["mean", "37.5", "50.0"] in cells(runs.calls("runs", "compare", "one", "two").stdout)
    (row,) = (row for row in cells(runs.calls("runs", COLUMNS="100").stdout) if row[0] == "two")
    assert row[-1] == "50.0"


@pytest.mark.parametrize(
    "name",
    [
        "scenes-feddat-20261128-214903",  # as they are called by default
        "a-name-of-a-run-that-is-longer-than-a-terminal-of-eighty-columns-has-room-for-in-a-line",
    ],
)
def test_no_name_is_cut_or_folded_at_80_columns(runs, name):
    (runs.home / "runs" / "two").rename(runs.home / "runs" / name)
    lines = runs.calls("runs", COLUMNS="80").stdout.splitlines()
    assert lines[::2] == ["one", name]
    when = r"  \d{4}-\d\d-\d\d \d\d:\d\d, "
    assert re.fullmatch(when + "feddat, 2/2 rounds, with a report, mean score 37.5", lines[1])
    assert re.fullmatch(when + "feddat, 2/2 rounds, no report, mean score 43.8", lines[3])


def test_a_damaged_metrics_file_is_read_as_far_as_it_goes_and_stays(runs):
    path = runs.home / "runs" / "one" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\x00 no row\n")
    before = path.read_bytes()
    assert ["mean", "37.5", "43.8"] in cells(runs.calls("runs", "compare", "one", "two").stdout)
    assert path.read_bytes() == before


def test_a_report_is_shown_when_there_is_one(runs):
    shown = runs.calls("report", "one").stdout.splitlines()
    assert shown[0] == "# one"
    assert "a-setting" not in shown
    assert shown[-1].endswith("/runs/one")
    reason = "run 'two' is not over (2/2 rounds); to go on: feddat run resume=two"
    assert runs.is_refused("report", "two") == reason


def test_what_is_removed_is_gone_with_its_log_and_the_states_if_so_asked(runs):
    home = runs.home
    for name in ("one", "two"):
        (home / "logs").mkdir(exist_ok=True)
        (home / "logs" / f"{name}.log").touch()
        (home / "clients" / f"{name}-{name[0] * 8}").mkdir(parents=True)
    assert runs.calls("runs", "prune", "one", "--yes").returncode == 0
    assert {path.name for path in (home / "runs").iterdir()} == {"two"}
    assert {path.name for path in (home / "logs").iterdir()} == {"two.log"}
    assert len(list((home / "clients").iterdir())) == 2
    assert runs.calls("runs", "prune", "two", "--yes", "--states").returncode == 0
    assert {path.name for path in (home / "clients").iterdir()} == {"one-oooooooo"}


def test_reports_side_by_side_are_a_page(runs):
    said = runs.calls("report", "one", "two").stdout
    path = runs.home / "runs" / "one" / "beside-two.html"
    assert said == f"side by side: {path}\n"
    text = path.read_text()
    for cell in ("<td>50.0</td><td>75.0</td>", "<td>37.5</td><td>43.8</td>", "<td>0.1</td><td>0.2</td>"):
        assert cell in text
    assert 8 * "o" not in text
    assert runs.is_refused("report", "one", "three").startswith("'three' is not a run in ")


def test_without_a_name_it_is_the_newest_run(runs):
    for name, when in (("one", 2000), ("two", 1000)):
        os.utime(runs.home / "runs" / name / "settings.json", (when, when))
    assert runs.calls("report").stdout.splitlines()[0] == "# one"
    reason = runs.is_refused("answer", "--client", "9", "--image", "x.png", "--question", "?")
    assert reason == "client = 9 is not in the run 'one'; allowed: 0 (clean), 1 (sketch)"


def test_a_run_beside_the_newest_is_not_the_newest(runs):
    settings = json.loads((runs.home / "runs" / "two" / "settings.json").read_text())
    for method, when in (("adapter", 3000), ("local", 4000)):
        folder = runs.home / "runs" / f"two.{method}"
        folder.mkdir(mode=0o700)
        (folder / "settings.json").write_text(json.dumps(settings | {"method": method}))
        os.utime(folder / "settings.json", (when, when))
    for name, when in (("one", 1000), ("two", 2000)):
        os.utime(runs.home / "runs" / name / "settings.json", (when, when))
    reason = runs.is_refused("answer", "--client", "9", "--image", "x.png", "--question", "?")
    assert reason == "client = 9 is not in the run 'two'; allowed: 0 (clean), 1 (sketch)"


def test_at_a_site_its_node_config_says_which_client_it_is(runs):
    words = ("export", "--run", "one", "own")
    allowed = "allowed: --client, or at a site --node-config"
    assert runs.is_refused(*words) == f"client, node-config: neither given; {allowed}"
    site = ("--node-config", "partition-id=9 num-partitions=10")
    assert runs.is_refused(*words, "--client", "1", *site) == f"client, node-config: both given; {allowed}"
    assert runs.is_refused("report", "one", "two", *site) == "--node-config with 2 runs; allowed: one"


def test_without_a_run_there_is_none_to_report(person):
    assert person.is_refused("report") == "there is no run yet; to make one: feddat run"
