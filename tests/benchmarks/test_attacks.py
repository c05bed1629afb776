"""Attacks on whole runs: what attackers send, that they are in a run, and the table of what they take."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from app.settings import read_settings
from benchmarks import attacks
from benchmarks.attackers import ATTACKS, View, at_the_bar, largest_z
from server_app import federation as room
from tests.conftest import ROOT, SMALL, default_run_config

# Sorted by norm the honest ones change x by 1, 2, 3, 4 and 5; two attackers above them make 4 usual.
HONEST = [{"x": np.array([float(size), 0.0]), "y": np.array([0.0])} for size in (3, 1, 5, 2, 4)]
OWN = [{"x": np.array([1.0, 1.0]), "y": np.array([2.0])}] * 2
VIEW = View(server_round=1, count=2, honest=HONEST, own=[])

# What docs/promises.md says was tried.
PROMISED = {
    "nobody attacks",
    "sign flip × 9",
    "against the mean, at the bar",
    "against the mean, one round in three",
    "against the mean, 0.6 of the clients a round",
    "one direction, at the bar",
    "the whole norm in one array",
    "a lowered median",
    "little is enough, by all",
}


def test_the_bar_by_hand():
    sent = at_the_bar(VIEW, {"x": np.array([0.0, -7.0]), "y": np.array([1.0])})
    assert sent["x"].tolist() == [0, -4]
    assert sent["y"].tolist() == [0]  # nobody changes it


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("sign flip × 9", [-9, -9]),
        ("scaled × 9", [9, 9]),
        ("against the mean, at the bar", [-4, 0]),
        # A mean of 3 and a standard deviation of √2; z = Φ⁻¹(3 / 5).
        ("little is enough, by all", [3 - 0.25335 * 2**0.5, 0]),
        ("little is enough, by their own", [1, 1]),  # they learned the same
        ("the whole norm in one array", [-3, 0]),
    ],
)
def test_what_attackers_send_by_hand(name, x):
    sent = ATTACKS[name].answer(replace(VIEW, own=OWN if ATTACKS[name].trains else []))
    assert len(sent) == 2
    for change in sent:
        np.testing.assert_allclose(change["x"], x, rtol=1e-4)


def test_little_is_enough_as_in_the_paper():
    """Fifty clients of which 24 collude want 2 supporters: Φ(z) = 24 / 26."""
    assert largest_z(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert largest_z(7, 2) == pytest.approx(0.2533, abs=1e-4)


def test_a_lowered_median_is_one_that_pushes_and_one_that_hides():
    push, hidden = ATTACKS["a lowered median"].answer(VIEW)
    assert push["x"].tolist() == [-4, 0]
    assert 0 < np.linalg.norm(hidden["x"]) < 1e-5


def test_one_direction_is_the_same_in_every_round():
    one, two = (ATTACKS["one direction, at the bar"].answer(VIEW)[0]["x"] for _ in range(2))
    assert np.array_equal(one, two)
    assert np.linalg.norm(one) == pytest.approx(4)


def test_one_round_in_three_and_a_round_without_attackers():
    third = ATTACKS["against the mean, one round in three"]
    sent = [third.answer(View(r, 1, HONEST, []))[0]["x"][0] for r in (1, 2, 3)]
    assert sent == [3, 3, -3]  # of six, the third is usual
    assert third.answer(View(3, 0, HONEST, [])) == []


@pytest.mark.parametrize("defence", attacks.DEFENCES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_settings_of_every_cell_can_be_run(defence, attack):
    read_settings({**default_run_config(), **attacks.DEFENCES[defence], **ATTACKS[attack].settings})


@pytest.fixture
def small(small_backbone, home, monkeypatch):
    """Return settings of a small run."""
    monkeypatch.setattr(room, "write_report", lambda *_: None)
    few = {key: value for key, value in SMALL.items() if key != "clip-change"}
    return {**few, "backbone": str(small_backbone), "reduction-factor": 4, "device": "cpu"}


def test_attackers_are_in_the_run_and_the_defence_is_what_stops_them(small, monkeypatch):
    ran = []
    serve = attacks.Attacked.serve

    def spy(self):
        folder = serve(self)
        ran.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
        return folder

    monkeypatch.setattr(attacks.Attacked, "serve", spy)
    for defence, attack in (("default", "sign flip × 9"), ("no clipping", attacks.ALONE)):
        scores = attacks.run(defence, attack, 2, 0, small)
        assert 0 <= scores["worst"] <= scores["mean"] <= 1
        assert 0 < scores["kept"] <= 1
    clipped = {row["partition"]: row["clipped"] for row in ran[0] if "clipped" in row and row["round"] == 1}
    assert set(clipped) == set(range(7))
    assert all(clipped[attacker] < 0.2 < min(clipped[honest] for honest in range(5)) for attacker in (5, 6))
    assert {row["partition"] for row in ran[1]} == set(range(5))
    assert not any("clipped" in row for row in ran[1])


LINES = [
    {
        "cell": f"{defence} | {attack} | 2 of 7",
        "seed": seed,
        "scores": {"mean": mean, "worst": 0.1, "kept": 0.9},
    }
    for defence, attack, means in (
        ("no clipping", attacks.NOBODY, (0.625, 0.635)),
        ("default", attacks.NOBODY, (0.62, 0.635)),
        ("default", "sign flip × 9", (0.6, 0.62)),
    )
    for seed, mean in enumerate(means)
]


def test_the_table_by_hand():
    assert attacks.table(LINES).splitlines()[2:] == [
        "| 2 of 7 | default | nobody attacks | 2 | 62.8 ± 1.1 | 0.2 (0.5, 0.0) | 90 % |",
        "| 2 of 7 | default | sign flip × 9 | 2 | 61.0 ± 1.4 | 1.8 (2.0, 1.5) | 90 % |",
        "| 2 of 7 | no clipping | nobody attacks | 2 | 63.0 ± 0.7 | 0.0 (0.0, 0.0) | 90 % |",
    ]


def test_what_is_lost_with_few_clients_a_round_is_held_to_the_same_without_an_attack():
    few, nobody = (f"{name}, 0.6 of the clients a round" for name in ("against the mean", attacks.NOBODY))
    assert {few, nobody} < set(ATTACKS)
    assert ATTACKS[few].settings == ATTACKS[nobody].settings
    found = {("2 of 7", "default", attacks.NOBODY): 1, ("2 of 7", "default", nobody): 2}
    assert attacks.clean_of(found, "2 of 7", "default", few) == 2
    assert attacks.clean_of(found, "2 of 7", "default", "sign flip × 9") == 1
    sent = ATTACKS[nobody].answer(replace(VIEW, own=OWN))
    assert sent[0]["x"].tolist() == [1, 1]  # as learned


@pytest.mark.parametrize(("attacked", "clean", "code"), [(0.6, 0.62, 0), (0.59, 0.62, 1), (0.6, 0.615, 1)])
def test_more_than_two_points_lost_or_a_third_of_one_paid_is_a_failure(attacked, clean, code, capsys):
    lines = [dict(LINES[0]), {**LINES[2]}, {**LINES[4]}]
    for line, mean in zip(lines, (0.62, clean, attacked), strict=True):
        line["scores"] = {"mean": mean}
    assert attacks.judge(lines) == code
    assert capsys.readouterr().out.count("FAILED") == code


def committed():
    path = ROOT / "docs" / "results" / "attacks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("benchmark", ["scenes", "vqa-domains"])
def test_the_committed_attacks_keep_to_what_is_promised(benchmark, capsys):
    """At most two points are lost to two of seven, and 0.3 are paid where nobody attacks, of three seeds."""
    lines = [line for line in committed() if line["plan"].split()[0] == benchmark]
    of_two = defaultdict(set)
    for line in lines:
        defence, attack, share = line["cell"].split(" | ")
        if defence == "default" and share == "2 of 7":
            of_two[attack].add(line["seed"])
    tried = {attack for attack, seeds in of_two.items() if seeds >= {0, 1, 2}}
    assert tried >= PROMISED
    assert attacks.judge(lines) == 0
    # One that takes three points would be seen.
    worse = [
        {**line, "scores": {**line["scores"], "mean": line["scores"]["mean"] - 0.03}}
        if line["cell"] == "default | sign flip × 9 | 2 of 7"
        else line
        for line in lines
    ]
    assert attacks.judge(worse) == 1
    capsys.readouterr()
