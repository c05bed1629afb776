"""Every command that a page shows is one that its program takes."""

import subprocess
from importlib.util import find_spec

import click
import pytest

from server_app.command.refusal import Refusal
from tests.conftest import ROOT

from .commands import commands_of, is_program, try_command
from .pages import PAGES, blocks, in_running_text

SCRIPTS = blocks("bash")


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_a_script_is_one_and_its_programs_take_their_arguments(block):
    read = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert read.returncode == 0, read.stderr
    for words in commands_of(block.text):
        try_command(words)


def test_commands_in_running_text_are_taken_too():
    """Whole ones; of others, which leave to the reader what is given, the program's name."""
    said = {(page.name, words) for page in PAGES for words in in_running_text(page) if is_program(words)}
    given = {one for one in said if "=" in one[1] or " --" in one[1]}
    whole = {one for one in given if "VALUE" not in one[1] and not one[1].split()[-1].startswith("-")}
    assert len(whole) > 2
    for page, words in sorted(whole):
        for command in commands_of(words):
            assert try_command(command), page
    for page, words in said - whole:
        _, *arguments = words.split()
        assert arguments[0] != "-m" or find_spec(arguments[1]), page


def test_most_scripts_have_a_command_that_is_tried():
    ours = [block for block in SCRIPTS if any(is_program(" ".join(one)) for one in commands_of(block.text))]
    assert len(ours) > 40


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("feddat run nosuch=1", Refusal),
        ("feddat run nosuch", Refusal),
        ("feddat run --nosuch 1", click.UsageError),
        ("feddat nosuch", click.UsageError),
        ("feddat runs compares one two", click.UsageError),
        ("feddat check --nosuch", click.UsageError),
        ("feddat check nosuch=1", Refusal),
        ("flwr run . --nosuch", click.UsageError),
        ('flwr run . --run-config "nosuch=1"', ValueError),
        ("python -m benchmarks.step --nosuch", SystemExit),
        ("python -m benchmarks.nosuch", ImportError),
        ("flower-superlink --nosuch", SystemExit),
        ('pip install -e ".[nosuch]"', AssertionError),
    ],
)
def test_what_is_not_there_is_noticed(command, error):
    (words,) = commands_of(command)
    with pytest.raises(error):
        try_command(words)


def test_a_script_is_split_as_the_shell_does():
    script = "A=1 feddat run \\\n  x=\"a b\" > file && cd y; cat <<'X'\nflwr run\nX\nexec flwr ls # why\n"
    assert list(commands_of(script)) == [["feddat", "run", "x=a b"], ["cd", "y"], ["cat"], ["flwr", "ls"]]


def test_recipes_that_pages_name_are_there():
    named = {
        words
        for page in PAGES
        for words in in_running_text(page)
        if words.startswith("recipes/") and words.endswith(".toml")
    }
    assert named >= {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert all((ROOT / name).is_file() for name in named if "*" not in name and "NAME" not in name)
