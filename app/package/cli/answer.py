"""``feddat answer``: ask a client of a run, where its private state is."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .refusal import Refusal


def answer(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    client: Annotated[int, typer.Option(help="Which of its clients, from 0.")],
    image: Annotated[Path, typer.Option(help="File of a picture.")],
    question: Annotated[str, typer.Option(help="What is asked.")],
    top: Annotated[int, typer.Option(min=1, help="How many answers are shown.")] = 3,
) -> None:
    """Show what a client's student, local and teacher branch answer to a question about a picture."""
    from .runs import find_run

    found = find_run(run)
    from server_app.rows import names_of

    names = names_of(found.rows)
    if client not in names:
        clients = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise Refusal(f"client = {client} is none of the run {run!r}; allowed: {clients or 'none yet'}")
    if not image.expanduser().is_file():
        raise Refusal(f"image = {str(image)!r} is no file; allowed: a picture")
    # What transformers thinks of its own code is not the asker's business.
    warnings.simplefilter("ignore")
    from client_app.asking import Asked

    try:
        said = Asked.of_run(found.folder, client, len(names)).answer(question, image.expanduser(), top)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from None
    table = Table("", *said, title=escape(f"{question} ({names[client]})"))
    for place, answers in enumerate(zip(*said.values(), strict=True), start=1):
        shown = (
            f"{text} ({probability:.0%})" if probability == probability else "–"
            for text, probability in answers
        )
        table.add_row(str(place), *map(escape, shown))
    Console(highlight=False).print(table)
