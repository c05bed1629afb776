"""Parquet files of questions about pictures: which there are, and which of their rows can be used."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .conversations import LONGEST_TEXT
from .options import DataOptions
from .partition import SPLITS
from .pictures import image_fault
from .pictures import one_line as _line

TEXT_COLUMNS = ("image_id", "question", "answer", "split")
SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
_BATCH = 64  # rows in memory at a time


def domain_files(options: DataOptions) -> list[Path]:
    """List the files of the folder, each with the columns that a domain needs."""
    files = sorted(options.folder("a folder of parquet files").glob("*.parquet"))
    if not files:
        raise ValueError(f"data-dir = {options.data_dir!r} has no parquet files; allowed: one or more")
    for path in files:
        check_columns(path)
    return files


def check_columns(path: Path) -> None:
    """Raise a ValueError naming the file and what is wrong, unless it has the columns that a domain needs."""
    try:
        schema = pq.read_schema(path)
    # A damaged file makes its reader raise whatever it will, here and below.
    except Exception as error:
        raise ValueError(f"data-dir: {path.name} is not a readable parquet file ({_line(error)})") from None
    for column in ("image", *TEXT_COLUMNS):
        if column not in schema.names:
            raise ValueError(
                f"data-dir: {path.name} has no column {column!r}; it has {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if column == "image":
            wanted = "struct of bytes and path"
            right = pa.types.is_struct(kind) and any(
                field.name == "bytes" and field.type in (pa.binary(), pa.large_binary()) for field in kind
            )
        else:
            wanted = "string"
            right = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not right:
            raise ValueError(f"data-dir: {path.name} column {column!r} is {kind}; allowed: {wanted}")


def domain_name(path: Path) -> str:
    """Name a file's domain: what its `domain` column says in the first row, or else the file's name."""
    try:
        file = pq.ParquetFile(path)
        if "domain" not in file.schema_arrow.names or not file.metadata.num_rows:
            return path.stem
        first = next(file.iter_batches(batch_size=1, columns=["domain"]))
        first.validate(full=True)
        return str(first["domain"][0].as_py() or path.stem)
    except Exception as error:
        raise ValueError(f"data-dir: {path.name} column 'domain' cannot be read ({_line(error)})") from None


def good_rows(path: Path, on_bad_row: str) -> tuple[datasets.Dataset, dict[str, int]]:
    """Find the rows that can be used, and for each split how many cannot.

    The file is read a part at a time, and nothing of it is written anywhere.

    Parameters
    ----------
    path : Path
        A file with the columns that a domain needs.
    on_bad_row : str
        "error" or "skip".

    Returns
    -------
    Dataset
        The texts of the good rows, in the columns `TEXT_COLUMNS`; ``row`` counts the file's rows from 0.
    dict
        Split → rows that cannot be used.

    Raises
    ------
    ValueError
        The file cannot be read; or with "error" naming the first bad row and what is wrong with it.
    """
    good: dict[str, list] = {name: [] for name in (*TEXT_COLUMNS, "row")}
    skipped: Counter[str] = Counter()
    faults: dict[bytes, str] = {}
    for index, row in enumerate(_read(path, ["image.bytes", *TEXT_COLUMNS])):
        fault = _text_fault(row) or _fault(row, faults)
        if not fault:
            for name, values in good.items():
                values.append(index if name == "row" else row[name])
        elif on_bad_row == "error":
            raise ValueError(
                f"data-dir: {path.name} row {index}: {fault} (on-bad-row = 'skip' leaves such rows out)"
            )
        else:
            skipped[SPLIT_OF.get(row["split"], "unknown")] += 1
    features = datasets.Features(
        {name: datasets.Value("int64" if name == "row" else "string") for name in good}
    )
    return datasets.Dataset.from_dict(good, features=features), dict.fromkeys(SPLITS, 0) | dict(skipped)


def read_images(path: Path, rows: Collection[int]) -> dict[int, dict[str, Any]]:
    """Read the images of some rows, as `datasets.Image` stores them, by number of the row.

    Raises
    ------
    ValueError
        The file cannot be read.
    """
    wanted = set(rows)
    return {
        index: {"bytes": row["image"]["bytes"], "path": None}
        for index, row in enumerate(_read(path, ["image.bytes"]))
        if index in wanted
    }


def _read(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield rows, images as the bytes they are; a text that is not UTF-8 as bytes, too."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=columns):
            # Text is checked as it is decoded, row by row; all else before Python touches it.
            texts = [name for name in batch.schema.names if name != "image"]
            read = pa.table(batch.columns, batch.schema.names).select(batch.schema.names)
            for name in texts:
                place = read.schema.get_field_index(name)
                read = read.set_column(place, name, read.column(name).cast(pa.large_binary()))
            read.validate(full=True)
            for row in read.to_pylist():
                yield row | {name: _decoded(row[name]) for name in texts}
    except Exception as error:
        raise ValueError(f"data-dir: {path.name} cannot be read ({_line(error)})") from None


def _decoded(text: bytes | None) -> str | bytes | None:
    try:
        return text and text.decode()
    except UnicodeDecodeError:
        return text


def _text_fault(row: dict[str, Any]) -> str:
    """Say which text cannot be used; one that is not UTF-8 is forgotten."""
    for column in TEXT_COLUMNS:
        if isinstance(row[column], bytes) and row[column]:
            row[column] = None
            return f"{column} is not UTF-8"
        if len(row[column] or "") > LONGEST_TEXT:
            return f"{column} has {len(row[column])} characters, more than LONGEST_TEXT = {LONGEST_TEXT}"
    return ""


def _fault(row: dict[str, Any], image_faults: dict[bytes, str]) -> str:
    """Say what is wrong with a row, in a few words; an image that was met before is not decoded again."""
    for column in ("question", "answer"):
        if not (row[column] or "").strip():
            return f"no {column}"
    if row["split"] not in SPLIT_OF:
        return f"split is not one of {', '.join(SPLIT_OF)}"
    encoded = (row["image"] or {}).get("bytes")
    if not encoded:
        return "no image bytes"
    key = hashlib.sha256(encoded).digest()
    if key not in image_faults:
        image_faults[key] = image_fault(encoded)
    return image_faults[key]
