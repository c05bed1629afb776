"""``feddat export``: a client's own head and adapters into files, where its private state is."""

from pathlib import Path
from typing import Annotated

import typer

from .doors import run_program
from .runs import find_run, newest_run, which_client


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder, which is closed to other users.")],
    client: Annotated[
        int | None, typer.Option(help="Which of a simulation's clients on this machine, from 0.")
    ] = None,
    node_config: Annotated[
        str, typer.Option(help="At a site instead: its settings, as flower-supernode gets them.")
    ] = "",
    run: Annotated[str, typer.Option(help="Name of the run. Without it: the newest.")] = "",
) -> None:
    """Save a client's own head and local adapter.

    They are private to the client; PEFT loads the adapter.
    """
    which = which_client(find_run(run) if run else newest_run(), client, node_config)
    run_program("export", "client_app.exporting", [*which, f"--to={folder.expanduser()}"])
