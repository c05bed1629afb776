"""The benchmarks `cifar10-lt` and `cifar100-lt`: counts, shares, pool, test set, every bad input."""

import io
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_partitions import long_tail
from data_partitions.benchmarks import (
    DataOptions,
    load_partition,
    load_pool,
    load_test,
    partition_names,
)
from data_partitions.long_tail import class_counts, share_out, thirds, thresholds

NAMES = ("airplane", "bird", "cat", "deer")


def _png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def _rows(train=40, test=12, names=NAMES):
    """Make `train` and `test` rows of each class, in a random order."""
    rows = [
        {
            "image_id": f"{split}/{name}/{n}",
            "label": label,
            "label_name": name,
            "split": split,
        }
        for split, count in (("train", train), ("test", test))
        for label, name in enumerate(names)
        for n in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] | {"image": {"bytes": _png(int(i)), "path": None}} for i in order]


def _write(folder, rows, name="cifar10"):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


@pytest.fixture
def options(tmp_path):
    _write(tmp_path / "data", _rows())
    return DataOptions(
        cache_dir=tmp_path / "cache",
        data_dir=str(tmp_path / "data"),
        imbalance_factor=8.0,
        public_per_class=8,
        public_examples=20,
    )


def _with(options, **changes):
    return DataOptions(**vars(options) | changes)


def _clients(options, count=4):
    return [load_partition("cifar10-lt", index, count, options) for index in range(count)]


def _train_ids(clients):
    return [example_id for client in clients for example_id in client.train["example_id"]]


def test_the_protocols_counts():
    """As printed for CIFAR-10-LT; the others' ends follow from the formula by hand."""
    assert class_counts(5000, 10, 100.0) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert class_counts(4000, 10, 10.0)[::9] == [4000, 400]
    assert class_counts(400, 100, 100.0)[::99] == [400, 4]
    assert class_counts(7, 3, 1.0) == [7, 7, 7]


def test_groups_by_rank_and_by_counts():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert thirds(counts) == {"many": (0, 1, 2), "medium": (3, 4, 5, 6), "few": (7, 8, 9)}
    assert thresholds([500, 101, 100, 20, 19, 5]) == {"many": (0, 1), "medium": (2, 3), "few": (4, 5)}


def test_counts_over_all_clients_are_the_protocols(options):
    """40 rows a class, 8 reserved: n_max 32, then 32 / 2, 32 / 4, 32 / 8."""
    clients = _clients(options)
    assert Counter(example_id.split("/")[1] for example_id in _train_ids(clients)) == {
        "airplane": 32,
        "bird": 16,
        "cat": 8,
        "deer": 4,
    }
    assert [len(client.train) for client in clients] == [15, 15, 15, 15]
    assert [len(client.train) for client in _clients(options, 7)] == [9, 9, 9, 9, 8, 8, 8]


def test_no_example_has_two_holders(options):
    clients = _clients(options)
    pool = load_pool("cifar10-lt", options)
    ids = _train_ids(clients) + [i for client in clients for i in client.test["example_id"]]
    ids += [i for split in ("train", "validation") for i in pool[split]["example_id"]]
    assert len(ids) == len(set(ids)) == 60 + 48 + 20


def test_scores_are_one_hot_over_the_classes_in_label_order(options):
    for client in _clients(options):
        assert client.answers == NAMES
        for split in (client.train, client.test):
            for row in split.remove_columns("images"):
                name = row["example_id"].split("/")[1]
                assert row["scores"] == [float(name == listed) for listed in NAMES]
                assert row["question"] == "what is shown ?"


def test_images_go_with_their_rows(options):
    by_id = {row["image_id"]: row["image"]["bytes"] for row in _rows()}
    client = _clients(options)[2]
    for split in (client.train, client.test):
        for row in split.with_format("arrow")[:].to_pylist():
            (image,) = row["images"]
            assert image["bytes"] == by_id[row["example_id"]]


def test_the_test_set_is_shared_out_evenly(options):
    clients = _clients(options)
    assert [len(client.test) for client in clients] == [12, 12, 12, 12]
    everything = {i for client in clients for i in client.test["example_id"]}
    assert everything == {f"test/{name}/{n}" for name in NAMES for n in range(12)}
    assert all(len(client.validation) == 0 for client in clients)


def test_caps_take_a_part_of_a_clients_rows(options):
    for whole, capped in zip(
        _clients(options), _clients(_with(options, train_examples=6, test_examples=5)), strict=True
    ):
        assert set(capped.train["example_id"]) < set(whole.train["example_id"])
        assert (len(capped.train), len(capped.test)) == (6, 5)


def test_the_same_options_give_the_same_rows_and_another_seed_others(options):
    first = _train_ids(_clients(options))
    assert _train_ids(_clients(_with(options, cache_dir=options.cache_dir / "other"))) == first
    assert _train_ids(_clients(_with(options, seed=1))) != first
    assert _train_ids(_clients(_with(options, dirichlet_alpha=5.0))) != first


def test_what_was_made_is_kept_until_the_file_changes(options, monkeypatch, tmp_path):
    first = _train_ids(_clients(options))
    with monkeypatch.context() as patch:
        patch.delattr(long_tail.LongTail, "_client")
        assert _train_ids(_clients(options)) == first
    _write(tmp_path / "data", _rows(train=41))
    assert len(_train_ids(_clients(options))) == 33 + 16 + 8 + 4


def test_a_small_alpha_makes_clients_differ_more():
    rows = [np.arange(200) + 200 * label for label in range(4)]

    def largest_class(alpha):
        clients = share_out(rows, 10, alpha, np.random.default_rng(0))
        return np.mean([np.bincount(client // 200).max() / len(client) for client in clients])

    assert largest_class(0.1) > largest_class(1.0) + 0.1 > largest_class(100.0) + 0.2


@pytest.mark.parametrize("clients", [1, 3, 10, 13, 20, 40])
@pytest.mark.parametrize("alpha", [1e-3, 0.5, 1e3])
def test_every_row_has_one_client_and_clients_are_of_one_size(clients, alpha):
    rows = [np.arange(start, stop) for start, stop in ((0, 90), (90, 110), (110, 113))]
    shares = share_out(rows, clients, alpha, np.random.default_rng(3))
    assert sorted(np.concatenate(shares)) == list(range(113))
    assert {len(share) for share in shares} <= {113 // clients, 113 // clients + 1}
    assert len(shares) == clients


def test_the_pool_is_balanced_and_the_same_for_every_seed(options):
    pool = load_pool("cifar10-lt", options)
    assert Counter(pool["train"]["answer"]) == dict.fromkeys(NAMES, 4)
    assert Counter(pool["validation"]["answer"]) == dict.fromkeys(NAMES, 1)
    assert set(pool["train"]["question"]) == {"what is shown ?"}
    other = load_pool("cifar10-lt", _with(options, seed=5))
    assert [*other["train"]["example_id"]] == [*pool["train"]["example_id"]]


def test_the_balanced_test_set(options):
    test = load_test("cifar10-lt", options)
    assert test.answers == NAMES
    assert (len(test.rows), np.sum(test.rows["scores"][:], axis=0).tolist()) == (48, [12] * 4)
    assert test.groups == {"many": (0,), "medium": (1, 2), "few": (3,)}
    some = load_test("cifar10-lt", _with(options, test_examples=21))
    assert np.sum(some.rows["scores"][:], axis=0).tolist() == [5] * 4


def test_there_are_as_many_clients_as_are_asked_for(options):
    assert partition_names("cifar10-lt", options) == []


BAD = [
    ({"public_per_class": 40}, "public-per-class = 40, but class 'airplane' of cifar10.parquet has 40 "
     "training rows; allowed: 0 to 39"),
    ({"data_dir": ""}, "data-dir = '' is not a folder; allowed: one with cifar10.parquet"),
    ({"data_dir": "/no/such"}, "data-dir = '/no/such' does not exist; allowed: one with cifar10.parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_cannot_be_is_said_in_one_line(options, changes, message):
    with pytest.raises(ValueError) as error:
        load_partition("cifar10-lt", 0, 4, _with(options, **changes))
    assert str(error.value) == message


def test_a_missing_file_is_named(options):
    with pytest.raises(ValueError, match=r"^data-dir = .* has no cifar100.parquet; allowed: a folder"):
        load_partition("cifar100-lt", 0, 4, options)


def test_more_clients_than_examples(options):
    with pytest.raises(ValueError, match=r"^num-partitions = 61; allowed: 1 to 60, the training examples$"):
        load_partition("cifar10-lt", 60, 61, options)


def test_a_pool_too_small_to_hold_one_out(options):
    with pytest.raises(ValueError, match=r"^public-per-class = 8 and public\.examples = 16 give 4 public"):
        load_pool("cifar10-lt", _with(options, public_examples=16))


def test_a_benchmark_without_a_common_test_set(options):
    with pytest.raises(ValueError, match=r"^benchmark = 'scenes'; allowed: cifar10-lt, cifar100-lt$"):
        load_test("scenes", options)


def _without_a_column(rows):
    return [{key: value for key, value in row.items() if key != "label_name"} for row in rows]


def _without_a_class(rows):
    return [row for row in rows if row["label"] != 1]


def _without_a_test_row_of_a_class(rows):
    return [row for row in rows if (row["label"], row["split"]) != (3, "test")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_column, "data-dir: cifar10.parquet has no column 'label_name'; it has "),
        (_without_a_class, "data-dir: cifar10.parquet has the labels [0, 2, 3]; allowed: 0, 1, 2, ..."),
        (_without_a_test_row_of_a_class, "data-dir: cifar10.parquet has no test row of class 'deer'"),
    ],
)
def test_a_file_that_does_not_fit(options, tmp_path, change, message):
    _write(tmp_path / "data", change(_rows()))
    with pytest.raises(ValueError) as error:
        load_partition("cifar10-lt", 0, 4, options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (b"GIF89a and no more", "image cannot be decoded ("),
        (None, "image has 169000000 pixels, more than LARGEST_IMAGE = "),
    ],
)
def test_a_picture_that_cannot_be_used_is_named_by_its_row(options, tmp_path, picture, fault):
    rows = _rows()
    largest = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(largest, "PNG")
    broken = [row for row in rows if row["split"] == "test"]
    for row in broken:
        row["image"] = {"bytes": picture or largest.getvalue(), "path": None}
    _write(tmp_path / "data", rows)
    with pytest.raises(ValueError) as error:
        load_partition("cifar10-lt", 0, 4, options)
    named = re.match(rf"data-dir: cifar10.parquet row (\d+): {re.escape(fault)}", str(error.value))
    assert named
    assert rows[int(named[1])] in broken


def test_a_file_that_is_no_parquet(options, tmp_path):
    (tmp_path / "data" / "cifar10.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"^data-dir: cifar10.parquet is not a readable parquet file"):
        load_partition("cifar10-lt", 0, 4, options)


@pytest.mark.parametrize(
    ("benchmark", "reserved", "total", "groups"),
    [
        # 4000, 2397, 1437, 861, 516, 309, 185, 111, 66, 40.
        ("cifar10-lt", 1000, 9922, (3, 4, 3)),
        ("cifar100-lt", 0, 10847, (35, 35, 30)),
    ],
)
def test_real_data(shared_data, tmp_path, benchmark, reserved, total, groups):
    """The published sizes: CIFAR-100-LT (100) has 10,847 training images, 35, 35 and 30 classes."""
    options = DataOptions(
        cache_dir=tmp_path, data_dir=str(shared_data / "data" / "images"), public_per_class=reserved
    )
    client = load_partition(benchmark, 0, 20, options)
    assert len(client.train) == -(-total // 20)
    assert len(client.test) == 500
    test = load_test(benchmark, options)
    assert len(test.rows) == 10_000
    assert tuple(map(len, test.groups.values())) == groups
