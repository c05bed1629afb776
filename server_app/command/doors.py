"""Commands that are programs of the checkout, with the arguments that these take."""

import runpy
import sys
from collections.abc import Callable, Sequence

import typer

from .checkout import checkout

# Command → module that `python -m` runs, and what it does.
DOORS = {
    "check": ("client_app.check", "Check a site before it joins."),
    "annotate": ("server_app.teachers", "Have a teacher model say its answers or captions beforehand."),
    "pretrain": ("server_app.pretraining", "Pretrain a backbone on the server's public images."),
    "study": ("benchmarks.study", "Run methods over several seeds and compare them."),
}
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def open_all(app: typer.Typer) -> None:
    """Add the commands."""
    for name, (module, does) in DOORS.items():
        app.command(name, help=f"{does} Its options: feddat {name} --help", context_settings=_PASSED_ON)(
            _door(module)
        )


def run_program(module: str, arguments: Sequence[str]) -> None:
    """Do what ``python -m MODULE ARGUMENTS`` does."""
    checkout()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _door(module: str) -> Callable[[typer.Context], None]:
    def door(context: typer.Context) -> None:
        run_program(module, context.args)

    return door
