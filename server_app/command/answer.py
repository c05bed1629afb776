"""``feddat answer``: ask a client of a run, where its private state is."""

from pathlib import Path
from typing import Annotated

import typer

from .doors import run_program
from .refusal import Refusal
from .runs import find_run


def answer(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    client: Annotated[int, typer.Option(help="Which of its clients, from 0.")],
    image: Annotated[Path, typer.Option(help="File of a picture.")],
    question: Annotated[str, typer.Option(help="What is asked.")],
    top: Annotated[int, typer.Option(min=1, help="How many answers are shown.")] = 3,
) -> None:
    """Show what a client's student, local and teacher branch answer to a question about a picture."""
    found = find_run(run)
    from server_app.rows import names_of

    names = names_of(found.rows)
    if client not in names:
        clients = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise Refusal(f"client = {client} is none of the run {run!r}; allowed: {clients or 'none yet'}")
    if not image.expanduser().is_file():
        raise Refusal(f"image = {str(image)!r} is no file; allowed: a picture")
    asked = ("--folder", found.folder, "--client", client, "--of", len(names), "--top", top)
    about = (f"--image={image.expanduser()}", f"--question={question}")
    run_program("client_app.asking", [*map(str, asked), *about])
