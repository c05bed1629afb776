"""What the installed Flower's programs make of their arguments."""

from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module

# The modules' names are hidden by the functions of the same names.
PARSERS = {
    "flower-superlink": ("flwr.superlink.cli.flower_superlink", "_parse_args_run_superlink"),
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
    "flower-superexec": ("flwr.supercore.cli.flower_superexec", "_parse_args"),
}


def parse(program: str, arguments: Sequence[str]) -> Namespace:
    """Parse arguments as the program will; those that it does not know end in SystemExit."""
    module, parser = PARSERS[program]
    return getattr(import_module(module), parser)().parse_args(arguments)
