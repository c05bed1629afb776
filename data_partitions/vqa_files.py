"""Parquet files of questions about pictures: which there are, and which of their rows can be used."""

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .partition import SPLITS

TEXT_COLUMNS = ("image_id", "question", "answer", "split")
SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
_BATCH = 64  # rows in memory at a time


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
    for index, row in enumerate(_read(path, ["image", *TEXT_COLUMNS])):
        fault = _fault(row, faults)
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
        for index, row in enumerate(_read(path, ["image"]))
        if index in wanted
    }


def _read(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield rows, images as the bytes they are."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"data-dir: {path.name} cannot be read ({_line(error)})") from None


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
