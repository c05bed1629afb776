"""The recipes: each is a run-config that can be used, and opens with the commands that run it."""

import re
import shlex
from pathlib import Path

import pytest
from flwr.common.config import get_fused_config_from_dir, parse_config_args

from app.settings import read_settings
from server_app.command.given import read_given
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def test_there_are_recipes():
    assert len(RECIPES) > 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    def test_its_settings_can_be_used_and_differ_from_the_defaults(self, path):
        """Read as Flower does: the file's tables become keys with dots, which must be among the defaults."""
        own = parse_config_args([str(path)])
        read = read_settings(get_fused_config_from_dir(ROOT, own)).run_config()
        assert own.items() <= read.items()
        assert read != get_fused_config_from_dir(ROOT, {})

    def test_its_first_line_is_the_command_that_runs_it(self, path):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        command = shlex.split(first.removeprefix("# "))
        assert first.startswith("# flwr run . ")
        assert command[command.index("--run-config") + 1] == f"recipes/{path.name}"

    def test_its_second_line_is_the_projects_own_command_for_the_same(self, path):
        second = path.read_text(encoding="utf-8").splitlines()[1]
        feddat, run, *words = shlex.split(second.removeprefix("# "))
        assert (feddat, run) == ("feddat", "run")
        assert read_given(ROOT, words).overrides == parse_config_args([str(path)])

    def test_as_many_clients_are_simulated_as_the_run_waits_for(self, path):
        own = parse_config_args([str(path)])
        nodes = int(re.search(r"num-supernodes=(\d+)", path.read_text(encoding="utf-8"))[1])
        assert own.get("num-clients", nodes) == nodes


def test_the_readme_shows_one():
    named = set(re.findall(r"recipes/[\w-]+\.toml", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named
    assert all((ROOT / Path(name)).is_file() for name in named)
