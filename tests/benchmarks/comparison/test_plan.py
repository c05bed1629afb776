"""Plans in files: those of this project can be run, and a wrong one is refused in a line."""

import pytest

from app.methods import METHODS
from app.settings import read_settings
from benchmarks.comparison.plan import CONTROLS, Comparison
from data_partitions.benchmarks import BENCHMARKS
from tests.conftest import ROOT, default_run_config

PLANS = sorted((ROOT / "recipes" / "study").glob("*.toml"))
SMALLEST = """
seeds = [0]
reference = "feddat"
against = { student = "feddat", personal = "feddat" }
[benchmarks.one]
clients = 2
[methods.feddat]
"""

TWICE = 'over = "clients"' + SMALLEST.replace(
    "clients = 2",
    "clients = 2\nat = 5\nsettings = { benchmark = 'scenes' }\n"
    "[benchmarks.two]\nclients = 3\nat = 5\nsettings = { benchmark = 'scenes' }",
)


NEWCOMERS = SMALLEST.replace("clients = 2", "clients = 2\nnewcomers = true")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_cell_of_a_plan_can_be_run_and_its_branches_are_the_methods(path):
    plan = Comparison.read(path)
    cells = list(plan.cells())
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        settings = read_settings({**default_run_config(), **cell.settings({"data-dir": "/data"})})
        assert settings.benchmark in BENCHMARKS
        branches = METHODS[settings.method].branches
        assert plan.methods[cell.method].personal in ("", *branches)
        sides = (side.split(" | ") for pair in plan.pairs for side in pair if side not in CONTROLS)
        assert all(branch in branches for method, branch in sides if method == cell.method)
    assert path.read_text(encoding="utf-8").startswith(
        f"# python -m benchmarks.study --plan recipes/study/{path.name} "
    )


def test_the_reference_is_run_once_and_the_others_once_for_each_budget():
    plan = Comparison.read(ROOT / "recipes" / "study" / "quick.toml")
    assert [cell.name for cell in plan.cells()] == [
        "scenes-domain | feddat | steps",
        "scenes-domain | adapter | steps",
        "scenes-domain | fedavg-ft | steps",
        "scenes-domain | adapter | flops",
        "scenes-domain | fedavg-ft | flops",
    ]


def test_a_method_may_be_run_within_some_of_the_budgets(tmp_path):
    path = tmp_path / "plan.toml"
    others = (
        '\n[methods.adapter]\nbudgets = ["steps"]\n[methods.local]\nbudgets = ["flops"]\n[methods.head]\n'
    )
    path.write_text('budgets = ["steps", "flops"]' + SMALLEST + others)
    assert [cell.name for cell in Comparison.read(path).cells()] == [
        "one | feddat | steps",
        "one | adapter | steps",
        "one | head | steps",
        "one | local | flops",
        "one | head | flops",
    ]


def test_what_is_given_wins_and_a_data_dir_lies_in_the_commands(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        SMALLEST.replace(
            "clients = 2", 'clients = 2\nsettings = { data-dir = "in", batch-size = 3, seed = 1 }'
        )
    )
    (cell,) = Comparison.read(path).cells()
    assert cell.settings({"data-dir": "/data", "batch-size": 5}) == {
        "data-dir": "/data/in",
        "batch-size": 5,
        "seed": 1,
        "method": "feddat",
    }


def test_each_clients_node_says_its_rank_in_turn(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(SMALLEST.replace("clients = 2", "clients = 3\nranks = [2, 8]"))
    (cell,) = Comparison.read(path).cells()
    assert [cell.node_config(partition) for partition in range(3)] == [
        {"lora-rank": 2},
        {"lora-rank": 8},
        {"lora-rank": 2},
    ]
    path.write_text(SMALLEST)
    assert next(Comparison.read(path).cells()).node_config(0) == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SMALLEST.replace("seeds = [0]", "seeds = []"), "seeds: List should have at least 1 item"),
        (SMALLEST + "[surplus]", "surplus: Extra inputs are not permitted"),
        (SMALLEST.replace('reference = "feddat"', 'reference = "none"'), "'none' is none of its methods"),
        (SMALLEST.replace("clients = 2", "clients = 2\nat = 5"), "one: `at` and `over` need each other"),
        ('over = "clients"' + SMALLEST, "one: `at` and `over` need each other"),
        (TWICE.replace("[benchmarks.two]", "[benchmarks.over]"), "benchmarks.over is a figure's name"),
        (TWICE, "two: another stands there too"),
        (SMALLEST + 'budgets = ["flops"]', "methods.feddat: budgets: flops; allowed: the plan's, steps"),
        (SMALLEST + 'budgets = ["rounds"]', "methods.feddat.budgets.0: Input should be 'steps' or 'flops'"),
        ('pairs = [["feddat | student", "none | student"]]' + SMALLEST, "pairs: 'none | student'; allowed:"),
        (
            'pairs = [["feddat | sutdent", "question alone"]]' + SMALLEST,
            "pairs: 'feddat | sutdent'; allowed:",
        ),
        (SMALLEST + "budgets = []", "methods.feddat.budgets: List should have at least 1 item"),
        (
            'budgets = ["steps", "flops"]' + SMALLEST + 'budgets = ["flops"]',
            "the reference is run at equal steps",
        ),
        (NEWCOMERS + "[methods.fedavg-ft]", "newcomers with fedavg-ft, which trains on their examples"),
        (NEWCOMERS + "[methods.all]\ncentralised = true", "newcomers with all, which trains on their"),
        ('pairs = [["student", "question alone"]]' + SMALLEST, "pairs: 'student'; allowed: 'question alone'"),
        ("seeds = [", "cannot be read: "),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path, text, line):
    (path := tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ValueError) as error:
        Comparison.read(path)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
