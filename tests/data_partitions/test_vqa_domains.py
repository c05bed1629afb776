"""The benchmark `vqa-domains`: real data from a folder, whole, capped or shared out, and every bad input."""

import io
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_partitions import vqa_domains
from data_partitions.benchmarks import (
    DataOptions,
    load_partition,
    load_pool,
    partition_names,
    text_only_baseline,
)

SHARED = Path(os.environ.get("FEDDAT_SHARED", Path(__file__).parents[2] / ".." / "shared")) / "data" / "vqa"


def _png(value):
    noise = np.random.default_rng(value).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def _rows(train=12, val=4, test=6, domain="x-ray"):
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    # Answers of each four rows: a, a, b, c.
    return [
        {
            "image": {"bytes": _png(index // 2), "path": None},
            "image_id": f"image{index // 2}",
            "question": f"what is {index % 3}?",
            "answer": "aabc"[index % 4],
            "domain": domain,
            "split": split,
        }
        for index, split in enumerate(splits)
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, folder):
    return DataOptions(cache_dir=tmp_path / "cache", data_dir=str(folder))


def _with(options, **changes):
    return DataOptions(**vars(options) | changes)


def _write(folder, rows, name="one"):
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=4)


def _encoded(split):
    return split.cast_column("images", datasets.List(datasets.Image(decode=False)))["images"]


def _ids(partition):
    return [
        *partition.train["example_id"],
        *partition.validation["example_id"],
        *partition.test["example_id"],
    ]


def test_a_domain_as_it_is(folder, options):
    rows = _rows()
    _write(folder, rows)
    partition = load_partition("vqa-domains", 0, 1, options)
    assert (partition.partition_id, partition.name, partition.answers) == (0, "x-ray", ("a", "b", "c"))
    assert [len(split) for split in (partition.train, partition.validation, partition.test)] == [12, 4, 6]
    assert partition.train["question"][:] == [row["question"] for row in rows[:12]]
    assert partition.train["scores"][:4] == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert partition.test["example_id"][:2] == ["image8/16", "image8/17"]
    encoded = [[image["bytes"] for image in images] for images in _encoded(partition.validation)]
    assert encoded == [[row["image"]["bytes"]] for row in rows[12:16]]
    assert [image.size for image in partition.validation[0]["images"]] == [(16, 16)]
    assert partition.unanswerable == partition.skipped == {"train": 0, "validation": 0, "test": 0}


def test_files_are_domains_in_the_order_of_their_names(folder, options):
    _write(folder, _rows(domain="second"), "b")
    _write(folder, _rows(domain=None), "c")
    _write(folder, [{k: v for k, v in row.items() if k != "domain"} for row in _rows()], "a")
    (folder / "notes.txt").write_text("not a domain")
    assert partition_names("vqa-domains", options) == ["a", "second", "c"]
    assert load_partition("vqa-domains", 1, 2, options).name == "second"


def test_rare_answers_are_kept_and_counted(folder, options):
    _write(folder, _rows())
    partition = load_partition("vqa-domains", 0, 1, _with(options, num_answers=2))
    assert partition.answers == ("a", "b")
    assert partition.unanswerable == {"train": 3, "validation": 1, "test": 1}
    assert partition.train["scores"][3] == [0, 0]
    assert len(partition.train) == 12


def test_validation_rows_are_scored_where_asked_for(folder, options):
    _write(folder, _rows())
    asked = _with(options, num_answers=2)
    plain, chosen = (
        load_partition("vqa-domains", 0, 1, _with(asked, evaluate_on=split))
        for split in ("test", "validation")
    )
    assert chosen.test["example_id"][:] == [f"image{row // 2}/{row}" for row in range(12, 16)]
    assert plain.test["example_id"][:] == [f"image{row // 2}/{row}" for row in range(16, 22)]
    assert chosen.train["example_id"][:] == plain.train["example_id"][:]
    assert chosen.unanswerable["test"] == sum(not any(scores) for scores in chosen.test["scores"])
    _write(folder, _rows(val=0))
    line = "^evaluate-on = 'validation': x-ray has no validation rows; allowed: 'test'$"
    with pytest.raises(ValueError, match=line):
        load_partition("vqa-domains", 0, 1, _with(asked, evaluate_on="validation"))


def test_caps_are_a_sample_that_the_seed_decides(folder, options):
    _write(folder, _rows(train=40, test=20, val=20))
    capped = _with(options, train_examples=10, test_examples=5)
    partition = load_partition("vqa-domains", 0, 1, capped)
    assert [len(split) for split in (partition.train, partition.validation, partition.test)] == [10, 3, 5]
    assert set(_ids(partition)) < set(_ids(load_partition("vqa-domains", 0, 1, options)))
    elsewhere = _with(capped, cache_dir=options.cache_dir / "other")
    assert _ids(load_partition("vqa-domains", 0, 1, elsewhere)) == _ids(partition)
    assert _ids(load_partition("vqa-domains", 0, 1, _with(capped, seed=1))) != _ids(partition)


@pytest.mark.parametrize("split_by", ["iid", "dirichlet"])
def test_shares_of_a_domain_are_disjoint_and_cover_it(folder, options, split_by):
    _write(folder, _rows(train=60, val=20, test=40), "a")
    _write(folder, _rows(domain="other"), "b")
    options = _with(options, split_by=split_by, dirichlet_alpha=5.0)
    shares = [load_partition("vqa-domains", partition_id, 5, options) for partition_id in (0, 2, 4)]
    assert [share.name for share in shares] == ["x-ray", "x-ray-2", "x-ray-3"]
    assert len({share.answers for share in shares}) == 1
    ids = [example_id for share in shares for example_id in _ids(share)]
    assert sorted(ids) == sorted(_ids(load_partition("vqa-domains", 0, 1, options)))
    again = load_partition("vqa-domains", 2, 5, _with(options, cache_dir=options.cache_dir / "other"))
    assert _ids(again) == _ids(shares[1])


def test_dirichlet_shares_differ_in_their_answers(folder, options):
    _write(folder, _rows(train=200, val=0, test=0))
    options = _with(options, split_by="dirichlet", dirichlet_alpha=0.1)
    shares = [
        load_partition("vqa-domains", partition_id, 2, options).train["scores"] for partition_id in (0, 1)
    ]
    fractions = np.array([np.mean(scores[:], axis=0) for scores in shares])
    assert np.abs(fractions[0] - fractions[1]).max() > 0.3


def test_prepared_data_are_kept_until_the_file_changes(folder, options, monkeypatch):
    _write(folder, _rows())
    load_partition("vqa-domains", 0, 1, options)
    with monkeypatch.context() as patch:
        patch.delattr(vqa_domains, "_prepare")
        assert len(load_partition("vqa-domains", 0, 1, options).train) == 12
    _write(folder, _rows(train=13))
    assert len(load_partition("vqa-domains", 0, 1, options).train) == 13


def test_of_the_source_only_what_a_client_is_given_is_written(folder, options, tmp_path):
    """Of 22 rows with 11 pictures a client with caps has four with at most four; a pool is not written."""
    _write(folder, _rows())
    few = replace(options, train_examples=1, test_examples=2)
    partition = load_partition("vqa-domains", 0, 1, few)
    load_pool("vqa-domains", replace(few, public_data=str(folder / "one.parquet")))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("cache/**/*") if path.is_file())
    given = {
        image["bytes"]
        for split in (partition.train, partition.validation, partition.test)
        for images in _encoded(split)
        for image in images
    }
    assert {index for index in range(11) if _png(index) in written} == {
        index for index in range(11) if _png(index) in given
    }
    assert 1 <= len(given) <= 4


@pytest.mark.parametrize(
    ("row", "changes", "fault"),
    [
        (5, {"image": {"bytes": b"not a picture", "path": None}}, "image cannot be decoded"),
        # Pillow would start Ghostscript for a PostScript picture.
        (
            5,
            {"image": {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EOF\n", "path": None}},
            r"image cannot be decoded \(its kind cannot be told\)",
        ),
        (5, {"image": {"bytes": _png(1)[:300], "path": None}}, "image cannot be decoded"),
        (14, {"image": {"bytes": None, "path": "elsewhere.png"}}, "no image bytes"),
        (14, {"image": None}, "no image bytes"),
        (3, {"question": None}, "no question"),
        (3, {"question": "  "}, "no question"),
        (20, {"answer": None}, "no answer"),
        (20, {"split": "dev"}, "split is not one of train, val, test"),
        (20, {"split": None}, "split is not one of train, val, test"),
    ],
)
def test_bad_rows_are_named_or_skipped_and_counted(folder, options, row, changes, fault):
    rows = _rows()
    rows[row] |= changes
    _write(folder, rows)
    with pytest.raises(ValueError, match=f"^data-dir: one.parquet row {row}: {fault}"):
        load_partition("vqa-domains", 0, 1, options)
    partition = load_partition("vqa-domains", 0, 1, _with(options, on_bad_row="skip"))
    assert len(_ids(partition)) == 21
    assert f"image{row // 2}/{row}" not in _ids(partition)
    where = {"train": "train", "val": "validation", "test": "test"}.get(rows[row]["split"], "unknown")
    assert partition.skipped == {"train": 0, "validation": 0, "test": 0} | {where: 1}


def test_skipped_rows_count_once_when_a_domain_is_shared(folder, options):
    rows = _rows()
    rows[2]["answer"] = None
    _write(folder, rows)
    options = _with(options, on_bad_row="skip")
    skipped = [
        load_partition("vqa-domains", partition_id, 2, options).skipped["train"] for partition_id in (0, 1)
    ]
    assert skipped == [1, 0]


def test_no_folder(options):
    for data_dir, wrong in (("", "is not a folder"), ("/no/such/folder", "does not exist")):
        with pytest.raises(ValueError, match=f"^data-dir = '{data_dir}' {wrong}; allowed: a folder of parq"):
            partition_names("vqa-domains", _with(options, data_dir=data_dir))


def test_empty_folder(options):
    with pytest.raises(ValueError, match=r"^data-dir = .* has no parquet files"):
        load_partition("vqa-domains", 0, 1, options)


@pytest.mark.parametrize("column", ["image", "image_id", "question", "answer", "split"])
def test_missing_column(folder, options, column):
    _write(folder, [{name: value for name, value in row.items() if name != column} for row in _rows()])
    with pytest.raises(ValueError, match=f"^data-dir: one.parquet has no column '{column}'; it has "):
        load_partition("vqa-domains", 0, 1, options)


@pytest.mark.parametrize(("column", "value"), [("image", "a.png"), ("answer", 3)])
def test_column_of_another_type(folder, options, column, value):
    _write(folder, [row | {column: value} for row in _rows()])
    with pytest.raises(
        ValueError, match=f"^data-dir: one.parquet column '{column}' is (string|int64); allowed: "
    ):
        load_partition("vqa-domains", 0, 1, options)


def test_file_that_is_no_parquet(folder, options):
    (folder / "one.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"^data-dir: one.parquet is not a readable parquet file"):
        partition_names("vqa-domains", options)


def test_file_with_broken_pages(folder, options):
    _write(folder, _rows())
    broken = bytearray((folder / "one.parquet").read_bytes())
    broken[4:2000] = bytes(1996)
    (folder / "one.parquet").write_bytes(broken)
    with pytest.raises(ValueError, match=r"^data-dir: one.parquet cannot be read"):
        load_partition("vqa-domains", 0, 1, options)


def test_no_training_rows(folder, options):
    _write(folder, _rows(train=0))
    with pytest.raises(ValueError, match=r"^partition-id = 0: 'x-ray' \(one.parquet\) has no training rows$"):
        load_partition("vqa-domains", 0, 1, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_by": "size"}, "split-by = 'size'; allowed: iid, dirichlet"),
        ({"evaluate_on": "train"}, "evaluate-on = 'train'; allowed: test, validation"),
        ({"on_bad_row": "ignore"}, "on-bad-row = 'ignore'; allowed: error, skip"),
        ({"num_answers": 0}, "num-answers = 0; allowed: 1 or more"),
    ],
)
def test_options_that_are_not_allowed(folder, options, changes, message):
    _write(folder, _rows())
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_partition("vqa-domains", 0, 1, _with(options, **changes))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
def test_real_data(options):
    options = _with(options, data_dir=str(SHARED))
    names = partition_names("vqa-domains", options)
    partition = load_partition("vqa-domains", names.index("medical_radiology"), len(names), options)
    assert [len(split) for split in (partition.train, partition.validation, partition.test)] == [
        1613,
        184,
        451,
    ]
    assert len(partition.answers) == 100
    assert 0.2 < text_only_baseline(partition) < 0.4


def test_a_public_file_of_the_server_is_cut_by_answer(folder, options):
    path = folder / "public.parquet"
    pq.write_table(pa.Table.from_pylist(_rows(train=40)), path)
    pool = load_pool("vqa-domains", replace(options, public_data=str(path), public_examples=100))
    # Of the 40 training rows 20 say a, 10 say b and 10 say c; every fifth of each is held out.
    assert Counter(pool["train"]["answer"]) == {"a": 16, "b": 8, "c": 8}
    assert Counter(pool["validation"]["answer"]) == {"a": 4, "b": 2, "c": 2}
    assert not set(pool["train"]["example_id"]) & set(pool["validation"]["example_id"])
    few = load_pool("vqa-domains", replace(options, public_data=str(path), public_examples=10))
    assert len(few["train"]) + len(few["validation"]) == 10


def test_public_examples_must_be_asked_for_and_be_there(folder, options):
    with pytest.raises(ValueError, match="'vqa-domains' has no public examples of its own; allowed: the abs"):
        load_pool("vqa-domains", options)
    with pytest.raises(ValueError, match=r"public\.data = '/nowhere\.parquet' is not a file; allowed: a"):
        load_pool("vqa-domains", replace(options, public_data="/nowhere.parquet"))
    path = folder / "tests.parquet"
    pq.write_table(pa.Table.from_pylist(_rows(train=0)), path)
    with pytest.raises(ValueError, match=r"public\.data: tests\.parquet has no training rows"):
        load_pool("vqa-domains", replace(options, public_data=str(path)))
