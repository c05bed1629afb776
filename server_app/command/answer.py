"""``feddat answer``: ask a client of a run, where its private state is."""

from pathlib import Path
from typing import Annotated

import typer

from .doors import run_program
from .refusal import Refusal
from .runs import ClientOption, NodeConfigOption, RunOption, find_run, newest_run, which_client


def answer(
    image: Annotated[
        list[Path],
        typer.Option(help="File of a picture; once for each that the client's examples have."),
    ],
    question: Annotated[str, typer.Option(help="What is asked.")],
    client: ClientOption = None,
    node_config: NodeConfigOption = "",
    run: RunOption = "",
    top: Annotated[int, typer.Option(min=1, help="How many answers are shown.")] = 3,
) -> None:
    """Ask a client about a picture.

    Shows what its student, local and teacher branch answer.
    """
    found = find_run(run) if run else newest_run()
    which = which_client(found, client, node_config)
    for one in image:
        if not one.expanduser().is_file():
            raise Refusal(f"image = {str(one)!r} is not a file; allowed: a picture")
    about = (*(f"--image={one.expanduser()}" for one in image), f"--question={question}")
    run_program("answer", "client_app.asking", [*which, f"--top={top}", *about])
