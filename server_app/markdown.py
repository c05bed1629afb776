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
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .scores import in_short

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
    """A table that is made as narrow as it must be, so that a terminal folds no word of it.

    One of scores: its heads go on in a second line; then they have one word, explained below; then it loses
    its space; last its names go on after a hyphen.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self.header
        assert self.header.row
        assert self.body
        heads = [cell.content for cell in self.header.row.cells]
        full, legend = [head.plain for head in heads], ""
        for narrow in range(5 if in_short(full)[0] != full else 1):
            if narrow == 1:
                _write(heads, [head.replace(" (", "\n(") for head in full])
            elif narrow == 2:
                short, legend = in_short(full)
                _write(heads, short)
            elif narrow == 4:
                names = [row.cells[0].content for row in self.body.rows]
                _write(names, [name.plain.replace("-", "-\n") for name in names])
            (shown,) = super().__rich_console__(console, options)
            assert isinstance(shown, Table)
            if narrow > 2:
                shown.padding, shown.show_edge = 0, False
            shown.caption, shown.caption_justify = legend or None, "left"
            for column in shown.columns:
                column.overflow = "fold"  # what is cut off cannot be read
            if Measurement.get(console, options.update(width=10_000), shown).maximum <= options.max_width:
                break
        yield shown


def _write(cells: Sequence[Text], lines: Sequence[str]) -> None:
    """Give cells other text, in their styles."""
    for cell, line in zip(cells, lines, strict=True):
        cell.plain = line


def without_settings(report: str) -> str:
    """Return a report without what is folded away in a browser."""
    return report.partition("\n<details>")[0]


class OnScreen(Markdown):
    """A report as a terminal shows it: without what is folded away in a browser, and without pictures."""

    elements = Markdown.elements | {"table_open": _WholeTable}

    def __init__(self, report: str) -> None:
        super().__init__(re.sub(r"^!\[.*\)\n", "", without_settings(report), flags=re.MULTILINE))
