"""Text of others in our Markdown: whatever it says, it is read and never rendered.

What a client says of itself, an error or a setting may hold images, links and HTML. To escape their
characters one by one is to trust that a renderer escapes as CommonMark does, and makes no link of a bare
address; in a code span nothing is live in any of them.
"""

import re
from collections.abc import Sequence
from typing import Any

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
