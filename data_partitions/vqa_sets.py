"""The benchmark `vqa-domains`: a folder of parquet files of questions about pictures, each file a domain."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from PIL import Image

from .partition import (
    FEATURES,
    SPLITS,
    DataOptions,
    Partition,
    answer_list,
    answer_scores,
    client_name,
    require_one_of,
)
from .store import Facts, cached

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 1

_TEXTS = ("image_id", "question", "answer", "split")
_SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}


def names(options: DataOptions) -> list[str]:
    """Name the domains: what the `domain` column says in a file's first row, or else the file's name."""
    return [_domain(path) for path in _files(options)]


def load(partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    """Load a client's rows; several clients of one domain get different rows and the same answer list.

    Rows that are skipped count for the first client of a domain.

    Raises
    ------
    ValueError
        Naming the file and, counted from 0, the row that cannot be used; or a client without training rows.
    """
    require_one_of("split-by", options.split_by, ("iid", "dirichlet"))
    require_one_of("on-bad-row", options.on_bad_row, ("error", "skip"))
    if options.num_answers < 1:
        raise ValueError(f"num-answers = {options.num_answers}; allowed: 1 or more")
    files = _files(options)
    share, index = divmod(partition_id, len(files))
    shares = len(range(index, num_partitions, len(files)))
    path, name = files[index], client_name([_domain(file) for file in files], partition_id)
    stat = path.stat()
    key = {
        "version": VERSION,
        "file": [str(path), stat.st_size, stat.st_mtime_ns],
        "share": [share, shares, options.split_by, options.dirichlet_alpha] if shares > 1 else [],
        "num_answers": options.num_answers,
        "caps": [options.train_examples, options.test_examples],
        "on_bad_row": options.on_bad_row,
        "seed": options.seed,
    }
    splits, facts = cached(
        options.cache_dir / "vqa-domains", key, lambda: _prepare(path, share, shares, options)
    )
    if not len(splits["train"]):
        raise ValueError(f"partition-id = {partition_id}: {name!r} ({path.name}) has no training rows")
    return Partition(
        partition_id=partition_id, name=name, **splits, **facts | {"answers": tuple(facts["answers"])}
    )


def _files(options: DataOptions) -> list[Path]:
    """List the files of the folder, each with the columns that a domain needs."""
    folder = Path(options.data_dir).expanduser().absolute()
    if not options.data_dir or not folder.is_dir():
        raise ValueError(f"data-dir = {options.data_dir!r} is no folder; allowed: a folder of parquet files")
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"data-dir = {options.data_dir!r} has no parquet files; allowed: one or more")
    for path in files:
        _check_columns(path)
    return files


def _check_columns(path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"data-dir: {path.name} is not a readable parquet file ({_line(error)})") from None
    for column in ("image", *_TEXTS):
        if column not in schema.names:
            raise ValueError(
                f"data-dir: {path.name} has no column {column!r}; it has {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if column == "image":
            wanted, right = (
                "struct of bytes and path",
                pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0,
            )
        else:
            wanted, right = "string", pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not right:
            raise ValueError(f"data-dir: {path.name} column {column!r} is {kind}; allowed: {wanted}")


def _domain(path: Path) -> str:
    file = pq.ParquetFile(path)
    if "domain" not in file.schema_arrow.names or not file.metadata.num_rows:
        return path.stem
    first = next(file.iter_batches(batch_size=1, columns=["domain"]))
    return str(first["domain"][0].as_py() or path.stem)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepare(path: Path, share: int, shares: int, options: DataOptions) -> tuple[datasets.DatasetDict, Facts]:
    rows = _read(path, options.cache_dir)
    good, skipped = _good_rows(rows, path.name, options.on_bad_row)
    rows = rows.add_column("row", np.arange(len(rows))).select(good)
    trained = [
        answer for answer, split in zip(rows["answer"], rows["split"], strict=True) if split == "train"
    ]
    answers = answer_list(trained, options.num_answers)
    if shares > 1:
        rows = _share(rows, share, shares, options)
    caps = {
        "train": options.train_examples,
        "validation": (options.test_examples + 1) // 2,
        "test": options.test_examples,
    }
    splits, unanswerable = {}, {}
    where = np.array([_SPLIT_OF[split] for split in rows["split"]], dtype=object)
    for split in SPLITS:
        chosen = np.flatnonzero(where == split)
        if 0 < caps[split] < len(chosen):
            chosen = np.sort(np.random.default_rng(options.seed).permutation(chosen)[: caps[split]])
        part = rows.select(chosen)
        splits[split] = datasets.Dataset.from_dict(
            {
                "image": part["image"][:],
                "question": part["question"][:],
                "scores": [answer_scores(answer, answers) for answer in part["answer"]],
                "example_id": [
                    f"{image}/{row}" for image, row in zip(part["image_id"], part["row"], strict=True)
                ],
            },
            features=FEATURES,
        )
        unanswerable[split] = sum(answer not in answers for answer in part["answer"])
    facts = {
        "answers": answers,
        "unanswerable": unanswerable,
        "skipped": skipped if share == 0 else dict.fromkeys(SPLITS, 0),
    }
    return datasets.DatasetDict(splits), facts


def _read(path: Path, cache_dir: Path) -> datasets.Dataset:
    """Read the needed columns, images as the bytes they are."""
    try:
        rows = datasets.Dataset.from_parquet(
            str(path), cache_dir=str(cache_dir / "vqa-domains" / "read"), columns=["image", *_TEXTS]
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise ValueError(f"data-dir: {path.name} cannot be read ({_line(cause)})") from None
    return rows.cast_column("image", datasets.Image(decode=False))


def _good_rows(rows: datasets.Dataset, file: str, on_bad_row: str) -> tuple[list[int], dict[str, int]]:
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
            skipped[_SPLIT_OF.get(row["split"], "unknown")] += 1
    return good, dict.fromkeys(SPLITS, 0) | dict(skipped)


def _fault(row: dict[str, Any], image_faults: dict[bytes, str]) -> str:
    """Say what is wrong with a row, in a few words; an image that was met before is not decoded again."""
    for column in ("question", "answer"):
        if not (row[column] or "").strip():
            return f"no {column}"
    if row["split"] not in _SPLIT_OF:
        return f"split is {row['split']!r}; allowed: {', '.join(_SPLIT_OF)}"
    encoded = (row["image"] or {}).get("bytes")
    if not encoded:
        return "no image bytes"
    if encoded not in image_faults:
        image_faults[encoded] = _image_fault(encoded)
    return image_faults[encoded]


def _image_fault(encoded: bytes) -> str:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception as error:
        return f"image cannot be decoded ({_line(error)})"
    return ""


def _share(rows: datasets.Dataset, share: int, shares: int, options: DataOptions) -> datasets.Dataset:
    """Select one client's rows of a domain; all splits are shared out at once, so that they stay alike."""
    partitioner = (
        IidPartitioner(num_partitions=shares)
        if options.split_by == "iid"
        else DirichletPartitioner(
            num_partitions=shares,
            partition_by="answer",
            alpha=options.dirichlet_alpha,
            min_partition_size=0,
            seed=options.seed,
        )
    )
    # Both partitioners cut rows in the order in which they lie.
    partitioner.dataset = rows.select(np.random.default_rng(options.seed).permutation(len(rows)))
    return partitioner.load_partition(share)
