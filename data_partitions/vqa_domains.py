"""The benchmark `vqa-domains`: a folder of parquet files of questions about pictures, each file a domain."""

from pathlib import Path

import datasets
import numpy as np

from .benchmark import Benchmark
from .options import DataOptions
from .partition import (
    SPLITS,
    Partition,
    Row,
    answer_list,
    client_name,
    pool_of,
    require_one_of,
    scored_split,
)
from .shares import capped, own_share
from .store import Facts, cached, source
from .vqa_files import SPLIT_OF, check_columns, domain_files, domain_name, good_rows, read_images

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 3


def names(options: DataOptions) -> list[str]:
    """Name the domains, in the order of their files' names."""
    return [domain_name(path) for path in domain_files(options)]


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
    files = domain_files(options)
    share, index = divmod(partition_id, len(files))
    shares = len(range(index, num_partitions, len(files)))
    path, name = files[index], client_name([domain_name(file) for file in files], partition_id)
    key = {
        "version": VERSION,
        "share": [share, shares, options.split_by, options.dirichlet_alpha] if shares > 1 else [],
        "num_answers": options.num_answers,
        "caps": [options.train_examples, options.test_examples],
        "on_bad_row": options.on_bad_row,
        "seed": options.seed,
    }
    splits, facts = cached(
        options.cache_dir / "vqa-domains", key, lambda: _prepare(path, share, shares, options), [path]
    )
    if not len(splits["train"]):
        raise ValueError(f"partition-id = {partition_id}: {name!r} ({path.name}) has no training rows")
    # Another file in the folder is another client.
    facts["sources"] += [source(path.parent)]
    return Partition(
        partition_id=partition_id, name=name, **splits, **facts | {"answers": tuple(facts["answers"])}
    )


def load_pool(options: DataOptions) -> datasets.DatasetDict:
    """Load the server's public examples from the training rows of a file of its own, `public_data`.

    Raises
    ------
    ValueError
        Naming the file and, counted from 0, the row that cannot be used; or a file without training rows.
    """
    path = Path(options.public_data).expanduser()
    if not path.is_file():
        raise ValueError(f"public.data = {options.public_data!r} is not a file; allowed: a parquet file")
    check_columns(path)
    rows, _ = good_rows(path, options.on_bad_row)
    trained = [index for index, split in enumerate(rows["split"]) if split == "train"]
    if not trained:
        raise ValueError(f"public.data: {path.name} has no training rows")
    chosen = np.random.default_rng(options.seed).permutation(trained)[: options.public_examples]
    part = rows.select(np.sort(chosen))
    pictures = read_images(path, part["row"])
    ids = [f"{image}/{row}" for image, row in zip(part["image_id"], part["row"], strict=True)]
    images = [pictures[row] for row in part["row"]]
    return pool_of(images, part["question"], part["answer"], ids)


def _prepare(path: Path, share: int, shares: int, options: DataOptions) -> tuple[datasets.DatasetDict, Facts]:
    rows, skipped = good_rows(path, options.on_bad_row)
    trained = [
        answer for answer, split in zip(rows["answer"], rows["split"], strict=True) if split == "train"
    ]
    answers = answer_list(trained, options.num_answers)
    if shares > 1:
        # All splits are shared out at once, so that they stay alike.
        rows = rows.select(own_share(rows["answer"], share, shares, options))
    caps = {
        "train": options.train_examples,
        "validation": (options.test_examples + 1) // 2,
        "test": options.test_examples,
    }
    parts = {}
    where = np.array([SPLIT_OF[split] for split in rows["split"]], dtype=object)
    for split, cap in caps.items():
        parts[split] = rows.select(capped(np.flatnonzero(where == split), cap, options.seed))
    pictures = read_images(path, {row for part in parts.values() for row in part["row"]})
    splits, unanswerable = datasets.DatasetDict(), {}
    for split, part in parts.items():
        splits[split], unanswerable[split] = scored_split(
            (
                Row.asking(
                    pictures[row["row"]], row["question"], row["answer"], f"{row['image_id']}/{row['row']}"
                )
                for row in part
            ),
            answers,
        )
    facts = {
        "answers": answers,
        "unanswerable": unanswerable,
        "skipped": skipped if share == 0 else dict.fromkeys(SPLITS, 0),
    }
    return splits, facts


VQA_DOMAINS = Benchmark(name="vqa-domains", names=names, load=load, names_in_data=True)
