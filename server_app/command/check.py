"""``feddat check``: what a site, or whoever simulates, can find out before a run."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .checkout import checkout
from .doors import run_program
from .refusal import Refusal


def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="Of the run, as feddat run gets them."),
    ] = None,
    node_config: Annotated[
        str,
        typer.Option(
            help="As flower-supernode gets it. Without it: all clients of a simulation here are checked."
        ),
    ] = "",
    run_config: Annotated[str, typer.Option(help="As flwr run gets it, in place of the words.")] = "",
    superlink: Annotated[str, typer.Option(help="HOST:PORT. Without it no SuperLink is asked.")] = "",
    root_certificates: Annotated[
        str, typer.Option(help="File of the SuperLink's CA. Without it: the system's.")
    ] = "",
) -> None:
    """Check a site before it joins, or the clients of a simulation.

    Prints one line a check, ok or FAIL.
    """
    if words and run_config:
        raise Refusal(f"--run-config = {run_config!r} with {' '.join(words)}; allowed: one of the two")
    with tempfile.TemporaryDirectory() as folder:
        if words:
            from .given import read_given

            settings = Path(folder) / "run-config.toml"
            given = read_given(checkout(), words).overrides
            # A JSON string is one of TOML's too.
            settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
            run_config = str(settings)
        options = {
            "node-config": node_config,
            "run-config": run_config,
            "superlink": superlink,
            "root-certificates": root_certificates,
        }
        arguments = [f"--{name}={value}" for name, value in options.items() if value]
        run_program("check", "client_app.check", arguments)
