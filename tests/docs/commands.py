"""Commands as pages show them, and what the programs themselves make of their arguments."""

import argparse
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from unittest import mock

import click
import typer
from flwr.cli.app import app as flwr
from flwr.common.config import get_fused_config_from_dir, parse_config_args

from app.settings import read_settings
from server_app.command import app as feddat
from server_app.command.doors import DOORS
from server_app.command.given import read_given
from tests.conftest import ROOT
from tests.flower_programs import PARSERS, parse

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What a reader puts their own in place of.
_PLACEHOLDERS = {
    "FOLDER": "/absolute/path",
    "'RUN_NAME'": "''",
    "'my-run'": "''",
    "NODE_ID": "1",
    "RUN_ID": "1",
}
_PROGRAM = re.compile(r"(?:\.venv/bin/)?(feddat|flwr|python3?|pip|flower-\w+)")


class _ParsedError(Exception):
    """A program has taken its arguments, and would begin."""


def commands_of(script: str) -> Iterator[list[str]]:
    """Yield a script's simple commands, split as the shell does, without variables and redirects."""
    script = re.sub(r"<<\s*'?(\w+)'?\n.*?^\1$", "", script, flags=re.M | re.S)
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|"):
                words.append(word)
                continue
            while words and re.match(r"\w+=|exec$", words[0]):
                words.pop(0)
            if any(set(one) <= set("<>") for one in words):
                words = words[: next(i for i, one in enumerate(words) if set(one) <= set("<>"))]
            if words:
                yield words
            words = []


def try_command(words: Sequence[str]) -> bool:
    """Have a program of ours or of Flower's take its arguments; return whether it is one.

    Raises
    ------
    Exception
        Whatever the program raises of arguments that it does not take.
    """
    if not (found := _PROGRAM.fullmatch(words[0])):
        return False
    program, arguments = found[1], [_filled(word) for word in words[1:]]
    if program == "feddat":
        _try_feddat(arguments)
    elif program == "flwr":
        _parse(flwr, "flwr", arguments)
        if arguments[:1] == ["run"] and "--run-config" in arguments:
            given = [arguments[arguments.index("--run-config") + 1]]
            read_settings(get_fused_config_from_dir(ROOT, parse_config_args(given)))
    elif program in PARSERS:
        parse(program, arguments)
    elif program == "pip":
        for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= set(EXTRAS), extras
    elif arguments[:1] == ["-m"] and arguments[1] not in ("venv", "pytest"):
        _try_module(arguments[1], arguments[2:])
    return True


def _try_feddat(arguments: list[str]) -> None:
    _parse(feddat, "feddat", arguments)
    if arguments[:1] in (["run"], ["check"]):
        options = {"--gpus", "--cpus", "--superlink", "--port", "--compare"}
        options |= {"--node-config", "--run-config", "--root-certificates"}
        before = ["", *arguments[1:]]
        words = [
            word
            for word, last in zip(arguments[1:], before, strict=False)
            if word not in options and last not in options
        ]
        # A run that is gone on with would have to be there; a recipe of a reader's own as well.
        read_given(ROOT, [word for word in words if not word.startswith("resume=") and word != "mine.toml"])
    elif arguments[:1] and arguments[0] in DOORS:
        _try_module(DOORS[arguments[0]][0], arguments[1:])


def _parse(app: typer.Typer, name: str, arguments: list[str]) -> None:
    """Parse down to the last subcommand, and call none."""
    command: click.Command = typer.main.get_command(app)
    parent = None
    while True:
        parent = command.make_context(name, list(arguments), parent=parent)
        arguments = [*parent._protected_args, *parent.args]
        if not isinstance(command, click.Group) or not arguments:
            return
        name, found, arguments = command.resolve_command(parent, arguments)
        assert found is not None
        command = found


def _try_module(name: str, arguments: list[str]) -> None:
    """Start a program, and stop it where its arguments are read."""
    found = importlib.import_module(name)
    module = importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object, **named: object) -> None:
        read(parser, *given, **named)  # type: ignore[call-overload]
        raise _ParsedError

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            module.main(arguments)
        except _ParsedError:
            return
    raise AssertionError(f"{name} has read no arguments")


def _filled(word: str) -> str:
    for placeholder, value in _PLACEHOLDERS.items():
        word = word.replace(placeholder, value)
    return word


def is_program(words: str) -> bool:
    """Whether code is a command of ours or of Flower's, with arguments."""
    return bool(re.match(r"(\.venv/bin/)?(feddat|flwr|python3? -m|flower-\w+) ", words))
