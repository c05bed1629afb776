"""The rows of a run that goes on, as far as they can be read: a file of any content is no error."""

import json
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

from app.measurements import MEASURED, SAID, Range
from strategies import one_line
from strategies.metrics import OF_THE_SERVER

from .rows import RESERVED, SERVER, TEST_EXAMPLES

_RANGES: dict[str, Range] = {
    **MEASURED["train"],
    **MEASURED["evaluate"],
    **SAID,
    **OF_THE_SERVER,
    TEST_EXAMPLES: MEASURED["evaluate"]["num-examples"],
}
_LARGEST = 1e100


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows that can be read, of a run that may be going on; the file stays as it is."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [row for row, _ in map(_row, lines) if row is not None]


def read_rows(path: Path, last_round: int) -> tuple[list[dict[str, Any]], str]:
    """Read the rows up to a round; what cannot be read is set aside, in a file beside it.

    Parameters
    ----------
    path : Path
        ``metrics.jsonl``, or nothing.
    last_round : int
        Rows of later rounds are left out, and so is a last line without an end: a stop cut it in the middle.

    Returns
    -------
    list[dict]
        The rows, without what may not stand in one.
    str
        What is wrong, in one line; empty if nothing is.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        unread = ""
    except OSError as error:
        data, unread = b"", f"cannot be read: {one_line(error)}"
    *lines, cut = data.split(b"\n")
    rows = [_row(line) for line in lines]
    kept = [row for row, _ in rows if row is not None and row["round"] <= last_round]
    wrong = [unread] if unread else []
    if damaged := sum(not whole for _, whole in rows):
        wrong.append(f"{damaged} of {len(lines)} lines are damaged")
    if wrong:
        aside = next(p for i in count(1) if not (p := path.with_name(f"{path.name}.damaged-{i}")).exists())
        path.rename(aside)
        wrong.append(f"it is kept as {aside.name}")
    if cut:
        wrong.append("its last line was cut")
    rounds = {row["round"] for row in kept}
    if lost := [number for number in range(1, last_round + 1) if number not in rounds]:
        wrong.append(f"nothing is known of {len(lost)} rounds, the first of them {lost[0]}")
    return kept, "; ".join(wrong)


def _row(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Return what can be used of a line, and whether that is all of it."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None, False
    if not isinstance(said, dict):
        return None, False
    number, partition = said.get("round"), said.get("partition")
    if type(number) is not int or type(partition) is not int or number < 0 or partition < SERVER:
        return None, False
    if isinstance(said.get("refused"), str) and isinstance(said.get("phase"), str):
        row = {key: one_line(value) if isinstance(value, str) else value for key, value in said.items()}
        row = {key: row[key] for key in row if key in RESERVED}
    else:
        row = {key: nan if value is None else value for key, value in said.items() if _is_good(said, key)}
    return row, row.keys() == said.keys()


def _is_good(said: dict[str, Any], key: str) -> bool:
    value = said[key]
    if key in ("round", "partition"):
        return True
    if key == "name":
        return isinstance(value, str) and value == one_line(value, 60)
    if value is None:
        return key not in RESERVED
    if type(value) not in (int, float) or key in RESERVED:
        return False
    if said["partition"] == SERVER:  # it measures under any name, but counts of the clients alone
        bounds = None if key in OF_THE_SERVER else (-_LARGEST, _LARGEST)
    else:
        bounds = _RANGES.get(key)
    return bounds is not None and bounds[0] <= value <= bounds[1]
