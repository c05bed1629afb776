"""Benchmarks by name, and what can be answered without looking."""

import sys
from dataclasses import replace

import datasets
import pytest

import data_partitions
from data_partitions import benchmarks
from data_partitions.benchmarks import (
    BENCHMARKS,
    DataOptions,
    Partition,
    check_options,
    load_partition,
    load_public,
    partition_names,
    text_only_baseline,
)


@pytest.fixture
def options(tmp_path):
    return DataOptions(cache_dir=tmp_path, train_examples=4, test_examples=2)


def test_names_by_the_files():
    assert list(BENCHMARKS) == [
        "feddat-domain",
        "feddat-function",
        "feddat-scene",
        "feddat-task",
        "files",
        "hflb",
        "cifar10-lt",
        "cifar100-lt",
        "scenes",
        "vqa-domains",
    ]


def test_unknown_benchmark(options):
    message = f"^benchmark = 'vqa'; allowed: {', '.join(BENCHMARKS)}$"
    with pytest.raises(ValueError, match=message):
        load_partition("vqa", 0, 1, options)
    with pytest.raises(ValueError, match=message):
        partition_names("vqa", options)


def test_one_more_file_is_one_more_benchmark(tmp_path, monkeypatch):
    made = "from .benchmark import Benchmark\nONE = Benchmark(name='one', names=list, load=None)\n"
    (tmp_path / "one_more.py").write_text(made)
    monkeypatch.setattr(data_partitions, "__path__", [*data_partitions.__path__, str(tmp_path)])
    assert {benchmark.name for benchmark in benchmarks._found()} == {*BENCHMARKS, "one"}
    del sys.modules["data_partitions.one_more"]


@pytest.mark.parametrize(
    ("benchmark", "changes", "message"),
    [
        ("hflb", {}, "data-dir = '' with benchmark = 'hflb'; allowed: the absolute path of a folder"),
        (
            "files",
            {},
            "data-dir = '' with benchmark = 'files'; allowed: the absolute path of a folder, or hub-data",
        ),
        (
            "files",
            {"data_dir": "/d", "hub_data": "a/b"},
            "hub-data = 'a/b' with data-dir = '/d'; allowed: one of them",
        ),
        (
            "hflb",
            {"hub_data": "a/b"},
            "hub-data = 'a/b' with benchmark = 'hflb' has no effect; allowed: '', or benchmark = 'files'",
        ),
        (
            "scenes",
            {"data_dir": "/d"},
            "data-dir = '/d' with benchmark = 'scenes' has no effect; allowed: '', or benchmark = one of '",
        ),
        (
            "scenes",
            {"missing_modality": 0.3},
            "missing-modality = 0.3 with benchmark = 'scenes' has no effect; allowed: 0.0, or benchmark = "
            "'feddat-domain' or ",
        ),
    ],
)
def test_options_that_a_benchmark_cannot_use(options, benchmark, changes, message):
    with pytest.raises(ValueError) as caught:
        check_options(benchmark, replace(options, **changes))
    assert str(caught.value).startswith(message)


def test_options_that_a_benchmark_can_use(options):
    check_options("scenes", options)
    check_options("files", replace(options, hub_data="a/b", missing_modality=0.3))
    check_options("vqa-domains", replace(options, data_dir="/d"))


@pytest.mark.parametrize("partition_id", [-1, 3])
def test_partition_out_of_range(options, partition_id):
    with pytest.raises(ValueError, match=f"^partition-id = {partition_id}; allowed: 0 to 2$"):
        load_partition("scenes", partition_id, 3, options)


def test_public_data_of_a_benchmark_without(options):
    with pytest.raises(ValueError, match=r"^benchmark = 'vqa-domains'; allowed: scenes$"):
        load_public("vqa-domains", options, 3)


def test_public_split_that_does_not_exist(options):
    with pytest.raises(ValueError, match=r"^split = 'val'; allowed: train, validation, test$"):
        load_public("scenes", options, 3, "val")


def _partition(train, test):
    def rows(pairs):
        return datasets.Dataset.from_dict(
            {"question": [text for text, _ in pairs], "scores": [scores for _, scores in pairs]}
        )

    return Partition(0, "by hand", ("yes", "no", "2"), rows(train), rows([]), rows(test))


def test_text_only_baseline_by_hand():
    yes, no, two, unanswerable = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]
    train = [("a?", yes), ("a?", no), ("a?", no), ("b?", two), ("b?", unanswerable), ("b?", unanswerable)]
    # "a?" gets "no": 1 of 2. "b?" gets "2": 1 of 1. "c?" is new and gets "no", the majority: 0.3 and 0 of 2.
    test = [("a?", no), ("a?", yes), ("b?", two), ("c?", [1.0, 0.3, 0.0]), ("c?", unanswerable)]
    assert text_only_baseline(_partition(train, test)) == pytest.approx((1 + 0 + 1 + 0.3 + 0) / 5)
