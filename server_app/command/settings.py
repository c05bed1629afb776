"""``feddat settings``: every setting, by its comment in pyproject.toml and its field in ``app.settings``.

``feddat settings > docs/settings.md`` writes the page.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.markdown import Markdown

from .checkout import checkout
from .refusal import Refusal

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_TABLE = "tool.flwr.app.config"
_KINDS: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text"}
_LIMITS = {
    "gt": "more than {}",
    "ge": "at least {}",
    "lt": "less than {}",
    "le": "at most {}",
    "min_length": "{} or more characters",
    "max_length": "at most {} characters",
}
_OPENING = """\
# Settings

All settings of a run, made from `pyproject.toml` by `feddat settings`. Change any for one run with
`feddat run KEY=VALUE`: [Settings and recipes](recipes.md). A value that is not allowed is
refused in one line before anything starts.
"""


@dataclass(frozen=True)
class Documented:
    """A setting as pyproject.toml shows it.

    Attributes
    ----------
    group : str
        The heading that it stands under.
    key, default, comment : str
        Its name in the run-config, its default as TOML writes it, and what is said above it.
    """

    group: str
    key: str
    default: str
    comment: str


def settings(
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only those with this in their name.")] = "",
) -> None:
    """Show the settings.

    What each does, its default, and what is allowed.
    """
    page = settings_page(checkout(), word)
    console = Console()
    console.print(Markdown(page)) if console.is_terminal else typer.echo(page, nl=False)


def settings_page(root: Path, word: str = "") -> str:
    """Return the settings whose name has `word` in it, as a page of Markdown.

    Raises
    ------
    Refusal
        No setting has.
    """
    from app.settings import Settings

    fields = Settings.fields()
    shown = [one for one in documented((root / "pyproject.toml").read_text("utf-8")) if word in one.key]
    if not shown:
        raise Refusal(f"word = {word!r} is in the name of no setting; allowed: {', '.join(fields)}")
    parts, group = [_OPENING], ""
    for one in shown:
        if one.group != group:
            parts.append(f"## {_in_code(one.group)}\n")
            group = one.group
        about = f"Default `{one.default}`. Allowed: {allowed(fields[one.key])}."
        parts.append(f"### `{one.key}`\n\n{_in_code(one.comment)}\n\n{about}\n")
    return "\n".join(parts)


def documented(pyproject: str) -> Iterator[Documented]:
    """Yield the settings in their order; headings are comments between dashes."""
    lines = iter(pyproject.splitlines())
    prefix: str | None = None
    group, comment = "", []
    for line in lines:
        if table := re.fullmatch(r"\[([\w.-]+)\]", line):
            inside = table[1] == _TABLE or table[1].startswith(f"{_TABLE}.")
            prefix = (table[1] + ".").removeprefix(f"{_TABLE}.") if inside else None
        elif heading := re.fullmatch(r"# --- (.+) ---", line):
            group = heading[1]
        elif line.startswith("# "):
            comment.append(line.removeprefix("# "))
            continue
        elif prefix is not None and (setting := re.fullmatch(r"([\w-]+) = (.+)", line)):
            yield Documented(group, prefix + setting[1], setting[2], " ".join(comment))
        comment = []


def allowed(field: "FieldInfo") -> str:
    """Say which values a field takes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`'{value}'`" for value in get_args(field.annotation))
    limits = {
        name: words.format(getattr(one, name))
        for one in field.metadata
        for name, words in _LIMITS.items()
        if hasattr(one, name)
    }
    return ", ".join([_KINDS[field.annotation], *limits.values()])


def _in_code(comment: str) -> str:
    """Set what is quoted in code, so that nothing in it is Markdown."""
    return re.sub(r"(?<![\w'])('[^']*')(?!\w)", r"`\1`", comment)
