"""Pages: every figure by hand, bold only with a test, and the same bytes of the same lines."""

import pytest

from benchmarks.comparison import page
from benchmarks.comparison.found import Found
from benchmarks.comparison.page import by_client, table, write_page
from benchmarks.comparison.plan import Comparison

PLAN = Comparison.model_validate(
    {
        "name": "toy",
        "seeds": [0, 1],
        "budgets": ["steps", "flops"],
        "reference": "feddat",
        "against": {"student": "adapter", "personal": "ft"},
        "benchmarks": {"b": {"clients": 5}},
        "methods": {
            "feddat": {"personal": "teacher"},
            "adapter": {},
            "ft": {"personal": "local"},
            "late": {},
        },
    }
)


def line(method, seed, student, budget="steps", clients=5, **others):
    """Return a line of clients around a score."""
    branches = {"student": student, **others}
    each = {f"c{i}": {k: v + 0.01 * (i - 2) for k, v in branches.items()} for i in range(clients)}
    scores = {f"{k} mean": v for k, v in branches.items()} | {
        f"{k} worst": v - 0.02 for k, v in branches.items()
    }
    curve = [{"round": r, **branches, "bytes": 1e6 * r, "flops": 1e12 * r} for r in (2, 4)]
    return {
        "plan": "toy",
        "cell": f"b | {method} | {budget}",
        "seed": seed,
        "scores": scores,
        "clients": each,
        "curve": curve,
        "rounds": 4,
        "bytes": 4e6,
        "flops": 4e12,
        "seconds": 90.0,
        "machine": "toy",
    }


LINES = [
    line("feddat", 0, 0.50, teacher=0.60),
    line("feddat", 1, 0.52, teacher=0.64),
    line("adapter", 0, 0.50),
    line("adapter", 1, 0.50),
    line("ft", 0, 0.50, local=0.40),
    line("ft", 1, 0.50, local=0.42),
    {**line("adapter", 0, 0.9), "plan": "another"},
]


def cells(text, method):
    (row,) = [row for row in text.splitlines() if row.startswith(f"| {method} |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_a_table_by_hand():
    text = table(Found(PLAN, LINES), "b", "steps")
    found = cells(text, "feddat")
    assert found[:7] == ["feddat", "2", "51.0 ± 1.4", "49.0 ± 1.4", "teacher", "62.0 ± 2.8", "60.0 ± 2.8"]
    # Five clients of one sign, all alike: 2 of 32, twice that for two methods. In one seed none differs.
    assert found[7] == "+1.0 [+1.0, +1.0], p = 0.12 (1/2 seeds)"
    # No other method has a branch to hold to this one's rival.
    assert found[8] == "+21.0 [+21.0, +21.0], p = 0.062 (2/2 seeds)"
    assert found[9:] == ["4", "4.0", "4.00", "1.5"]
    assert cells(text, "adapter")[4:7] == ["–", "–", "–"]
    assert cells(text, "ft")[7] == "+0.0 [+0.0, +0.0], p = 1 (2/2 seeds)"
    assert "| late |" not in text


def test_what_eight_clients_all_have_is_bold():
    eight = [line("feddat", 0, 0.6, clients=8), line("adapter", 0, 0.5, clients=8)]
    assert cells(table(Found(PLAN, eight), "b", "steps"), "feddat")[2] == "**60.0**"


def test_nothing_is_bold_that_is_worse_or_was_not_tested():
    worse = [line("adapter", 0, 0.5), line("adapter", 1, 0.5), line("late", 0, 0.3), line("late", 1, 0.31)]
    text = table(Found(PLAN, worse), "b", "steps")
    assert "p = 0.062" in text
    assert "**" not in text
    alone = table(Found(PLAN, [line("feddat", 0, 0.9, teacher=0.9)]), "b", "steps")
    assert "**" not in alone


def test_clients_by_hand():
    text = by_client(Found(PLAN, LINES), "b", "steps")
    assert cells(text, "c0") == ["c0", "–", "49.0 / 60.0", "48.0 / –", "48.0 / 39.0"]
    assert len(text.splitlines()) == 2 + 5


def test_what_the_question_alone_gives_stands_beside_them_by_hand():
    lines = [line("feddat", 0, 0.5, **{"text-only": 0.30}), line("adapter", 1, 0.5, **{"text-only": 0.34})]
    # Whatever method told it, each seed counts once.
    lines.append(line("adapter", 0, 0.5, **{"text-only": 0.30}))
    found = Found(PLAN, lines)
    row = cells(table(found, "b", "steps"), "question alone")
    assert row == ["question alone", "2", *["–"] * 3, "32.0 ± 2.8", "30.0 ± 2.8", *["–"] * 6]
    assert cells(by_client(found, "b", "steps"), "c4")[:2] == ["c4", "34.0"]
    assert "question alone | 2" not in table(Found(PLAN, LINES), "b", "steps")


def test_branches_are_held_to_branches_by_hand():
    pairs = [("feddat | teacher", "adapter | student"), ("feddat | student", "question alone")]
    pairs += [("ft | local", "late | student"), ("adapter | student", "ft | local")]
    plan = PLAN.model_copy(update={"pairs": pairs})
    alone = {**line("late", 0, 0.5, "flops"), "clients": {f"c{i}": {"text-only": 0.3} for i in range(5)}}
    text = page.pairs(Found(plan, [*LINES, alone]), "b", "steps")[1]
    # Two of 32 in each; whoever has no line is left out, and what is lost is told as well.
    assert text.splitlines()[2:] == [
        "| feddat: teacher − adapter: student | +12.0 [+12.0, +12.0], p = 0.062 (2/2 seeds) |",
        "| feddat: student − question alone | +20.0 [+18.0, +22.0], p = 0.062 (1/1 seeds) |",
        "| adapter: student − ft: local | +9.0 [+9.0, +9.0], p = 0.062 (2/2 seeds) |",
    ]
    assert page.pairs(Found(PLAN, LINES), "b", "steps") == []


def test_a_page_has_each_benchmark_and_budget_and_its_curves(tmp_path):
    lines = [*LINES, line("adapter", 0, 0.55, "flops")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_page(tmp_path / name / "page.md", PLAN, lines)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"page.md", "page-b-steps.svg", "page-b-flops.svg"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "page.md").read_text()
    assert text.count("](page-b-") == 2
    # Ours is the same within any budget.
    assert text.count("| feddat | 2 | 51.0 ± 1.4 |") == 2
    assert "of 7\nof the plan's 14 cells and seeds" in text
    with pytest.raises(ValueError):
        cells(text, "late")


def test_it_says_that_methods_have_unequal_numbers_of_seeds(tmp_path):
    for lines, said in ((LINES, False), (LINES[:-2], True), ([], False)):
        write_page(tmp_path / "page.md", PLAN, lines)
        assert ("Not all methods have as many seeds." in (tmp_path / "page.md").read_text()) is said


def test_it_says_whose_time_is_not_whole(tmp_path):
    for lines, said in ((LINES, False), ([*LINES[:-1], {**LINES[0], "seed": 2, "resumed": True}], True)):
        write_page(tmp_path / "page.md", PLAN, lines)
        assert ("only the last part counts" in (tmp_path / "page.md").read_text()) is said


def test_it_says_whose_replies_were_refused(tmp_path):
    for lines, said in ((LINES, False), ([{**LINES[0], "refused": 3}, *LINES[1:]], True)):
        write_page(tmp_path / "page.md", PLAN, lines)
        line = f"Replies were refused in {LINES[0]['cell']}, seed {LINES[0]['seed']} (3): what these"
        assert (line in (tmp_path / "page.md").read_text().replace("\n", " ")) is said


def test_it_says_who_never_trained(tmp_path):
    for newcomers in (False, True):
        benchmarks = {"b": {"clients": 5, "newcomers": newcomers}}
        write_page(
            tmp_path / "page.md",
            Comparison.model_validate({**PLAN.model_dump(), "benchmarks": benchmarks}),
            LINES,
        )
        assert ("In b each client in turn never trains" in (tmp_path / "page.md").read_text()) is newcomers


def test_it_says_which_questions_the_scores_are_of(tmp_path):
    for settings, said in (({}, "test"), ({"evaluate-on": "validation"}, "validation")):
        write_page(tmp_path / "page.md", PLAN.model_copy(update={"settings": settings}), [])
        assert f"on each client's own {said} questions" in (tmp_path / "page.md").read_text()
