"""Commands that are programs of the checkout, with the arguments that these take."""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence

import typer

from .checkout import checkout
from .refusal import Refusal

# Command → module with a `main(arguments, prog)`, and what it does.
DOORS = {
    "annotate": (
        "server_app.teachers.__main__",
        "Have a teacher model give its answers or captions beforehand.",
    ),
    "pretrain": ("server_app.pretraining.__main__", "Pretrain a backbone on the server's public images."),
    "study": ("benchmarks.study", "Run methods over several seeds and compare them."),
}
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def open_all(app: typer.Typer) -> None:
    """Add the commands."""
    for name, (module, does) in DOORS.items():
        app.command(name, help=f"{does} Its options: feddat {name} --help", context_settings=_PASSED_ON)(
            _door(name, module)
        )


def run_program(name: str, module: str, arguments: Sequence[str]) -> None:
    """Do what ``python -m MODULE ARGUMENTS`` does, under the command's own name, and end with its code.

    Raises
    ------
    Refusal
        The program refused a setting.
    """
    checkout()
    from app.settings import SettingsError

    # What libraries think of each other's code is not the user's business.
    warnings.simplefilter("ignore")
    try:
        sys.exit(importlib.import_module(module).main([*arguments], prog=f"feddat {name}"))
    except SettingsError as error:
        raise Refusal(str(error)) from None


def _door(name: str, module: str) -> Callable[[typer.Context], None]:
    def door(context: typer.Context) -> None:
        run_program(name, module, context.args)

    return door
