"""``feddat export``: a client's own head and adapters into files, where its private state is."""

from pathlib import Path
from typing import Annotated

import typer

from .doors import run_program
from .runs import ClientOption, NodeConfigOption, RunOption, find_run, newest_run, which_client


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder, which is closed to other users.")],
    client: ClientOption = None,
    node_config: NodeConfigOption = "",
    run: RunOption = "",
) -> None:
    """Save a client's own head and local adapter.

    They are private to the client; PEFT loads the adapter.
    """
    which = which_client(find_run(run) if run else newest_run(), client, node_config)
    run_program("export", "client_app.exporting", [*which, f"--to={folder.expanduser()}"])
