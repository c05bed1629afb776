"""The plans: what they set can be run, and their cells are what their kinds say."""

import pytest

from app.settings import read_settings
from benchmarks.plans import PLANS
from data_partitions.benchmarks import BENCHMARKS
from tests.conftest import default_run_config

GIVEN = {"data-dir": "/data", "teacher.model": "/teacher.parquet"}


@pytest.mark.parametrize("name", PLANS)
def test_the_settings_of_every_cell_can_be_run(name):
    plan = PLANS[name]
    for cell in plan.cells:
        settings = read_settings({**default_run_config(), **plan.settings, **GIVEN, **cell.settings})
        assert settings.benchmark in BENCHMARKS
        aligns = {"run": ("none", "each-round", "end"), "end": ("end",)}.get(cell.kind, ("each-round",))
        assert settings.align.when in aligns


@pytest.mark.parametrize("name", PLANS)
def test_the_plain_federation_is_first_and_every_name_is_there_once(name):
    first, *others = PLANS[name].cells
    assert (first.kind, first.settings) == ("run", {})
    assert len({cell.name for cell in PLANS[name].cells}) == len(others) + 1
    # A gain means nothing without both.
    assert {"server only: CE", "server only: CE + KL", "teacher alone"} <= {cell.name for cell in others}


@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith("cifar")])
def test_a_pool_of_a_long_tailed_plan_has_no_row_that_a_client_or_the_toy_teacher_has(name):
    settings = PLANS[name].settings
    # The toy teacher learns from rows 500 to 2,500 of each of the ten classes.
    assert settings["public.examples"] / 10 <= 500
    assert settings["public-per-class"] >= 2500
