"""Parquet files of questions about pictures: which there are, and which of their rows can be used."""

import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .partition import SPLITS

TEXT_COLUMNS = ("image_id", "question", "answer", "split")
SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}


def domain_files(data_dir: str) -> list[Path]:
    """List the files of the folder, each with the columns that a domain needs."""
    folder = Path(data_dir).expanduser().absolute()
    if not data_dir or not folder.is_dir():
        raise ValueError(f"data-dir = {data_dir!r} is no folder; allowed: a folder of parquet files")
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"data-dir = {data_dir!r} has no parquet files; allowed: one or more")
    for path in files:
        check_columns(path)
    return files


def check_columns(path: Path) -> None:
    """Raise a ValueError naming the file and what is wrong, unless it has the columns that a domain needs."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"data-dir: {path.name} is not a readable parquet file ({_line(error)})") from None
    for column in ("image", *TEXT_COLUMNS):
        if column not in schema.names:
            raise ValueError(
                f"data-dir: {path.name} has no column {column!r}; it has {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if column == "image":
            wanted = "struct of bytes and path"
            right = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        else:
            wanted = "string"
            right = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not right:
            raise ValueError(f"data-dir: {path.name} column {column!r} is {kind}; allowed: {wanted}")


def domain_name(path: Path) -> str:
    """Name a file's domain: what its `domain` column says in the first row, or else the file's name."""
    file = pq.ParquetFile(path)
    if "domain" not in file.schema_arrow.names or not file.metadata.num_rows:
        return path.stem
    first = next(file.iter_batches(batch_size=1, columns=["domain"]))
    return str(first["domain"][0].as_py() or path.stem)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_rows(path: Path, cache_dir: Path) -> datasets.Dataset:
    """Read the needed columns, images as the bytes they are."""
    try:
        rows = datasets.Dataset.from_parquet(
            str(path), cache_dir=str(cache_dir), columns=["image", *TEXT_COLUMNS]
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise ValueError(f"data-dir: {path.name} cannot be read ({_line(cause)})") from None
    return rows.cast_column("image", datasets.Image(decode=False))


def good_rows(rows: datasets.Dataset, file: str, on_bad_row: str) -> tuple[list[int], dict[str, int]]:
    """Find the rows that can be used, and for each split how many cannot."""
    good = []
    skipped: Counter[str] = Counter()
    faults: dict[bytes, str] = {}
    for index, row in enumerate(rows):
        fault = _fault(row, faults)
        if not fault:
            good.append(index)
        elif on_bad_row == "error":
            raise ValueError(
                f"data-dir: {file} row {index}: {fault} (on-bad-row = 'skip' leaves such rows out)"
            )
        else:
            skipped[SPLIT_OF.get(row["split"], "unknown")] += 1
    return good, dict.fromkeys(SPLITS, 0) | dict(skipped)


def _fault(row: dict[str, Any], image_faults: dict[bytes, str]) -> str:
    """Say what is wrong with a row, in a few words; an image that was met before is not decoded again."""
    for column in ("question", "answer"):
        if not (row[column] or "").strip():
            return f"no {column}"
    if row["split"] not in SPLIT_OF:
        return f"split is none of {', '.join(SPLIT_OF)}"
    encoded = (row["image"] or {}).get("bytes")
    if not encoded:
        return "no image bytes"
    key = hashlib.sha256(encoded).digest()
    if key not in image_faults:
        image_faults[key] = _image_fault(encoded)
    return image_faults[key]


def _image_fault(encoded: bytes) -> str:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception as error:
        return f"image cannot be decoded ({_line(error)})"
    return ""
