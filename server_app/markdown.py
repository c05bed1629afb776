"""Text of others in our Markdown: whatever it says, it is read and never rendered.

What a client says of itself, an error or a setting may hold images, links and HTML. To escape their
characters one by one is to trust that a renderer escapes as CommonMark does, and makes no link of a bare
address; in a code span nothing is live in any of them.
"""

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table

BAR = r"\|"  # in a cell of a table, also in a code span
# Letters and digits of all languages, and marks that mean nothing where they stand.
_HARMLESS = re.compile(r"(?:[^\W_]|[ ,;%()=+·–−-]|(?<=[^\W_])_(?=[^\W_])|(?<=\d)[.:](?=\d)|(?<=\w): (?=\w))*")


def text(value: Any) -> str:
    """Return a value in one line: as it is where that is harmless, else as a code span."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    if _HARMLESS.fullmatch(line):
        return line
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]], align: str = "---") -> str:
    """Return a table whose first column is aligned to the left, and the others by `align`."""
    rule = f"| {' | '.join(['---', *[align] * (len(header) - 1)])} |"
    written = [f"| {' | '.join(text(cell).replace('|', BAR) for cell in row)} |" for row in (header, *lines)]
    return "\n".join([written[0], rule, *written[1:]])


class _WholeTable(TableElement):
    """A table whose headings and names go on in the next line: what is cut off cannot be read."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for shown in super().__rich_console__(console, options):
            for column in shown.columns if isinstance(shown, Table) else ():
                column.overflow = "fold"
            yield shown


class OnScreen(Markdown):
    """A report as a terminal shows it; what is folded away in a browser is left out."""

    elements = Markdown.elements | {"table_open": _WholeTable}

    def __init__(self, report: str) -> None:
        super().__init__(report.partition("\n<details>")[0])
