"""Records of the files of others, one after another, each with where it stands: JSON, JSON lines, parquet."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .conversations import COLUMNS, form_of
from .pictures import BadRowError, one_line

KINDS = (".json", ".jsonl", ".parquet")
LARGEST_JSON = 2_000_000_000  # bytes of a JSON file, which is read whole
LONGEST_LINE = 50_000_000
_BATCH = 64  # rows in memory at a time
# Where a record stands in words; and the record, or why it cannot be read.
Record = tuple[str, dict[str, Any] | BadRowError]


def records_of(path: Path, name: str, kind: str = "") -> Iterator[Record]:
    """Yield the records of a file, which errors call `name`; its `kind` is its name's ending if not given.

    Raises
    ------
    ValueError
        Naming the file, and in JSON the line, that cannot be read.
    """
    reader = {".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}[kind or path.suffix]
    try:
        yield from reader(path, name)
    except ValueError:
        raise
    except OSError as error:
        raise ValueError(f"data-dir: {name} cannot be read ({one_line(error)})") from None


def records_of_tables(tables: Iterable[pa.Table | pa.RecordBatch], name: str) -> Iterator[Record]:
    """Yield the rows of tables, images as the bytes they are; for a text that is not UTF-8 that it is not.

    Raises
    ------
    ValueError
        Naming what cannot be read.
    """
    index = 0
    try:
        for table in tables:
            for row in _rows(table):
                yield f"{name} row {index}", row
                index += 1
    # A damaged file makes its reader raise whatever it will.
    except Exception as error:
        raise ValueError(f"data-dir: {name} cannot be read ({one_line(error)})") from None


def _rows(table: pa.Table | pa.RecordBatch) -> Iterable[dict[str, Any] | BadRowError]:
    try:
        table.validate(full=True)
        return table.to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if table.num_rows > 1:
            return [row for index in range(table.num_rows) for row in _rows(table.slice(index, 1))]
        if "utf" in str(error).lower():
            return [BadRowError("a text is not UTF-8")]
        raise


def _parquet(path: Path, name: str) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except Exception as error:
        raise ValueError(f"data-dir: {name} is not a readable parquet file ({one_line(error)})") from None
    try:
        form_of(names)
    except BadRowError as fault:
        raise ValueError(f"data-dir: {name} {fault}") from None
    columns = [column for column in names if column in COLUMNS]
    return records_of_tables(file.iter_batches(batch_size=_BATCH, columns=columns), name)


def _json_lines(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{name} line {number}"
            if len(line) > LONGEST_LINE:
                raise ValueError(f"data-dir: {where} is longer than LONGEST_LINE = {LONGEST_LINE} bytes")
            if line.strip():
                yield where, _object(line)


def _object(line: bytes) -> dict[str, Any] | BadRowError:
    try:
        found = json.loads(line.decode())
    except json.JSONDecodeError as error:  # whose own text counts the lines of this one
        return BadRowError(f"no JSON ({error.msg}, at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return BadRowError(f"no JSON ({one_line(error)})")
    return found if isinstance(found, dict) else BadRowError("no JSON object")


def _json(path: Path, name: str) -> Iterator[Record]:
    """Yield a list's objects, decoded one by one, so that each has the number of its line."""
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(
            f"data-dir: {name} has {size} bytes; allowed: {LARGEST_JSON}, or JSON lines in a .jsonl"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data-dir: {name} is not UTF-8 ({one_line(error)})") from None
    decoder, place, line = json.JSONDecoder(), 0, 1

    def skip(separators: str) -> str:
        """Go on to what is neither blank nor one of the separators, and return it."""
        nonlocal place, line
        start = place
        while place < len(text) and (text[place].isspace() or text[place] in separators):
            separators = separators if text[place].isspace() else ""
            place += 1
        line += text.count("\n", start, place)
        return text[place : place + 1]

    if skip("") != "[":
        raise ValueError(f"data-dir: {name} line {line}: no JSON list")
    place += 1
    end = skip("")
    while end != "]":
        where = f"{name} line {line}"
        try:
            found, after = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else one_line(error)
            at = line + (text.count("\n", place, error.pos) if isinstance(error, json.JSONDecodeError) else 0)
            raise ValueError(f"data-dir: {name} line {at}: no JSON ({reason})") from None
        yield where, found if isinstance(found, dict) else BadRowError("no JSON object")
        line += text.count("\n", place, after)
        place = after
        end = skip("")
        if end == ",":
            end = skip(",")
        elif end != "]":
            raise ValueError(f"data-dir: {name} line {line}: no JSON (no comma, and no end of the list)")
